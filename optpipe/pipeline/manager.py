"""Run a pipeline: each pass on a copy, verified and measured before its result is taken.

A pass works on a copy of the graph that shares its tensors and on an overlay of the weights. Only when the
graph holds together and the contract is kept do both replace what was there; a pass that fails leaves
nothing behind but a reproducer.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import fx

from ..errors import OptpipeError, PassError
from ..evaluate import Quality
from ..graph.canonical import canonicalize, eliminate_dead
from ..graph.nodes import is_call, value
from ..plugins import installed_plugins
from ..program import from_fx, print_program
from ..verifier import verify
from ..weights.cache import WeightCache
from ..weights.store import LazyWeight, Weights
from . import checks
from .base import Pass
from .calibrate import Calibration
from .checks import Finding, Subject, require
from .context import Numbering, PassContext, Remark
from .contract import Lossy
from .memory import give_back
from .probes import Probes, Stored
from .reproducer import write_reproducer
from .text import print_pass


class Watcher(Protocol):
    """Told what happens, for progress and printing."""

    def starting(self, name: str, number: int, total: int) -> None:
        """A pass is about to run."""

    def progressed(self, name: str, fraction: float) -> None:
        """A pass has done a share of its work."""

    def finished(self, record: PassRecord, before: fx.GraphModule, after: fx.GraphModule) -> None:
        """A pass has run and kept its contract."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name, text: the pass, alone and with its options.
        remarks: applied and missed rewrites.
        nodes_before, nodes_after: nodes of the graph that compute something.
        bytes_before, bytes_after: stored bytes of the weights that the graph reads.
        findings: what was measured, with its bound.
        quality: divergence from the source, for a lossy pass.
        seconds: rewriting, verifying and measuring.
    """

    name: str
    text: str
    remarks: tuple[Remark, ...]
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    findings: tuple[Finding, ...]
    quality: Quality | None
    seconds: float

    @property
    def rewrites(self) -> int:
        """Rewrites made."""
        return sum(remark.kind == "applied" for remark in self.remarks)

    @property
    def missed(self) -> int:
        """Nodes that a rewrite was considered for and left."""
        return sum(remark.kind == "missed" for remark in self.remarks)

    @property
    def error(self) -> str:
        """The figures, for a table."""
        return ", ".join(map(str, self.findings))

    def to_json(self) -> dict[str, Any]:
        """For the artifact and ``--json``."""
        return {
            "pass": self.text,
            "rewrites": self.rewrites,
            "missed": self.missed,
            "remarks": [vars(remark) for remark in self.remarks],
            "nodes": [self.nodes_before, self.nodes_after],
            "bytes": [self.bytes_before, self.bytes_after],
            "findings": [{"check": f.check, "value": f.value, "bound": f.bound} for f in self.findings],
            "quality": None if self.quality is None else self.quality.to_dict(),
            "seconds": round(self.seconds, 3),
        }


@dataclass
class Measured:
    """What contracts are measured against.

    Attributes:
        probes: the text.
        source: the source's logits on ``probes.lossless`` and on ``probes.text``.
        noise: the source's own, in a logit.
        cache: keeps weights between runs.
        max_kld: the budget that replaces every lossy pass's own, or None.
        min_top1: the top-1 agreement to keep instead of what lossy passes promise, or None.
    """

    probes: Probes
    source: tuple[list[Stored], list[Stored]]
    noise: float
    cache: WeightCache
    max_kld: float | None = None
    min_top1: float | None = None


@dataclass
class Manager:
    """Runs passes over one graph.

    Attributes:
        gm, weights, constants: the present graph, its weights, and their names that no checkpoint has.
        config: the model's config.
        measured: what to measure against; None switches measuring off.
        calibration: text for calibrated algorithms.
        numbering: of rewrites, for the whole pipeline.
        tidy: canonicalize after each pass (off in a bare pipeline).
        watcher: told what happens, or None.
        reproducers: where a failing pass leaves its reproducer; the folder of temporary files when None.
    """

    gm: fx.GraphModule
    weights: Weights
    constants: frozenset[str]
    config: dict[str, Any]
    measured: Measured | None = None
    calibration: Calibration | None = None
    numbering: Numbering = field(default_factory=Numbering)
    tidy: bool = True
    watcher: Watcher | None = None
    reproducers: Path | None = None

    def __post_init__(self) -> None:
        self.records: list[PassRecord] = []
        self._baseline = None if self.measured is None else self.measured.source[0]
        self._budget = Lossy(0.0, min_top1=1.0)
        self.quality: Quality | None = None

    def run(self, passes: Sequence[Pass]) -> None:
        """Run passes in the order given.

        Raises:
            PassError: a pass failed or left a graph that does not hold together.
            ContractError: a pass changed the numbers more than it promises.
        """
        for number, p in enumerate(passes):
            if self.watcher is not None:
                self.watcher.starting(p.name, number, len(passes))
            try:
                self._one(p)
            except Exception as error:
                folder = write_reproducer(self.gm, self.config, passes[number:], error, self.reproducers)
                left = f"a reproducer is in {folder} (--reproducers DIR leaves it elsewhere)"
                if isinstance(error, OptpipeError):
                    error.hint = "; ".join(filter(None, (error.hint, left)))
                    raise
                raise PassError(
                    f"The pass '{p.name}' failed: {type(error).__name__}: {error}",
                    hint=f"{left}; --debug shows the traceback",
                ) from error

    def _one(self, p: Pass) -> None:
        begun = time.perf_counter()
        give_back()
        gm, weights = fork(self.gm), self.weights.overlay()
        cx = PassContext(
            gm, weights, self.config, self.numbering, self.calibration, p.whole, set(self.constants)
        )
        if self.watcher is not None:
            cx.progress = functools.partial(self.watcher.progressed, p.name)
        tell("optpipe_before_pass", p, cx)
        p.apply(gm.graph, cx)
        canonicalize(gm) if self.tidy else eliminate_dead(gm.graph)
        gm.recompile()
        verify(gm, stage=p.stage)
        self._check_count(p, cx)
        give_back()
        findings, quality = self._measure(p, gm, weights, self._changed(cx))
        tell("optpipe_after_pass", p, cx)
        record = PassRecord(
            p.name, print_pass(p), tuple(cx.remarks), size(self.gm), size(gm),
            stored_bytes(self.gm, self.weights), stored_bytes(gm, weights),
            findings, quality, time.perf_counter() - begun,
        )  # fmt: skip
        self.records.append(record)
        if self.watcher is not None:
            self.watcher.finished(record, self.gm, gm)
        self.gm, self.weights, self.constants = gm, weights, frozenset(cx.constants)

    def _changed(self, cx: PassContext) -> bool:
        """Whether anything is other than it was, recorded as a rewrite or not."""
        if cx.rewrites:
            return True
        read = weights_read(cx.gm, cx.weights)
        kept = all(name in self.weights and weight is self.weights[name] for name, weight in read.items())
        return not kept or print_program(from_fx(cx.gm)) != print_program(from_fx(self.gm))

    def _check_count(self, p: Pass, cx: PassContext) -> None:
        wanted = p.expected(self.config)
        if wanted is not None and cx.rewrites < wanted and self.numbering.only is None:
            raise PassError(
                f"The pass '{p.name}' made {cx.rewrites} rewrites where the config promises {wanted}.",
                hint="--explain says what was missed and why",
            )

    def _measure(
        self, p: Pass, gm: fx.GraphModule, weights: Weights, changed: bool
    ) -> tuple[tuple[Finding, ...], Quality | None]:
        if self.measured is None or self._baseline is None or not changed:
            return (), None
        probes = self.measured.probes
        self.measured.cache.retain(weights_read(gm, weights).values())
        contract = p.contract()
        subject = Subject(gm, weights, probes, self.measured.cache, rounds=isinstance(contract, Lossy))
        if isinstance(contract, Lossy):
            return self._measure_lossy(p, contract, subject, gm, weights)
        noise = self.measured.noise
        found = checks.check_lossless(subject, probes.lossless, self._baseline, noise)
        findings = [require(finding, p.name) for finding in found]
        if subject.paged:
            findings.append(require(checks.check_packed(subject, noise), p.name))
        if stored_bytes(gm, weights) <= checks.EXACT_BYTES:
            findings.append(require(checks.check_exact(gm, weights, probes), p.name))
        return tuple(findings), None

    def _measure_lossy(
        self, p: Pass, contract: Lossy, subject: Subject, gm: fx.GraphModule, weights: Weights
    ) -> tuple[tuple[Finding, ...], Quality | None]:
        """A lossy pass may spend its budget on top of what the ones before it may have spent."""
        assert self.measured is not None, "only measured pipelines are measured"
        probes = self.measured.probes
        spent = self._budget
        self._budget = Lossy(spent.max_kld + contract.max_kld, max(0.0, spent.top1 + contract.top1 - 1))
        bound = self._bound()
        quality = checks.check_lossy(subject, probes.text, self.measured.source[1])
        findings = [require(finding, p.name) for finding in checks.divergence(quality, bound)]
        self._baseline = [probes.keep(logits) for logits in subject.logits(probes.lossless)]
        far = checks.check_far(probes, self._baseline, self.measured.source[0], bound.max_kld)
        if any(is_call(node, torch.ops.optpipe.row_wise_linear) for node in gm.graph.nodes):
            smooth = Subject(gm, weights, probes, self.measured.cache, rounds=False)
            self._baseline = [probes.keep(logits) for logits in smooth.logits(probes.lossless)]
        findings += [require(finding, p.name) for finding in far]
        self.quality = quality
        return tuple(findings), quality

    def check_whole(self) -> None:
        """Measure what the whole pipeline made against the source, once more and as it will be run."""
        if self.measured is None or self.quality is None:
            return
        give_back()
        subject = Subject(self.gm, self.weights, self.measured.probes, self.measured.cache)
        self.quality = checks.check_lossy(subject, self.measured.probes.text, self.measured.source[1])
        for finding in checks.divergence(self.quality, self._bound()):
            require(finding, "whole pipeline")

    def _bound(self) -> Lossy:
        """What the lossy passes so far may have cost together, or what the person accepts instead."""
        assert self.measured is not None, "only measured pipelines are bounded"
        max_kld, min_top1 = self.measured.max_kld, self.measured.min_top1
        bound = self._budget if max_kld is None else Lossy(max_kld)
        return bound if min_top1 is None else Lossy(bound.max_kld, min_top1)


def tell(hook: str, p: Pass, cx: PassContext) -> None:
    """Call a hook that watches passes. It is shown a copy: what it did to the graph would not be checked."""
    shown = replace(cx, gm=fork(cx.gm), weights=cx.weights.overlay())
    installed_plugins().notify(hook, pass_=p, graph=shown.gm, cx=shown)


def fork(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own over the same tensors."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, known))
    copied = fx.GraphModule(gm, graph)
    copied.meta = {name: dict(kept) if isinstance(kept, dict) else kept for name, kept in gm.meta.items()}
    return copied


def size(gm: fx.GraphModule) -> int:
    """Nodes that compute tensors: what is left when inputs, weights, sizes and items are not counted."""
    return sum(
        node.op == "call_function"
        and node.target is not operator.getitem
        and not isinstance(value(node), int | torch.SymInt)
        for node in gm.graph.nodes
    )


def stored_bytes(gm: fx.GraphModule, weights: Weights) -> int:
    """Stored bytes of the weights that the graph reads, tied ones once."""
    return sum(weight.nbytes for weight in {id(w): w for w in weights_read(gm, weights).values()}.values())


def weights_read(gm: fx.GraphModule, weights: Weights) -> dict[str, LazyWeight]:
    """The weights that the graph reads, by name."""
    names = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    return {name: weights[name] for name in names}
