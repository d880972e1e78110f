"""Whether a graph keeps its contract, measured on the real weights.

lossless   |graph − baseline| ≤ 4 × the source's noise, on probes longer than every window, and on one at
           the model's last positions
packed     a paged graph gives each of several packed, chunked and interleaved sequences what it gives
           that sequence alone: what catches a model that mixes tokens outside attention
lossy      mean KL(source ‖ graph) ≤ the budget, on text; ≤ 4 × the budget at the model's last positions;
           both rank the same token first at enough of the tokens
exact      for small models in float64: a row does not change with the rows that are run beside it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from ..errors import ContractError
from ..evaluate import Meter, Quality
from ..targets.protocol import Ints, StepInputs
from ..targets.reference import ReferenceExecutor
from ..weights.cache import WeightCache
from ..weights.store import Weights
from .contract import Lossy
from .probes import Probe, Probes, Stored

Rows: TypeAlias = NDArray[np.floating[Any]]
Part: TypeAlias = tuple[int, int, int]

NOISE_FACTOR = 4.0
FAR_FACTOR = 4.0  # of a lossy budget: a dozen tokens scatter, and a wrong table costs nats
EXACT_TOLERANCE = 1e-9  # float64, relative to the largest logit (and 1 at least)
SPLIT_TOKENS = 256  # of the sequence that is cut shorter: attention in float64 takes memory
EXACT_BYTES = 64 << 20  # weights up to this size are checked in float64 too


@dataclass(frozen=True)
class Finding:
    """What a check measured, and the bound it had to keep."""

    check: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound was kept."""
        return self.value <= self.bound

    def __str__(self) -> str:
        return f"{self.check} {self.value:.2g} ≤ {self.bound:.2g}"


class Subject:
    """A graph with weights, as something that gives logits.

    Args:
        rounds: whether layers that round activations do. Lossless contracts are checked without: noise moves
            a rounding by a whole code, and a wrong rewrite shows all the same.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        weights: Weights,
        probes: Probes,
        cache: WeightCache,
        dtype: torch.dtype = torch.float32,
        *,
        rounds: bool = True,
    ) -> None:
        self.probes = probes
        self.executor = ReferenceExecutor(gm, weights, dtype=dtype, cache=cache, rounds=rounds)

    @property
    def paged(self) -> bool:
        """Whether sequences can be packed."""
        return self.executor.cache_spec is not None

    def logits(self, probes: Sequence[Probe]) -> Iterator[torch.Tensor]:
        """[R, V] for every probe, in order; no more of them in memory than the probes allow."""
        for group in self.probes.groups(probes):
            yield from map(
                torch.from_numpy,
                self.executor.logits_of(
                    [p.ids.numpy() for p in group], [p.rows.numpy() for p in group], [p.begin for p in group]
                ),
            )


def check_lossless(
    subject: Subject, probes: Sequence[Probe], baseline: Sequence[Stored], noise: float
) -> tuple[Finding, ...]:
    """The graph against the logits it has to reproduce: from position 0 on, and at the last positions."""
    worst: dict[str, float] = {}
    for probe, difference in zip(probes, _differences(subject, probes, baseline), strict=True):
        check = "|Δ logit, last positions|" if probe.begin else "|Δ logit|"
        worst[check] = max(worst.get(check, 0.0), difference)
    return tuple(Finding(check, value, NOISE_FACTOR * noise) for check, value in worst.items())


def check_rows(
    check: str, subject: Subject, probes: Sequence[Probe], baseline: Sequence[Stored], noise: float
) -> Finding:
    """The same over all probes together, under a name of its own."""
    return Finding(check, max(_differences(subject, probes, baseline)), NOISE_FACTOR * noise)


def _differences(subject: Subject, probes: Sequence[Probe], baseline: Sequence[Stored]) -> Iterator[float]:
    for logits, stored in zip(subject.logits(probes), baseline, strict=True):
        yield stored.difference(logits)


def check_lossy(subject: Subject, probes: list[Probe], source: list[Stored]) -> Quality:
    """The graph's divergence from the source on text."""
    meter = Meter()
    logits = subject.logits(probes)
    for probe, stored in zip(probes, source, strict=True):  # no name keeps one probe's logits for the next
        meter.update(probe.ids, [next(logits)], stored.chunks(), rows=probe.rows)
    return meter.result()


def divergence(quality: Quality, bound: Lossy) -> tuple[Finding, Finding]:
    """A measured quality against what is allowed."""
    assert quality.kld is not None, "a quality is measured against the source"
    assert quality.top1 is not None, "a quality is measured against the source"
    return (
        Finding("KL", quality.kld, bound.max_kld),
        Finding("top-1 disagreement", 1 - quality.top1, 1 - bound.top1),
    )


def check_far(
    probes: Probes, graph: Sequence[Stored], source: Sequence[Stored], bound: float
) -> tuple[Finding, ...]:
    """The divergence at the model's last positions.

    Args:
        graph, source: logits on ``probes.lossless``.
    """
    if not probes.far:
        return ()
    meter = Meter()
    for probe, mine, theirs in list(zip(probes.lossless, graph, source, strict=True))[-len(probes.far) :]:
        meter.update(probe.ids, mine.chunks(), theirs.chunks(), rows=probe.rows)
    kld = meter.result().kld
    assert kld is not None, "the probe is measured against the source"
    return (Finding("KL, last positions", kld, FAR_FACTOR * bound),)


def check_packed(subject: Subject, noise: float) -> Finding:
    """A paged graph over packed, chunked, interleaved sequences against each sequence alone."""
    worst, _ = _packed_difference(subject)
    return Finding("|Δ packed|", worst, NOISE_FACTOR * noise)


def check_exact(gm: fx.GraphModule, weights: Weights, probes: Probes) -> Finding:
    """A row against the same row in other company, in float64, where nothing but a real difference is left.

    A paged graph's sequences are packed; of another graph's the first is cut shorter.
    """
    subject = Subject(gm, weights, probes, WeightCache(EXACT_BYTES * 2), torch.float64)
    worst, largest = _packed_difference(subject) if subject.paged else _split_difference(subject)
    check = "|Δ packed, float64|" if subject.paged else "|Δ split, float64|"
    return Finding(check, worst, EXACT_TOLERANCE * max(1.0, largest))


def _split_difference(subject: Subject) -> tuple[float, float]:
    """How far rows of a sequence are from those of its beginnings alone, and the largest logit."""
    longer = subject.probes.exact[0]
    tokens = min(len(longer.ids), SPLIT_TOKENS)
    whole = Probe(longer.ids[:tokens], longer.rows[longer.rows < tokens])
    cuts = sorted({cut for cut in (tokens // 2, tokens - 3) if cut > 1})
    parts = [Probe(whole.ids[:cut], whole.rows[whole.rows < cut]) for cut in cuts]
    together, *alone = (logits.numpy() for logits in subject.logits([whole, *parts]))
    if not all(np.isfinite(logits).all() for logits in (together, *alone)):
        return float("inf"), 0.0
    worst = max(
        (float(np.abs(rows - together[: len(rows)]).max()) for rows in alone if len(rows)), default=0.0
    )
    return worst, float(np.abs(together).max())


def _packed_difference(subject: Subject) -> tuple[float, float]:
    """The largest difference and the largest logit; infinite when one is not a number."""
    sequences = subject.probes.sequences
    alone = [logits.numpy() for logits in subject.logits(sequences)]
    together = run_packed(subject.executor, sequences)
    if not all(np.isfinite(logits).all() for logits in (*alone, *together)):
        return float("inf"), 0.0
    worst = max(float(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True))
    return worst, max(float(np.abs(a).max()) for a in alone)


def run_packed(executor: ReferenceExecutor, sequences: list[Probe]) -> list[Rows]:
    """All sequences through one cache, some tokens of each a step, blocks handed out in no order.

    Returns:
        For each sequence the logits [R, V] of its rows.
    """
    assert executor.cache_spec is not None, "only a paged graph takes packed sequences"
    block = executor.cache_spec.block_size
    counts = [-(-len(probe.ids) // block) for probe in sequences]
    pool = list(np.random.default_rng(0).permutation(sum(counts) + 1))
    tables = [np.array([pool.pop() for _ in range(count)]) for count in counts]
    executor.allocate(sum(counts) + 1)
    found: list[list[Rows]] = [[] for _ in sequences]
    for parts in interleaved([len(probe.ids) for probe in sequences]):
        step = packed_step(sequences, tables, parts, block)
        if len(step.logit_rows) == 0:  # every graph is given a row to compute
            step = replace(step, logit_rows=np.zeros(1, np.int64))
        logits = executor.submit(step).result().logits
        assert logits is not None, "logits were asked for"
        at = 0
        for which, begin, end in parts:
            count = len(_wanted(sequences[which], begin, end))
            found[which].append(logits[at : at + count])
            at += count
    return [np.concatenate(parts) for parts in found]


def interleaved(lengths: list[int]) -> Iterator[list[Part]]:
    """Steps of (sequence, begin, end): chunks of uneven size, single tokens among them, in changing order."""
    cuts = [_cuts(length, which) for which, length in enumerate(lengths)]
    done = [0] * len(lengths)
    step = 0
    while any(cuts):
        parts = []
        for which, left in enumerate(cuts):
            if left and (step + which) % 4 != 3:  # now and then a sequence sits out
                end = left.pop(0)
                parts.append((which, done[which], end))
                done[which] = end
        step += 1
        if parts:
            yield parts[::-1] if step % 2 else parts


def _cuts(length: int, which: int) -> list[int]:
    """Where a sequence is cut: a long chunk, single tokens, chunks that end inside a block."""
    inside = {0: (length // 3, length // 3 + 1, length * 4 // 5), 1: (1, length // 2 + 3), 2: (length - 1,)}
    return sorted({*(cut for cut in inside[which % 3] if 0 < cut < length), length})


def _wanted(probe: Probe, begin: int, end: int) -> torch.Tensor:
    return probe.rows[(probe.rows >= begin) & (probe.rows < end)]


def packed_step(sequences: list[Probe], tables: list[Ints], parts: list[Part], block: int) -> StepInputs:
    """One step over parts (sequence, begin, end), with logits for the rows of each that lie in it."""
    positions = [np.arange(begin, end) for _, begin, end in parts]
    width = max(len(tables[which]) for which, _, _ in parts)
    padded = np.zeros((len(parts), width), np.int32)
    for row, (which, _, _) in enumerate(parts):
        padded[row, : len(tables[which])] = tables[which]
    starts = np.cumsum([0, *(end - begin for _, begin, end in parts)])
    rows = [
        _wanted(sequences[which], begin, end).numpy() - begin + start
        for (which, begin, end), start in zip(parts, starts[:-1], strict=True)
    ]
    return StepInputs(
        token_ids=np.concatenate([sequences[which].ids.numpy()[begin:end] for which, begin, end in parts]),
        positions=np.concatenate(positions),
        slot_mapping=np.concatenate(
            [
                tables[which][at // block] * block + at % block
                for (which, _, _), at in zip(parts, positions, strict=True)
            ]
        ),
        query_start=starts.astype(np.int32),
        context_lens=np.array([end for _, _, end in parts], np.int32),
        block_tables=padded,
        logit_rows=np.concatenate(rows),
    )


def require(finding: Finding, who: str) -> Finding:
    """The finding, when it holds.

    Raises:
        ContractError: names the pass and the figure.
    """
    if not finding.holds:
        raise ContractError(
            f"The pass '{who}' broke its contract: {finding.check} is {finding.value:.3g}, "
            f"and at most {finding.bound:.3g} is allowed.",
            hint="--explain lists its rewrites; --only-rewrites makes some of them alone",
        )
    return finding
