"""From the options of the command line to what a run needs: requests, engines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optpipe.errors import RequestError

from .arrivals import Arrivals
from .lengths import parse_lengths
from .prompts import PromptSource, RandomIds, TextIds, Words
from .workload import Request, Shape, Workload, read_trace

if TYPE_CHECKING:
    from ..engine import Engine
    from ..tokenizer import Tokenizer

Options = Mapping[str, Any]


def make_workload(options: Options, tokenizer: Tokenizer | None, vocab_size: int | None = None) -> Workload:
    """Where requests come from.

    Args:
        vocab_size: ids are below this; the tokenizer's own when None.
    """
    shape = Shape(
        inputs=parse_lengths(options["input_len"], "input"),
        outputs=parse_lengths(options["output_len"], "output"),
        shared_prefix=options.get("shared_prefix", 0),
        prefix_groups=options.get("prefix_groups", 1),
    )
    return Workload(_prompts(options["random_ids"], tokenizer, vocab_size), shape, options["seed"])


def _prompts(random_ids: bool, tokenizer: Tokenizer | None, vocab_size: int | None) -> PromptSource:
    if random_ids:
        if tokenizer is None and vocab_size is None:
            raise RequestError("Random ids need a vocabulary.", hint="name an artifact beside --url")
        special = set() if tokenizer is None else _special_ids(tokenizer)
        known = 0 if tokenizer is None else tokenizer.backend.get_vocab_size()
        return RandomIds(vocab_size or known, special)
    return Words() if tokenizer is None else TextIds(tokenizer)


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    added = tokenizer.backend.get_added_tokens_decoder()
    return {number for number, token in added.items() if token.special}


def make_arrivals(options: Options) -> Arrivals:
    """When requests come."""
    rate, concurrency = options["rate"], options["concurrency"]
    if rate is None:
        if options["burst"] > 1:
            raise RequestError(
                "A burst needs a rate.", hint="--rate 4 --burst 8 brings 8 every 2 s, on average"
            )
        rate = math.inf if concurrency is None else None
    return Arrivals(rate=rate, burst=options["burst"], concurrency=concurrency)


def make_requests(workload: Workload, options: Options) -> tuple[list[Request], list[Request]]:
    """The requests that are measured, and those that warm up before them."""
    arrivals = make_arrivals(options)
    closed = Arrivals(rate=None, concurrency=1)
    warm = workload.requests(options["warmup"], closed, name="warm-up")
    if options["trace"] is None:
        return workload.requests(options["num_requests"], arrivals), warm
    timed = math.isinf(arrivals.rate or 0.0) and arrivals.concurrency is None
    trace = read_trace(options["trace"], options["num_requests"])
    return workload.replay(trace, arrivals, timed=timed), warm


def open_engine(
    model: str, options: Options, *, sequences: int, length: int | None, prefixes: bool
) -> Engine:
    """An engine of an artifact or a model.

    Args:
        sequences: that run at the same time, at most.
        length: tokens that each of them has, at most, so that the cache is as large as needed; None for half
            of the memory.
        prefixes: whether beginnings of prompts are found in the cache.
    """
    import optpipe
    from optpipe.artifact import load_artifact

    from ..engine import Engine, EngineConfig
    from ..target_options import given
    from ..tokenizer import context_length, stop_ids

    folder = open_folder(model)
    artifact = load_artifact(folder)
    tokenizer = open_tokenizer(folder)
    executor = optpipe.load(artifact, target=options["target"], **given(options))
    block = 16 if executor.cache_spec is None else executor.cache_spec.block_size
    blocks = None if length is None else sequences * (-(-length // block) + 1) + 1
    config = EngineConfig(
        max_num_seqs=sequences,
        max_num_batched_tokens=options["max_num_batched_tokens"],
        max_waiting=1 << 20,
        num_blocks=blocks,
        kv_dtype=options["kv_dtype"],
        prefix_caching=prefixes,
        watermark=0.0 if blocks is not None else 0.01,
        speculation=options["speculation"],
        draft_model=options["draft_model"],
        draft_layers=options["draft_layers"],
        request_timeout=None,
    )
    eos = stop_ids(folder, tokenizer)
    return Engine.over(
        executor,
        tokenizer,
        config=config,
        eos=eos,
        context_length=context_length(folder),
        model_name=folder.resolve().name,
    )


def open_folder(model: str) -> Path:
    """The artifact's folder; a model is optimized first, as ``optpipe serve`` does."""
    from ..shortcut import artifact_of

    return artifact_of(model, say=lambda text: click.echo(f"note: {text}", err=True))


def open_tokenizer(folder: Path) -> Tokenizer | None:
    """A folder's tokenizer, when it has one."""
    from ..tokenizer import load_tokenizer

    return load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
