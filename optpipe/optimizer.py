"""``optpipe.optimize``: a model in, a checked artifact out.

resolve ──▶ trace ──▶ check against the model itself ──▶ passes, each checked ──▶ save
"""

from __future__ import annotations

import contextlib
import difflib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PipelineError, nearest
from .pipeline.base import Pass
from .pipeline.order import expand
from .pipeline.text import parse_pipeline, print_pipeline
from .plugins import installed_plugins
from .text_file import read_text

if TYPE_CHECKING:
    from torch import fx

    from .pipeline.checks import Finding
    from .pipeline.manager import Manager, PassRecord
    from .sources.source import ModelSource
    from .tracing.trace import Traced

Progress = Callable[[str, int, int | None], None]
DEFAULT_PASSES = "paged"


@dataclass(frozen=True)
class OptimizeReport:
    """What was done.

    Attributes:
        pipeline: the full pipeline's text; empty passes of a dry run included.
        rows: one record a pass, the trace first; empty for a dry run.
        quality: divergence of the whole from the source; None when nothing lossy was measured.
        noise: the source's own float32 noise in a logit; None without verification.
        output: the artifact's folder, or None for a dry run.
        source: one line about the model.
        seconds: in all.
    """

    pipeline: str
    rows: tuple[PassRecord, ...]
    quality: Any
    noise: float | None
    output: Path | None
    source: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "pipeline": self.pipeline,
            "passes": [row.to_json() for row in self.rows],
            "quality": None if self.quality is None else self.quality.to_dict(),
            "noise": self.noise,
            "output": None if self.output is None else str(self.output),
            "source": self.source,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Printing:
    """What of the graph is shown on the way.

    Attributes:
        after: names of passes after which the graph is printed, or ("all",).
        diff: print what each pass changed.
        explain: print what each pass rewrote and what it left.
        write: takes the text.
    """

    after: tuple[str, ...] = ()
    diff: bool = False
    explain: bool = False
    write: Callable[[str], None] = print


def optimize(
    model: str | ModelSource,
    *,
    passes: str | Sequence[Pass] | None = None,
    output: str | Path | None = None,
    bare: bool = False,
    max_kld: float | None = None,
    min_top1: float | None = None,
    verify: bool = True,
    calibration: str | Path | None = None,
    only_rewrites: str | None = None,
    print_ir_after: Iterable[str] = (),
    print_ir_diff: bool = False,
    explain: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    reproducers: str | Path | None = None,
    progress: Progress | None = None,
    print_text: Callable[[str], None] = print,
) -> OptimizeReport:
    """Trace a model, rewrite it, check every rewrite, and write an artifact.

    Args:
        model: a folder, a .gguf file, ``pypi:NAME``, a hub id, or an opened source.
        passes: a pipeline's text or passes; ``paged`` alone when None, which loses nothing.
        output: the folder to write.
        bare: leave out the clean-ups and fusions that are always on.
        max_kld: accept this mean KL from the source instead of what lossy passes promise, nats.
        min_top1: accept this top-1 agreement with the source instead of what they promise, or of what
            ``max_kld`` usually means; a share of 0 to 1.
        verify: measure contracts; switched off, the artifact says so.
        calibration: a file of text for calibrated algorithms.
        only_rewrites: numbers of the rewrites to make, ``1-40,44``.
        print_ir_after: names of passes after which the graph is printed, or ``all``.
        print_ir_diff: print what each pass changed.
        explain: print what each pass rewrote and what it left, and why.
        dry_run: only work out the pipeline, and whether there is such a model as far as that can be said
            without fetching anything.
        trust_remote_code: let Python code that comes with the model run.
        reproducers: where a pass that fails leaves a folder to find out why; the system's for temporary
            files when None.
        progress: told about slow steps.
        print_text: takes what the printing options print.

    Raises:
        PipelineError: the pipeline's text is wrong.
        ModelError: the model cannot be found, read or trusted.
        TraceError: the model cannot be turned into a graph that means the same.
        PassError, ContractError: a pass failed or broke its contract; nothing is written.
        ArtifactError: the folder cannot be written.
    """
    begun = time.perf_counter()
    _check_bounds(max_kld, min_top1)
    pipeline = plan(passes, bare=bare)
    text = print_pipeline(pipeline)
    printing = Printing(_known(print_ir_after, pipeline), print_ir_diff, explain, print_text)
    numbers = None if only_rewrites is None else parse_numbers(only_rewrites)
    if dry_run:
        _check_source(model)
        return OptimizeReport(text, (), None, None, None, str(model), time.perf_counter() - begun)
    if output is None or output == "":
        raise PipelineError(
            "optimize needs a folder to write the artifact to.", hint="give output=… (or -o DIR)"
        )
    with _Run(Path(output), printing, progress or (lambda what, done, total: None)) as run:
        run.open(model, trust_remote_code)
        run.trace(verify, None if calibration is None else read_text(calibration))
        run.bound(max_kld, min_top1)
        run.manager.reproducers = None if reproducers is None else Path(reproducers)
        run.rewrite(pipeline, numbers, bare)
        run.save(text)
        return run.report(text, time.perf_counter() - begun)


def plan(passes: str | Sequence[Pass] | None, *, bare: bool = False) -> tuple[Pass, ...]:
    """The full pipeline of what a person named, in the order it runs."""
    known = {name: provided.value for name, provided in installed_plugins().passes().items()}
    if passes is None or isinstance(passes, str):
        passes = parse_pipeline(DEFAULT_PASSES if passes is None else passes, known)
    return expand(passes, known, bare=bare)


def parse_numbers(text: str) -> tuple[range, ...]:
    """Numbers and spans of numbers.

    >>> parse_numbers("1-40,44")
    (range(1, 41), range(44, 45))

    Raises:
        PipelineError: it is written otherwise.
    """
    spans = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
            raise PipelineError(f"'{part}' is not a rewrite's number.", hint="they are written like 1-40,44")
        spans.append(range(int(first), int(last if dash else first) + 1))
    return tuple(spans)


def _check_source(model: str | ModelSource) -> None:
    from .sources import check

    if isinstance(model, str):
        check(model)


def _check_bounds(max_kld: float | None, min_top1: float | None) -> None:
    if max_kld is not None and not (math.isfinite(max_kld) and max_kld > 0):
        raise PipelineError(f"max_kld must be a positive number of nats, and is {max_kld}.")
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise PipelineError(f"min_top1 must be a share from 0 to 1, and is {min_top1}.")


def _known(names: Iterable[str], pipeline: Sequence[Pass]) -> tuple[str, ...]:
    known = ["all", "trace", *(p.name for p in pipeline)]
    for name in (names := tuple(names)):
        if name not in known:
            raise PipelineError(
                f"The pipeline has no pass named '{name}' to print after.",
                hint=nearest(name, known) or f"it has {', '.join(known)}",
            )
    return names


class _Run:
    """One optimization, step by step."""

    def __init__(self, output: Path, printing: Printing, progress: Progress) -> None:
        from .artifact.folder import check_target

        check_target(output)  # before a minute of work
        self.output = output
        self.printing = printing
        self.progress = progress
        self.closing = contextlib.ExitStack()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.close()

    def open(self, model: str | ModelSource, trust_remote_code: bool) -> None:
        from .sources import resolve
        from .sources.model import empty_model

        if isinstance(model, str):
            model = resolve(model, trust_remote_code=trust_remote_code, progress=self.progress)
        self.source = model
        self.model = empty_model(model.config, trust_remote_code=trust_remote_code, code=model.code)

    def trace(self, verify: bool, calibration: str | None) -> None:
        from .pipeline.calibrate import Calibration
        from .tracing.check import check_trace, probes_for
        from .tracing.trace import trace

        begun = time.perf_counter()
        self.progress("trace", 0, None)
        traced = trace(self.model, self.source.weights)
        probes = self.closing.enter_context(probes_for(self.model, self.source, traced, calibration))
        measured, findings = (
            (None, ()) if not verify else check_trace(self.model, self.source, traced, probes)
        )
        self.manager = _manager(traced, self.source, measured, Calibration(probes))
        self.manager.watcher = self
        record = _trace_record(self.manager, findings, time.perf_counter() - begun)
        self.manager.records.append(record)
        self.progress("trace", 1, 1)
        self._print(record, None, traced.gm)

    def bound(self, max_kld: float | None, min_top1: float | None) -> None:
        if self.manager.measured is not None:
            self.manager.measured.max_kld, self.manager.measured.min_top1 = max_kld, min_top1

    def rewrite(self, pipeline: Sequence[Pass], numbers: tuple[range, ...] | None, bare: bool) -> None:
        self.manager.tidy = not bare
        self.manager.numbering.only = numbers
        self.manager.run(pipeline)
        self.manager.check_whole()

    def save(self, pipeline: str) -> None:
        from .artifact.save import Draft, save_artifact
        from .program import from_fx
        from .program.ops import dtype_name

        manager = self.manager
        stored = {name: dtype_name(weight.dtype) for name, weight in manager.weights.items()}
        quality = None if manager.quality is None else manager.quality.to_dict()
        noise = None if manager.measured is None else manager.measured.noise
        draft = Draft(
            program=from_fx(manager.gm, stored=stored),
            weights=manager.weights,
            config=self.source.config,
            files=self.source.files,
            pipeline=pipeline,
            passes=[record.to_json() for record in manager.records],
            quality={"verified": manager.measured is not None, "noise": noise, "source": quality},
            source=self.source.identity,
            model=self.model,
            checkpoint=self.source.weights,
        )
        self.progress("save", 0, None)
        save_artifact(draft, self.output)
        self.progress("save", 1, 1)

    def report(self, pipeline: str, seconds: float) -> OptimizeReport:
        manager = self.manager
        noise = None if manager.measured is None else manager.measured.noise
        return OptimizeReport(
            pipeline,
            tuple(manager.records),
            manager.quality,
            noise,
            self.output,
            self.source.description,
            seconds,
        )

    def starting(self, name: str, number: int, total: int) -> None:
        self.progress(f"passes: {name}", number, total)

    def progressed(self, name: str, fraction: float) -> None:
        self.progress(name, round(100 * fraction), 100)

    def finished(self, record: PassRecord, before: fx.GraphModule, after: fx.GraphModule) -> None:
        self._print(record, before, after)

    def _print(self, record: PassRecord, before: fx.GraphModule | None, after: fx.GraphModule) -> None:
        from .program import from_fx, print_program

        shown = self.printing
        if record.name in shown.after or "all" in shown.after:
            shown.write(f"# after {record.text}\n{print_program(from_fx(after))}")
        if shown.diff and before is not None:
            old, new = (print_program(from_fx(gm)).splitlines() for gm in (before, after))
            shown.write("\n".join(difflib.unified_diff(old, new, "before", record.name, lineterm="")))
        if shown.explain:
            for remark in record.remarks:
                number = f"#{remark.text}" if remark.kind == "applied" else remark.text
                shown.write(
                    f"{record.name}: {remark.kind} {remark.what} in {remark.where or 'the model'}: {number}"
                )


def _manager(traced: Traced, source: ModelSource, measured: Any, calibration: Any) -> Manager:
    from .pipeline.manager import Manager

    return Manager(traced.gm, traced.weights, traced.constants, source.config, measured, calibration)


def _trace_record(manager: Manager, findings: tuple[Finding, ...], seconds: float) -> PassRecord:
    from .pipeline.manager import PassRecord, size, stored_bytes

    nodes, held = size(manager.gm), stored_bytes(manager.gm, manager.weights)
    return PassRecord("trace", "trace", (), nodes, nodes, held, held, findings, None, seconds)
