"""Registers, spills and shared memory of every launch that ships.

    python -m optpipe_kernels.triton.resources [--op MODULE] [--kernel TEXT] [--chip N]… [--jobs N]
                                               [--json | --page FILE]

Compiles without a GPU; stdout is the table, stderr the progress; ``--page`` also writes it as Markdown. Exits
1 when a launch spills, does not fit its chip, or lacks an instruction that is expected of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import triton

from .launch import SHARED_LIMIT, Compiled, Launch
from .tiles import CAPABILITIES, SMALLER

CHIPS = (*CAPABILITIES, *SMALLER)
COLUMNS = ("chip", "launch", "warps", "stages", "registers", "spills", "shared", "constants")


@dataclass(frozen=True)
class Entry:
    """A launch that ships, and how it is asked for and compiled.

    Attributes:
        op: the module that ships it.
        capability: one of ``CHIPS``.
        index: its place in what the module ships for that chip.
        name, constants, warps, stages: of the launch.
    """

    op: str
    capability: int
    index: int
    name: str
    constants: str
    warps: int
    stages: int


@dataclass(frozen=True)
class Figures:
    """What came of compiling an entry; ``problems`` is empty where all is well."""

    entry: Entry
    registers: int
    spills: int
    shared: int
    problems: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """A row of the table, as ``COLUMNS`` has it."""
        it = self.entry
        figures = (it.warps, it.stages, self.registers, self.spills, self.shared)
        return f"sm_{it.capability}", it.name, *map(str, figures), it.constants


def op_modules() -> list[ModuleType]:
    """The modules of this package that ship launches, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [_module(name) for name in names if name != Path(__file__).stem]
    return [module for module in modules if hasattr(module, "shipped")]


def shipped(module: ModuleType, capability: int) -> list[Launch]:
    """What a module ships for a chip."""
    return list(module.shipped(f"sm_{capability}"))


def expected(module: ModuleType, launch: Launch, capability: int) -> tuple[str, ...]:
    """PTX that a module promises to find in a launch's code: its ``expects(launch, key)``."""
    return tuple(module.expects(launch, f"sm_{capability}")) if hasattr(module, "expects") else ()


def entries(capabilities: Iterable[int] = CAPABILITIES, op: str = "", kernel: str = "") -> list[Entry]:
    """What ships: of the op's module, where one is named, and whose name contains ``kernel``."""
    return [
        Entry(name, chip, at, launch.title, _constants(launch), launch.num_warps, launch.num_stages)
        for name in (module.__name__.rpartition(".")[2] for module in op_modules())
        if op in ("", name)
        for chip in capabilities
        for at, launch in enumerate(_launches(name, chip))
        if kernel in launch.title
    ]


def figures(entry: Entry) -> Figures:
    """Compile an entry, and look."""
    launch = _launches(entry.op, entry.capability)[entry.index]
    built = launch.compile(entry.capability)
    wanted = expected(_module(entry.op), launch, entry.capability)
    return Figures(entry, built.registers, built.spills, built.shared, tuple(_problems(built, wanted)))


def table(found: Iterable[Figures]) -> Iterator[str]:
    """Lines of aligned columns, the head first."""
    rows = [COLUMNS, *(it.cells for it in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for chip, name, *numbers, constants in rows:
        right = (f"{text:>{width}}" for text, width in zip(numbers, widths[2:-1], strict=True))
        yield f"{chip:{widths[0]}}  {name:{widths[1]}}  {'  '.join(right)}  {constants}"


def page(found: list[Figures], command: str) -> str:
    """The table as Markdown, one for each op."""
    wrong = sum(bool(it.problems) for it in found)
    lines = [
        "# Registers and shared memory of what ships", "",
        f"Written by `{command}`, with Triton {triton.__version__}:",
        "every configuration of the kernels, compiled ahead of time with the attributes that its launch has.",
        "Registers are a thread's, shared memory a block's in bytes, spills bytes a thread.",
        f"{len(found)} launches; with spills, too much shared memory or a missing instruction: {wrong}.",
    ]  # fmt: skip
    for op in dict.fromkeys(it.entry.op for it in found):
        lines += ["", f"## {op}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(it.cells)} |" for it in found if it.entry.op == op]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--op", default="", help="only this module, paged_attention for example")
    parser.add_argument("--kernel", default="", help="only launches whose name contains this")
    parser.add_argument("--chip", type=int, choices=CHIPS, action="append", help="default: those with tables")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile  [1]")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print JSON, a line each")
    shape.add_argument("--page", type=Path, help="also write the table here, as Markdown")
    chosen = parser.parse_args()
    found = []
    for it in _all(entries(chosen.chip or CAPABILITIES, chosen.op, chosen.kernel), chosen.jobs):
        print(f"sm_{it.entry.capability} {it.entry.name}", *it.problems, file=sys.stderr, flush=True)
        found.append(it)
        if chosen.json:
            print(json.dumps(asdict(it)), flush=True)
    if not chosen.json:
        print("\n".join(table(found)))
    if chosen.page:
        chosen.page.write_text(page(found, "python -m optpipe_kernels.triton.resources --page FILE"))
    return int(any(it.problems for it in found))


def _all(wanted: list[Entry], jobs: int) -> Iterator[Figures]:
    if jobs <= 1:
        yield from map(figures, wanted)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(figures, wanted)


def _problems(built: Compiled, wanted: tuple[str, ...]) -> Iterator[str]:
    if built.spills:
        yield f"{built.spills} bytes of spills"
    if not built.fits:
        yield f"{built.shared} bytes of shared memory, the chip has {SHARED_LIMIT[built.capability]}"
    yield from (f"no '{text}' in its code" for text in wanted if text not in built.ptx)


def _constants(launch: Launch) -> str:
    """The constexpr parameters that ask for something."""
    asked = ((name, value) for name, value in launch.constants.items() if value not in (False, None, ""))
    return " ".join(name if value is True else f"{name}={value}" for name, value in asked)


@functools.cache
def _launches(op: str, capability: int) -> list[Launch]:
    return shipped(_module(op), capability)


def _module(op: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{op}")


if __name__ == "__main__":
    sys.exit(main())
