"""What ships, compiled ahead of time for every chip, without a GPU.

``python -m optpipe_kernels.triton.resources`` prints the same launches as a table.
"""

from __future__ import annotations

from functools import cache

import pytest

from optpipe_kernels.triton import resources
from optpipe_kernels.triton.launch import SHARED_LIMIT
from optpipe_kernels.triton.tiles import CAPABILITIES

MODULES = {module.__name__.rpartition(".")[2]: module for module in resources.op_modules()}
QUICK = ("paged_attention", "rope_kv_write")  # their first launches, compiled by the fast tests too


@cache
def launches(name, capability):
    return resources.shipped(MODULES[name], capability)


def check(name, capability, launch):
    built = launch.compile(capability)
    found = f"{built.name} on sm_{capability}: {built.registers} registers, {built.spills} bytes of spills"
    assert built.spills == 0, found
    assert built.shared <= SHARED_LIMIT[capability], f"{found}, {built.shared} bytes of shared memory"
    for text in resources.expected(MODULES[name], launch, capability):
        assert text in built.ptx, f"{found}: no '{text}' in its code"


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", MODULES)
def test_everything_that_ships_fits_its_chip(name, capability):
    assert launches(name, capability)
    for launch in launches(name, capability):
        check(name, capability, launch)


@pytest.mark.parametrize("name", QUICK)
def test_the_first_launches_fit_an_h100(name):
    for launch in launches(name, 90)[:3]:
        check(name, 90, launch)
