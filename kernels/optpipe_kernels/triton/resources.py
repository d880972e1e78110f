"""Registers, spills and shared memory of every launch that ships.

    python -m optpipe_kernels.triton.resources [--op MODULE] [--kernel TEXT] [--chip 80|90|100] [--json]

Compiles without a GPU; stdout is the table, stderr the progress.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from .launch import Compiled, Launch
from .tiles import CAPABILITIES


def op_modules() -> list[ModuleType]:
    """The modules of this package that ship launches, by name."""
    names = [f"{__package__}.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(name) for name in sorted(names) if name != __name__]
    return [module for module in modules if hasattr(module, "shipped")]


def shipped(module: ModuleType, capability: int) -> list[Launch]:
    """What a module ships for a chip."""
    return list(module.shipped(f"sm_{capability}"))


def expected(module: ModuleType, launch: Launch, capability: int) -> tuple[str, ...]:
    """PTX that a module promises to find in a launch's code: its ``expects(launch, key)``, or its EXPECTS."""
    key = f"sm_{capability}"
    if hasattr(module, "expects"):
        return tuple(module.expects(launch, key))
    return tuple(getattr(module, "EXPECTS", {}).get(key, ()))


def compiled(
    capabilities: tuple[int, ...], op: str = "", kernel: str = ""
) -> Iterator[tuple[Launch, Compiled]]:
    """Every shipped launch of the op's module whose title contains ``kernel``, compiled."""
    for module in op_modules():
        if op not in ("", module.__name__.rpartition(".")[2]):
            continue
        for capability in capabilities:
            for launch in shipped(module, capability):
                if kernel in launch.title:
                    print(f"sm_{capability} {launch.title}", file=sys.stderr)
                    yield launch, launch.compile(capability)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--op", default="", help="only this module, paged_attention for example")
    parser.add_argument("--kernel", default="", help="only launches whose title contains this")
    parser.add_argument("--chip", type=int, choices=CAPABILITIES, action="append", help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON, a line each")
    chosen = parser.parse_args()
    chips = tuple(chosen.chip or CAPABILITIES)
    if not chosen.json:
        print(f"{'chip':7}{'launch':46}{'warps':>6}{'stages':>7}{'registers':>10}{'spills':>7}{'shared':>8}")
    for launch, built in compiled(chips, chosen.op, chosen.kernel):
        if chosen.json:  # a line each
            hidden = {"ptx", "cubin", "ttgir"}
            print(json.dumps({k: v for k, v in asdict(built).items() if k not in hidden}), flush=True)
            continue
        print(
            f"sm_{built.capability:<4}{built.name:46}{launch.num_warps:6}{launch.num_stages:7}"
            f"{built.registers:10}{built.spills:7}{built.shared:8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
