"""Everything about a GPU in one command, in under nine minutes.

    python -m benchmarks.gpu [--only PART]… [--artifact DIR] [--output FILE]
    python -m benchmarks.gpu --dry-run        every part on the interpreter with tiny sizes: no figure counts

Parts, each of which runs alone:

    tests       the kernels' tests that need a GPU (bf16 against float64, captured steps)
    autotune    the fastest tiles into the table of this GPU
    attention   decode and prefill beside SDPA and flex_attention
    linears     W4A16, W8A16, dense and row-wise layers beside cuBLAS and torch's int4
    model       an 8B shape with random weights, B = 1, 8, 64, 256, in 16, 8 and 4 bits; a compiled loop
    parity      greedy tokens of a small model beside the reference on the CPU

Nothing is downloaded and nothing of the card's settings is touched. The page goes to
``benchmarks/results/<gpu>.md``; a dry run prints it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cases import Place, run_case
from .machine import facts, place, slug

RESULTS = Path(__file__).parents[1] / "results"
ARTIFACT = Path("build/smollm2")
PARTS = ("tests", "autotune", "attention", "linears", "model", "parity")
SECONDS = {"tests": 120, "autotune": 60}  # that a part may take, where it can stop


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU's interpreter")
    parser.add_argument(
        "--artifact", type=Path, help=f"of a small model, for parity  [{ARTIFACT} if it is there]"
    )
    parser.add_argument("--output", type=Path, help="where the page goes")
    options = parser.parse_args()
    where = _place(options.dry_run)
    if where is None:
        print("there is no GPU here: --dry-run walks every part without one", file=sys.stderr)
        return 1
    known = facts(where)
    found: dict[str, Any] = {}
    for part in options.only or PARTS:
        begun = time.perf_counter()
        print(f"{part} …", file=sys.stderr)
        found[part] = _RUN[part](where, options)
        print(f"{part}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    from .report import page

    text = page(known, found, " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]), dry=where.dry)
    if not where.dry:
        target = options.output or RESULTS / f"{slug(known['gpu'])}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        print(f"wrote {target}", file=sys.stderr)
    print(text)
    return 0


def _place(dry: bool) -> Place | None:
    import torch

    return place(dry=dry) if dry or torch.cuda.is_available() else None


def _tests(where: Place, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "gpu"]
    command += ["tests/kernels/triton", "tests/kernels/cuda", *(["--collect-only"] if where.dry else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS["tests"])
    except subprocess.TimeoutExpired:
        return {"tests": f"not over after {SECONDS['tests']} s"}
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "tests": lines[-1] if lines else "nothing",
        **{f"{i}": line for i, line in enumerate(failed[:20])},
    }


def _autotune(where: Place, options: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    from optpipe_kernels.triton import tiles

    from .autotune import tune

    if not where.dry:
        changed = tune(where, SECONDS["autotune"])
        for cached in (tiles._cuda_key, tiles._rows):  # the parts after this one take what was found
            cached.cache_clear()
        return {f"rows changed, {name}": count for name, count in changed.items()}
    with tempfile.TemporaryDirectory() as folder:
        return dict(tune(where, SECONDS["autotune"], Path(folder)))


def _cases(module: str) -> Callable[[Place, argparse.Namespace], Any]:
    def run(where: Place, options: argparse.Namespace) -> Any:
        import importlib

        found = importlib.import_module(f".{module}", __package__)
        return [run_case(case, where) for case in found.cases(where)]

    return run


def _model(where: Place, options: argparse.Namespace) -> Any:
    from .end_to_end import rows

    return list(rows(where))


def _parity(where: Place, options: argparse.Namespace) -> dict[str, Any]:
    from .parity import parity

    folder = options.artifact or (ARTIFACT if ARTIFACT.is_dir() and not where.dry else None)
    return parity(where, folder)


_RUN: dict[str, Callable[[Place, argparse.Namespace], Any]] = {
    "tests": _tests,
    "autotune": _autotune,
    "attention": _cases("attention"),
    "linears": _cases("linears"),
    "model": _model,
    "parity": _parity,
}

if __name__ == "__main__":
    sys.exit(main())
