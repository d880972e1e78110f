"""Everything about a GPU in one command, in under nine minutes.

    python -m benchmarks.gpu [--only PART]… [--artifact DIR] [--output FILE]
    python -m benchmarks.gpu --dry-run        every part on the interpreter with tiny sizes: no figure counts

Parts, each of which runs alone and ends when its time is over:

    tests       the kernels' tests that need a GPU (bf16 against float64, captured steps)
    autotune    the fastest tiles into the table of this GPU
    attention   decode and prefill beside SDPA and flex_attention
    linears     W4A16, W8A16, dense and row-wise layers beside cuBLAS and torch's int4
    model       an 8B shape with random weights, B = 1, 8, 64, 256, in 16, 8 and 4 bits; a compiled loop
    start       a process from nothing to its first tokens, and how fast weights are read
    parity      greedy tokens of a small model beside the reference on the CPU
    experts     routed experts, dense and in 4 bits
    sampling    the greedy head, draws and log-probabilities beside torch's sort
    rows        norms, rotary embedding and gated activations

Nothing is downloaded and nothing of the card's settings is touched. The page goes to
``benchmarks/results/<gpu>.md`` after every part; a dry run prints it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cases import Place, Row, reason, run_case
from .gpu_tests import gpu_tests
from .limits import OverTimeError, last, within
from .machine import facts, place, slug

RESULTS = Path(__file__).parents[1] / "results"
ARTIFACT = Path("build/smollm2")
SECONDS = {
    "tests": 105, "autotune": 75, "attention": 55, "linears": 60, "model": 100, "start": 30, "parity": 20,
    "experts": 30, "sampling": 20, "rows": 15,
}  # fmt: skip
"""What a part may take, in the order in which they run: 510 together."""
TOTAL = 530
"""What all may take: parts whose last row runs over (``limits``) take it from those behind them."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=SECONDS, help="a part; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU's interpreter")
    parser.add_argument(
        "--artifact", type=Path, help=f"of a small model, for parity  [{ARTIFACT} if it is there]"
    )
    parser.add_argument("--output", type=Path, help="where the page goes")
    options = parser.parse_args()
    with contextlib.nullcontext() if options.dry_run else last():
        return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    """Every part that is asked for, and the page → the exit status."""
    started = time.perf_counter()
    where = _place(options.dry_run)
    if where is None:
        print("there is no GPU here: --dry-run walks every part without one", file=sys.stderr)
        return 1
    known = facts(where)
    found: dict[str, Any] = {}
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    failed = False
    for part in options.only or SECONDS:
        begun = time.perf_counter()
        print(f"{part} …", file=sys.stderr)
        seconds = allowed(part, begun - started, dry=where.dry)
        try:
            if seconds <= 0:
                raise TimeoutError(f"not measured: the {TOTAL} s of all parts were over")
            with contextlib.nullcontext() if where.dry else within(seconds):
                found[part] = _RUN[part](where, options, seconds)
            failed |= where.dry and _broken(found[part])
        except Exception as error:  # the other parts still say what they have to say
            found[part], failed = {"failed": reason(error)}, True
        print(f"{part}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        _write(known, found, command, where, options.output)
    return int(failed)


def allowed(part: str, used: float, *, dry: bool = False) -> float:
    """Seconds that a part may take when so many are used; a dry run counts none."""
    return float(SECONDS[part]) if dry else min(SECONDS[part], TOTAL - used)


def _broken(part: dict[str, Any] | list[Row]) -> bool:
    """Whether a row has no figure: in a dry run each must have one."""
    return isinstance(part, list) and any(isinstance(row.ours, str) for row in part)


def _write(
    known: dict[str, Any], found: dict[str, Any], command: str, where: Place, output: Path | None
) -> None:
    """The page of what there is so far: to its file, or to stdout in a dry run."""
    from .report import page

    text = page(known, found, command, dry=where.dry)
    if where.dry and output is None:
        print(text.partition(f"## {list(found)[-1]}")[2].strip(), flush=True)
        return
    target = output or RESULTS / f"{slug(known['gpu'])}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    print(f"wrote {target}", file=sys.stderr)


def _place(dry: bool) -> Place | None:
    import torch

    return place(dry=dry) if dry or torch.cuda.is_available() else None


def _tests(where: Place, options: argparse.Namespace, seconds: float) -> dict[str, str]:
    return gpu_tests(seconds, collect_only=where.dry)


def _autotune(where: Place, options: argparse.Namespace, seconds: float) -> dict[str, str]:
    import tempfile

    from optpipe_kernels.triton import tiles

    from .autotune import tune

    if not where.dry:
        try:
            return tune(where, seconds)
        finally:
            for cached in (tiles._cuda_key, tiles._rows):  # the parts after this one take what was found
                cached.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        return tune(where, seconds, Path(folder))


def _cases(module: str) -> Callable[[Place, argparse.Namespace, float], list[Row]]:
    def run(where: Place, options: argparse.Namespace, seconds: float) -> list[Row]:
        import importlib

        found = importlib.import_module(f".{module}", __package__)
        return list(in_time((run_case(case, where) for case in found.cases(where)), seconds, dry=where.dry))

    return run


def in_time(rows: Iterator[Row], seconds: float, *, dry: bool = False) -> Iterator[Row]:
    """Rows until the time is over, and then one that says so; a dry run has all."""
    deadline = time.monotonic() + (math.inf if dry else seconds)
    try:
        for row in rows:
            yield row
            if time.monotonic() > deadline:
                break
        else:
            return
    except OverTimeError:  # while a row's operands were made
        pass
    yield Row("the rows after these", 0.0, f"not measured: {seconds:.0f} s were over", {}, None, None)


def _model(where: Place, options: argparse.Namespace, seconds: float) -> list[Row]:
    from .end_to_end import rows

    return list(in_time(rows(where), seconds, dry=where.dry))


def _start(where: Place, options: argparse.Namespace, seconds: float) -> list[Row]:
    from .start import rows

    return list(in_time(rows(where), seconds, dry=where.dry))


def _parity(where: Place, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    from .parity import parity

    folder = options.artifact or (ARTIFACT if ARTIFACT.is_dir() and not where.dry else None)
    return parity(where, folder, math.inf if where.dry else seconds)


_RUN: dict[str, Callable[[Place, argparse.Namespace, float], Any]] = {
    "tests": _tests,
    "autotune": _autotune,
    "model": _model,
    "start": _start,
    "parity": _parity,
    **{name: _cases(name) for name in ("attention", "linears", "experts", "sampling", "rows")},
}

if __name__ == "__main__":
    sys.exit(main())
