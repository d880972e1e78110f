"""Which proposer a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

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
from .memory import DRAFT_TOKENS, MemoryPlan

PROPOSERS: dict[str, Callable[[], Proposer]] = {"ngram": NgramProposer, "suffix": SuffixProposer}
NAMES = ("none", *PROPOSERS, "draft", "layers")


@dataclass(frozen=True)
class DraftModel:
    """A second model that drafts.

    Attributes:
        executor: of its artifact, without a cache yet.
        context: positions that it takes, or None where it does not say.
    """

    executor: Executor
    context: int | None


def open_draft_model(config: EngineConfig, tokenizer: Tokenizer | None, target: str) -> DraftModel | None:
    """The draft model that a config names, or None; whatever else it says of drafts is checked too.

    Args:
        tokenizer: the model's; a draft model's must have the same vocabulary.
        target: that runs it.

    Raises:
        RequestError: there is no proposer of that name, or the draft model is of no use.
        ArtifactError: the draft model's artifact is missing or damaged.
    """
    _check(config)
    if config.draft_model is None:
        return None
    if tokenizer is None:
        raise RequestError("A draft model needs a model with a tokenizer, so that they can be compared.")
    artifact = load_artifact(config.draft_model)
    own = tokenizer.backend.get_vocab(with_added_tokens=True)
    check_vocabularies(own, load_tokenizer(artifact.path).backend.get_vocab(with_added_tokens=True))
    return DraftModel(optpipe.load(artifact, target=target), context_length(artifact.path))


def _check(config: EngineConfig) -> None:
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


def make_speculator(
    config: EngineConfig,
    eos: Collection[int],
    *,
    executor: Executor,
    lender: Lender,
    draft: DraftModel | None,
    memory: MemoryPlan,
) -> Speculator | None:
    """The speculator, or None without speculation.

    Args:
        executor: of the model, its cache allocated.
        lender: of that cache's blocks.
        draft: the draft model, where the config names one.
        memory: how memory was divided.

    Raises:
        RequestError: the draft model or the layers are of no use.
        CapacityError: there is no memory for the draft model.
    """
    name = config.speculation
    if name == "none":
        return None
    proposer: Proposer
    if draft is not None:
        proposer = DraftProposer(
            draft.executor,
            vocab_size=executor.vocab_size,
            num_blocks=0 if memory.draft is None else memory.draft.num_blocks,
            max_tokens=DRAFT_TOKENS,
            context=draft.context,
        )
    elif name == "layers":
        proposer = LayersProposer(executor, lender, layers=config.draft_layers)
    else:
        proposer = PROPOSERS[name]()
    return Speculator(proposer, Controller(max_drafts=config.max_draft_tokens), end_tokens=eos)
