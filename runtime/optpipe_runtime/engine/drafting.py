"""Which proposer a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import RequestError, nearest
from optpipe.targets.protocol import Executor

from ..speculation import (
    Controller,
    DraftProposer,
    LayersProposer,
    Lender,
    NgramProposer,
    Proposer,
    Speculator,
    SuffixProposer,
    check_vocabularies,
)
from ..tokenizer import Tokenizer, context_length, load_tokenizer
from .config import EngineConfig

PROPOSERS: dict[str, Callable[[], Proposer]] = {"ngram": NgramProposer, "suffix": SuffixProposer}
NAMES = ("none", *PROPOSERS, "draft", "layers")
DRAFT_CACHE = 0.25  # of the model's own cache's bytes, that a draft model's may take


def make_speculator(
    config: EngineConfig,
    eos: Collection[int],
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 0,
    cache_bytes: int = 0,
    target: str = "auto",
    executor: Executor | None = None,
    lender: Lender | None = None,
) -> Speculator | None:
    """The speculator, or None without speculation.

    Args:
        tokenizer: the model's; a draft model's must have the same vocabulary.
        vocab_size: of the model.
        cache_bytes: of the model's cache.
        target: that runs a draft model.
        executor: of the model, its cache allocated.
        lender: of that cache's blocks.

    Raises:
        RequestError: there is no proposer of that name, or the draft model or its layers are of no use.
        ArtifactError: the draft model's artifact is missing or damaged.
        CapacityError: there is no memory for the draft model.
    """
    name = config.speculation
    if name not in NAMES:
        raise RequestError(f"There is no proposer named '{name}'.", hint=nearest(name, NAMES))
    if (name == "draft") != (config.draft_model is not None):
        raise RequestError(
            f"The proposer '{name}' does not go with the draft model {config.draft_model!r}.",
            hint="speculation='draft' and draft_model=FOLDER belong together",
        )
    if name != "layers" and config.draft_layers is not None:
        raise RequestError(
            f"The proposer '{name}' does not go with draft layers.",
            hint="speculation='layers' and draft_layers=K belong together",
        )
    if name == "none":
        return None
    proposer: Proposer
    if name == "draft":
        proposer = _draft_proposer(str(config.draft_model), tokenizer, vocab_size, cache_bytes, target)
    elif name == "layers":
        assert executor is not None and lender is not None, "who drafts by layers needs the model's cache"
        proposer = LayersProposer(executor, lender, layers=config.draft_layers)
    else:
        proposer = PROPOSERS[name]()
    return Speculator(proposer, Controller(max_drafts=config.max_draft_tokens), end_tokens=eos)


def _draft_proposer(
    folder: str, tokenizer: Tokenizer | None, vocab_size: int, cache_bytes: int, target: str
) -> Proposer:
    if tokenizer is None:
        raise RequestError("A draft model needs a model with a tokenizer, so that they can be compared.")
    artifact = load_artifact(folder)
    own = tokenizer.backend.get_vocab(with_added_tokens=True)
    check_vocabularies(own, load_tokenizer(artifact.path).backend.get_vocab(with_added_tokens=True))
    executor: Executor = optpipe.load(artifact, target=target)
    blocks = max(1, int(DRAFT_CACHE * cache_bytes) // executor.block_bytes()) if executor.cache_spec else 0
    return DraftProposer(
        executor, vocab_size=vocab_size, num_blocks=blocks, context=context_length(artifact.path)
    )
