"""How far a rewritten model is from its source, and how well it predicts text.

    KL          mean over tokens of KL(source ‖ rewritten), in nats, over the full vocabulary
    top-1       share of tokens at which both models rank the same token first
    perplexity  exp(mean negative log likelihood of the next token), with its standard error

A model is any callable from token ids [T] to its logits, given as consecutive chunks [r, V] that together
have T rows. Nothing here holds a whole window's logits: a vocabulary of 262,144 costs about 64 MB.

The text is the standard library's own documentation, cut into windows of 512 tokens. Whole topics belong
either to calibration or to evaluation, and a paragraph of an evaluation topic never calibrates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch

from optpipe.errors import ModelError

Model: TypeAlias = Callable[[torch.Tensor], Iterable[torch.Tensor]]
Encode: TypeAlias = Callable[[str], Sequence[int]]

WINDOW = 512  # tokens
SCRATCH_BYTES = 64 << 20
_COPIES = 6  # float32 arrays of a chunk's size alive at once: two logits, two log-probabilities, two scratch
_EVALUATION_SHARE = 4  # one topic in four


@dataclass(frozen=True)
class Quality:
    """What was measured. Without a source to compare with, the divergence figures are None.

    Attributes:
        tokens: positions measured.
        perplexity, perplexity_error: of the model, and its standard error.
        source_perplexity: of the source, on the same tokens.
        kld, kld_error, kld_median, kld_p99, kld_max: KL(source ‖ model) a token, nats.
        top1: share of tokens with the same first choice, 0 to 1.
    """

    tokens: int
    perplexity: float
    perplexity_error: float
    source_perplexity: float | None = None
    kld: float | None = None
    kld_error: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    top1: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def chunk_rows(vocabulary: int) -> int:
    """Rows of logits to work on at once so that scratch stays near ``SCRATCH_BYTES``.

    >>> chunk_rows(262_144), chunk_rows(49_152), chunk_rows(10**9)
    (10, 56, 1)
    """
    return max(1, SCRATCH_BYTES // (4 * vocabulary * _COPIES))


def rows_of(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Chunks of logits [T, V] that are in memory already."""
    yield from logits.split(chunk_rows(logits.shape[-1]))


class Meter:
    """Collects figures window by window; ``result()`` sums up.

    A token's figures are four numbers, so a meter is small however long the text.
    """

    def __init__(self) -> None:
        self._loss: list[torch.Tensor] = []
        self._source_loss: list[torch.Tensor] = []
        self._kld: list[torch.Tensor] = []
        self._agree: list[torch.Tensor] = []

    def update(
        self,
        tokens: torch.Tensor,
        logits: Iterable[torch.Tensor],
        source: Iterable[torch.Tensor] | None = None,
        *,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Add one window.

        Args:
            tokens: [T] the window's ids; the logits at position t predict tokens[t + 1].
            logits: chunks [r, V] of the model under test.
            source: chunks of the source model; they need not be cut at the same rows.
            rows: [R] ascending positions whose logits are given; None when all T are.
        """
        positions = torch.arange(len(tokens)) if rows is None else rows.cpu()
        done = 0
        for mine, theirs in _aligned(logits, source):
            following = positions[done : done + mine.shape[0]] + 1
            self._add(tokens[following[following < len(tokens)]].to(mine.device), mine, theirs)
            done += mine.shape[0]
        assert done == len(positions), f"logits have {done} rows for {len(positions)} positions"

    def _add(self, following: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor | None) -> None:
        log_q = torch.log_softmax(mine.float(), dim=-1)
        self._loss.append(_loss(log_q, following))
        if theirs is None:
            return
        log_p = torch.log_softmax(theirs.float(), dim=-1)
        self._source_loss.append(_loss(log_p, following))
        self._agree.append((theirs.argmax(-1) == mine.argmax(-1)).cpu())
        # where p is 0 its term is 0, though log p is −inf
        term = torch.sub(log_p, log_q, out=log_q).mul_(log_p.exp_()).nan_to_num_(0.0, float("inf"))
        self._kld.append(term.sum(-1).clamp_min_(0.0).double().cpu())

    def result(self) -> Quality:
        """The figures over everything added.

        Raises:
            ModelError: nothing was added, or a logit was not finite.
        """
        if not self._loss or sum(map(len, self._loss)) == 0:
            raise ModelError("There is no text to measure on.", hint="give a text of at least two tokens")
        loss = torch.cat(self._loss)
        if not bool(torch.isfinite(loss).all()):
            raise ModelError("The model's logits are not finite on the evaluation text.")
        perplexity, error = _perplexity(loss)
        count = sum(map(len, self._kld)) or len(loss)
        if not self._kld:
            return Quality(count, perplexity, error)
        kld = torch.cat(self._kld)
        return Quality(
            tokens=count,
            perplexity=perplexity,
            perplexity_error=error,
            source_perplexity=_perplexity(torch.cat(self._source_loss))[0],
            kld=float(kld.mean()),
            kld_error=float(kld.std()) / math.sqrt(len(kld)) if len(kld) > 1 else 0.0,
            kld_median=float(kld.median()),
            kld_p99=float(kld.kthvalue(math.ceil(0.99 * len(kld)))[0]),
            kld_max=float(kld.max()),
            top1=float(torch.cat(self._agree).double().mean()),
        )


def evaluate(model: Model, windows: Iterable[torch.Tensor], *, source: Model | None = None) -> Quality:
    """Measure ``model`` on ``windows``, against ``source`` where there is one."""
    meter = Meter()
    for window in windows:
        meter.update(window, model(window), None if source is None else source(window))
    return meter.result()


def windows(
    encode: Encode, text: str, *, count: int | None = None, length: int = WINDOW
) -> list[torch.Tensor]:
    """Consecutive windows [length] of the text's tokens, ``count`` of them spread evenly over it.

    A text shorter than one window becomes one short window; a rest is dropped.

    Raises:
        ModelError: the text has fewer than two tokens.
    """
    ids = torch.tensor(list(encode(text)), dtype=torch.int64)
    if len(ids) < 2:
        raise ModelError(f"The text has {len(ids)} tokens, and measuring needs at least two.")
    whole = len(ids) // length
    if whole == 0:
        return [ids]
    picked = range(whole) if count is None or count >= whole else (i * whole // count for i in range(count))
    return [ids[i * length : (i + 1) * length] for i in picked]


def evaluation_text() -> str:
    """English prose and code that calibration never sees."""
    return "\n\n".join(text for name, text in _topics() if _evaluates(name))


def calibration_text() -> str:
    """Text of the other topics, without any paragraph that evaluation has too."""
    seen = {_squeezed(part) for name, text in _topics() if _evaluates(name) for part in text.split("\n\n")}
    kept = (
        part
        for name, text in _topics()
        if not _evaluates(name)
        for part in text.split("\n\n")
        if _squeezed(part) not in seen
    )
    return "\n\n".join(kept)


def _topics() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def _evaluates(name: str) -> bool:
    names = [topic for topic, _ in _topics()]
    return names.index(name) % _EVALUATION_SHARE == 0


def _squeezed(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _loss(log_probabilities: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of the next tokens; the window's last row has none."""
    rows = log_probabilities[: len(following)]
    return -rows.gather(-1, following.unsqueeze(-1)).squeeze(-1).double().cpu()


def _perplexity(loss: torch.Tensor) -> tuple[float, float]:
    """exp of the mean, and its standard error to first order."""
    value = math.exp(min(float(loss.mean()), 700.0))
    spread = float(loss.std()) / math.sqrt(len(loss)) if len(loss) > 1 else 0.0
    return value, value * spread


def _aligned(
    first: Iterable[torch.Tensor], second: Iterable[torch.Tensor] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Both streams cut at the same rows, in pieces no larger than ``chunk_rows`` allows."""
    if second is None:
        for chunk in first:
            yield from ((piece, None) for piece in rows_of(chunk))
        return
    other = (piece for chunk in second for piece in rows_of(chunk))
    rest: torch.Tensor | None = None
    for chunk in first:
        for mine in rows_of(chunk):
            while mine.shape[0]:
                if rest is None or rest.shape[0] == 0:
                    rest = next(other)
                rows = min(mine.shape[0], rest.shape[0])
                yield mine[:rows], rest[:rows]
                mine, rest = mine[rows:], rest[rows:]
