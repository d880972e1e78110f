"""``draft``: a second, smaller model drafts greedily, for all sequences at once.

It has a cache of its own, small, whose blocks belong to whoever was asked about last. What a sequence's cache
holds is kept as token ids beside it: at the next ask the first token that differs from the text says how much
of it is still true, so rejected drafts are written over and accepted ones are not computed again. A round is
one step of the draft model: the first runs what is new of the texts, each further one a draft of each.

    cache of the draft model     t t t t t d d d     t: of the text, d: drafts that were run
    the text at the next ask     t t t t t d x       d was kept, x came instead of the next
    run in the first round                   x       from the first difference on

A text far ahead of its cache, such as a new prompt, is caught up with over several asks and has no drafts
meanwhile.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from optpipe.errors import RequestError
from optpipe.targets.protocol import Executor, StepInputs

from .proposer import Ask


class DraftProposer:
    """Drafts by another model of the same vocabulary; see :func:`check_vocabularies`.

    Args:
        executor: of the draft model's artifact, which must be paged. Its cache becomes the proposer's.
        vocab_size: of the model that is drafted for; ids beyond it, which only padding has, are not drafted.
        num_blocks: of the draft model's cache.
        max_tokens: of a step in which the draft model catches up.
        context: the most positions that the draft model takes, or None.

    Raises:
        RequestError: the draft model has no cache.
        CapacityError: there is not enough memory for its cache.
    """

    name = "draft"
    cost_unit: Literal["ask", "round"] = "round"

    def __init__(
        self,
        executor: Executor,
        *,
        vocab_size: int,
        num_blocks: int,
        max_tokens: int = 512,
        context: int | None = None,
    ) -> None:
        spec = executor.cache_spec
        if spec is None:
            raise RequestError(
                "The draft model's artifact has no cache, so it would compute every text from its start.",
                hint="optimize it with the pass `paged`",
            )
        executor.allocate(num_blocks)
        self._executor = executor
        self._vocab_size = min(vocab_size, executor.vocab_size)
        self._block_size = spec.block_size
        self._max_tokens = max_tokens
        self._context = context
        self._free = list(range(num_blocks))[::-1]
        self._texts: dict[int, _Text] = {}  # in the order in which they were asked about, longest ago first

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence has."""
        return len(self._free)

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See ``Proposer.propose``."""
        drafts: dict[int, list[int]] = {ask.sequence_id: [] for ask in asks}
        ready = self._catch_up(asks, drafts)
        while ready := [it for it in ready if self._goes_on(*it, drafts[it[0].sequence_id])]:
            work = [(text, drafts[ask.sequence_id][-1:]) for ask, text in ready]
            for (ask, _), token in zip(ready, self._run(work), strict=True):
                drafts[ask.sequence_id].append(token)
        return [self._known(drafts[ask.sequence_id][: ask.limit]) for ask in asks]

    def finish(self, sequence_id: int) -> None:
        """See ``Proposer.finish``."""
        text = self._texts.pop(sequence_id, None)
        if text is not None:
            self._free += text.blocks

    def _catch_up(self, asks: Sequence[Ask], drafts: Mapping[int, list[int]]) -> list[tuple[Ask, _Text]]:
        """Run what is new of the texts, as far as a step goes; those that are done have a draft each."""
        work: list[tuple[Ask, _Text, list[int]]] = []
        room = self._max_tokens
        asked = {ask.sequence_id for ask in asks}
        for ask in asks:
            text = self._texts.pop(ask.sequence_id, None) or _Text()
            self._texts[ask.sequence_id] = text  # the newest again
            text.cut(ask.tokens)
            end = min(len(ask.tokens), len(text.held) + room)
            if end == len(text.held):
                continue
            if not self._fits(ask, text, end + ask.limit, asked):
                self.finish(ask.sequence_id)  # others may go on with its blocks
                continue
            work.append((ask, text, list(ask.tokens[len(text.held) : end])))
            room -= end - len(text.held)
        if not work:
            return []
        found = self._run([(text, tokens) for _, text, tokens in work])
        ready = []
        for (ask, text, _), token in zip(work, found, strict=True):
            if len(text.held) == len(ask.tokens):
                drafts[ask.sequence_id].append(token)
                ready.append((ask, text))
        return ready

    def _goes_on(self, ask: Ask, text: _Text, draft: list[int]) -> bool:
        return len(draft) < ask.limit and draft[-1] < self._vocab_size

    def _known(self, draft: list[int]) -> list[int]:
        """A draft up to the first id that the other model does not have."""
        return [] if not draft else draft[:-1] if draft[-1] >= self._vocab_size else draft

    def _fits(self, ask: Ask, text: _Text, length: int, asked: set[int]) -> bool:
        """Give a text blocks for that many tokens, from those asked about longest ago if need be."""
        if self._context is not None and len(ask.tokens) + ask.limit > self._context:
            return False
        missing = -(-length // self._block_size) - len(text.blocks)
        for other in [it for it in self._texts if it not in asked]:
            if len(self._free) >= missing:
                break
            self.finish(other)
        if len(self._free) < missing:
            return False
        text.blocks += [self._free.pop() for _ in range(missing)]
        return True

    def _run(self, work: Sequence[tuple[_Text, list[int]]]) -> list[int]:
        """One step: tokens appended to what some texts' caches hold. The likeliest token behind each."""
        lengths = [len(tokens) for _, tokens in work]
        begins = [len(text.held) for text, _ in work]
        widest = max(len(text.blocks) for text, _ in work)
        tables = np.zeros((len(work), widest), dtype=np.int32)
        for row, (text, _) in enumerate(work):
            tables[row, : len(text.blocks)] = text.blocks
        owner = np.repeat(np.arange(len(work)), lengths)
        ends = np.cumsum(lengths)
        positions = np.arange(int(ends[-1])) + (np.asarray(begins) - ends + lengths)[owner]
        blocks = tables[owner, positions // self._block_size].astype(np.int64)
        step = StepInputs(
            token_ids=np.asarray([token for _, tokens in work for token in tokens], dtype=np.int64),
            positions=positions.astype(np.int64),
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            query_start=np.concatenate([[0], ends]).astype(np.int32),
            context_lens=(np.asarray(begins) + lengths).astype(np.int32),
            block_tables=tables,
            logit_rows=(ends - 1).astype(np.int64),
        )
        for text, _ in work:  # a step that fails may have written anything behind what is held
            text.agreed = min(text.agreed, len(text.held))
        result = self._executor.submit(step, logits=False).result()
        for text, tokens in work:
            text.held += tokens
        return [int(token) for token in result.token_ids]


class _Text:
    """What one sequence's part of the cache holds.

    Attributes:
        held: the tokens whose keys and values are in the cache, drafts among them.
        agreed: how many of them are known to be the text's.
        blocks: in order.
    """

    __slots__ = ("agreed", "blocks", "held")

    def __init__(self) -> None:
        self.held: list[int] = []
        self.agreed = 0
        self.blocks: list[int] = []

    def cut(self, tokens: Sequence[int]) -> None:
        """Let go of what the text has not; its last token is always run again, for what comes behind it."""
        end = min(len(self.held), len(tokens) - 1)
        agreed = min(self.agreed, end)
        while agreed < end and self.held[agreed] == tokens[agreed]:
            agreed += 1
        self.agreed = agreed
        del self.held[agreed:]


def check_vocabularies(
    target: Mapping[str, int], draft: Mapping[str, int], *, names: tuple[str, str] = ("model", "draft model")
) -> None:
    """Refuse a draft model whose token ids mean other texts.

    Args:
        target, draft: text of a token → its id.

    Raises:
        RequestError: the vocabularies differ; says how many tokens.
    """
    if target == draft:
        return
    different = len(dict(target).items() ^ dict(draft).items())
    raise RequestError(
        f"The {names[1]}'s vocabulary ({len(draft)} tokens) is not that of the {names[0]} "
        f"({len(target)} tokens): {different} entries are in one of them only.",
        hint="a draft model must have the same tokenizer, as a more strongly quantized copy of the model has",
    )
