"""What ships, compiled ahead of time for every chip, without a GPU.

``make test`` compiles what is heaviest and one launch of every other op, and prints their table; the slow
tests compile everything. ``benchmarks/results/kernels.md`` has the table of all, as they ship now:

    python -m optpipe_kernels.triton.resources --jobs 2 --page benchmarks/results/kernels.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optpipe_kernels.triton import resources, tiles
from optpipe_kernels.triton.launch import SHARED_LIMIT
from optpipe_kernels.triton.resources import CHIPS
from optpipe_kernels.triton.tiles import CAPABILITIES, SMALLER

OPS = [module.__name__.rpartition(".")[2] for module in resources.op_modules()]
PAGE = Path(__file__).parents[3] / "benchmarks" / "results" / "kernels.md"

# The launches nearest to the limits: of these ops on every chip, of the next on an H100; of others the first.
QUICK = {
    "paged_attention": ("paged_decode 32/8x128 bfloat16", "paged_prefill 32/8x128 bfloat16"),
    "dense_linear": ("dense_linear 6144x4096 rows 256",),
    "quant_linear": ("linear w4g32m 4096x4096 M=4096", "gate_up w4g32m 28672x4096 M=32"),
}
ON_AN_H100 = {
    "experts": ("experts_gated 64",),
    "greedy_head": ("greedy_head w4, 64 rows",),
    "row_wise": ("row_wise int8 4096x4096 M=8192",),
}


def quick():
    """Entries of the fast test."""
    for op in OPS:
        for chip in CAPABILITIES if op in QUICK else (90,):
            found = resources.entries((chip,), op)
            names = {**QUICK, **ON_AN_H100}.get(op, (found[0].name,))
            yield from (next(it for it in found if it.name == name) for name in names)


def test_the_heaviest_launches_fit_their_chips(capfd):
    found = [resources.figures(it) for it in quick()]
    with capfd.disabled():  # CI shows the table
        print("", *resources.table(found), sep="\n", file=sys.stderr)
    assert set(OPS) == {it.entry.op for it in found}
    assert not [(it.entry.op, *it.cells, it.problems) for it in found if it.problems]


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("op", OPS)
def test_everything_that_ships_fits_its_chip(op, capability):
    found = [resources.figures(it) for it in resources.entries((capability,), op)]
    assert found
    assert not [(*it.cells, it.problems) for it in found if it.problems]


@pytest.mark.parametrize(
    ("chip", "op", "name"),
    [
        (86, "quant_linear", "gate_up w8g32m 28672x4096 M=64"),  # 106,496 bytes with 8.0's tile
        (89, "dense_linear", "dense_linear 6144x4096 rows 256"),
        (120, "paged_attention", "paged_prefill 8/4x256 bfloat16"),
    ],
)
def test_the_largest_launches_fit_chips_with_little_shared_memory(chip, op, name):
    found = resources.figures(next(it for it in resources.entries((chip,), op) if it.name == name))
    assert 40_000 < found.shared <= SHARED_LIMIT[chip] == 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("capability", SMALLER)
@pytest.mark.parametrize("op", OPS)
def test_everything_fits_chips_with_little_shared_memory(op, capability):
    """Nothing was tuned for them: a few launches spill some bytes."""
    found = [resources.figures(it) for it in resources.entries((capability,), op)]
    assert not [(*it.cells, it.problems) for it in found if it.shared > SHARED_LIMIT[capability]]
    assert not [(*it.cells, it.problems) for it in found if it.spills > 32]


def rows_of_the_page():
    """Op and cells of each row."""
    op, rows = "", []
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            op = line.removeprefix("## ")
        elif line.startswith("| sm_"):
            rows.append((op, *(cell.strip() for cell in line.strip("|").split("|"))))
    return rows


def test_the_table_of_all_launches_is_of_those_that_ship_and_has_no_spills():
    rows = rows_of_the_page()
    shipped = [
        (it.op, f"sm_{it.capability}", it.name, str(it.warps), str(it.stages), it.constants)
        for it in resources.entries()
    ]
    assert [(*row[:5], row[-1]) for row in rows] == shipped, "write it anew, by the command above"
    for op, chip, name, _, _, registers, spills, shared, _ in rows:
        assert 0 < int(registers) <= 255 and spills == "0", (op, chip, name)
        assert int(shared) <= SHARED_LIMIT[int(chip.removeprefix("sm_"))], (op, chip, name)


@pytest.mark.parametrize("capability", CHIPS)
def test_every_row_of_the_tile_table_is_of_a_launch_that_ships(capability, monkeypatch):
    taken = []

    def tile(constants, warps, stages):
        taken.append(id(constants))
        return real(constants, warps, stages)

    real = tiles.Tile
    monkeypatch.setattr(tiles, "Tile", tile)
    for module in resources.op_modules():
        resources.shipped(module, capability)
    for path in (tiles.TABLES / f"sm_{capability}").glob("*.json"):
        for row in tiles._rows(path.stem, f"sm_{capability}"):
            assert id(row["constants"]) in taken, f"{path.stem}: {row['when']}"
