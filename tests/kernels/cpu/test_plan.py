"""The interpreter of plans by its C ABI alone: y = quantize(x) · W, then the argmax of y."""

import ctypes

import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu import abi
from optpipe_kernels.cpu.abi import Extent, Instruction, Operand, Tensor
from optpipe_kernels.cpu.library import DTYPES
from optpipe_kernels.cpu.pack import pack, quantized_bytes

INPUTS, OUTPUTS = 64, 40
X, WEIGHT, IDS = range(3)  # externals


def operand(place, dtype, sizes, *, index=0, unit=abi.T, offset=0):
    """Contiguous; sizes are (factor, unit)."""
    it = Operand(place=place, dtype=DTYPES[dtype], unit=unit, index=index, offset=offset, rank=len(sizes))
    step = 1
    for d in reversed(range(len(sizes))):
        it.size[d] = Extent(*sizes[d])
        it.stride[d] = Extent(step, abi.ONE)
        step *= sizes[d][0]
    return it


class Small:
    """The plan, and arrays that live as long."""

    def __init__(self, library, blob, *, offset=None):
        q = quantized_bytes(INPUTS)
        self.library, self.blob = library, blob
        tokens, arena = (1, abi.T), abi.ARENA
        offset = -(-4 * OUTPUTS // 64) * 64 if offset is None else offset
        operands = [
            operand(abi.EXTERNAL, "float32", [tokens, (INPUTS, abi.ONE)], index=X),
            operand(arena, "uint8", [tokens, (q, abi.ONE)], offset=offset),
            operand(arena, "uint8", [tokens, (q, abi.ONE)], offset=offset),
            operand(abi.EXTERNAL, "uint8", [(len(blob), abi.ONE)], index=WEIGHT),
            Operand(),
            Operand(),
            operand(arena, "float32", [tokens, (OUTPUTS, abi.ONE)]),
            operand(arena, "float32", [tokens, (OUTPUTS, abi.ONE)]),
            operand(abi.EXTERNAL, "int64", [tokens], index=IDS),
        ]
        instructions = [
            Instruction(kernel=library.number("quantize"), operands=2, first_operand=0),
            Instruction(kernel=library.number("quant_linear"), operands=5, first_operand=2, ints=5),
            Instruction(kernel=library.number("argmax"), operands=2, first_operand=7),
        ]
        arenas = (ctypes.c_int64 * abi.ARENAS)()
        arenas[abi.T] = offset + q
        self.handle = library.native.optpipe_cpu_plan_new(
            (Instruction * 3)(*instructions), 3, (Operand * 9)(*operands), 9,
            (ctypes.c_int64 * 5)(OUTPUTS, INPUTS, 4, 32, 0), 5, (ctypes.c_double * 1)(), 0, 3, arenas,
        )  # fmt: skip
        library.check(self.handle is not None)

    def run(self, x, pool, *, times=None, begin=0, end=3, tokens=None):
        tokens = len(x) if tokens is None else tokens
        self.kept = [x, self.blob, np.full(max(1, tokens), -1, np.int64)]
        pointers = (ctypes.c_void_p * 3)(*(None if it is None else it.ctypes.data for it in self.kept))
        counts = (ctypes.c_int64 * abi.UNITS)(1, tokens)
        failed = self.library.native.optpipe_cpu_run(
            self.handle, pool.handle, pointers, counts, begin, end, times
        )
        self.library.check(failed == 0)
        return self.kept[2][:tokens]

    def close(self):
        self.library.native.optpipe_cpu_plan_free(self.handle)


@pytest.fixture
def plan(library, grid):
    matrix, _ = grid(OUTPUTS, INPUTS, 4, 32, False)
    made = Small(library, pack([matrix], INPUTS, 4, 32))
    yield made
    made.close()


def one_by_one(plan, library, quantize, x):
    out, ids = np.zeros((len(x), OUTPUTS), np.float32), np.zeros(len(x), np.int64)
    library.call("quant_linear", [quantize(x), plan.blob, None, None, out], (OUTPUTS, INPUTS, 4, 32, 0))
    library.call("argmax", [out, ids])
    return out, ids


def test_runs_its_instructions_at_any_number_of_tokens(plan, library, pools, rng, quantize):
    for tokens in (1, 9, 2, 70, 0, 9):
        x = rng.normal(size=(tokens, INPUTS)).astype(np.float32)
        for pool in pools.values():
            ids = plan.run(x, pool)
            np.testing.assert_array_equal(ids, one_by_one(plan, library, quantize, x)[1])


def test_an_operand_of_the_arena_can_be_looked_at_between_instructions(plan, library, pools, rng, quantize):
    x = rng.normal(size=(3, INPUTS)).astype(np.float32)
    plan.run(x, pools[2], end=2)
    found = Tensor()
    library.check(library.native.optpipe_cpu_locate(plan.handle, 6, ctypes.byref(found)) == 0)
    assert (found.rank, *found.size[:2]) == (2, 3, OUTPUTS)
    y = np.ctypeslib.as_array((ctypes.c_float * (3 * OUTPUTS)).from_address(found.data)).reshape(3, OUTPUTS)
    expected, ids = one_by_one(plan, library, quantize, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(plan.run(x, pools[2], begin=2), ids)


def test_adds_the_time_of_each_instruction(plan, pools, rng):
    times = (ctypes.c_int64 * 3)()
    x = rng.normal(size=(50, INPUTS)).astype(np.float32)
    plan.run(x, pools[2], times=times)
    once = list(times)
    plan.run(x, pools[2], times=times)
    assert all(0 < a < b for a, b in zip(once, times, strict=True))


def test_a_kernel_that_refuses_names_itself(plan, pools, library, rng):
    x = rng.normal(size=(1, INPUTS)).astype(np.float32)
    plan.blob = np.zeros_like(plan.blob)
    with pytest.raises(KernelError, match=r"quant_linear: operand 1 (is no|must be a) packed weight"):
        plan.run(x, pools[2])


def test_data_that_is_not_there_is_an_error(plan, pools):
    with pytest.raises(KernelError, match="instruction 0, quantize: operand 0 has no data"):
        plan.run(None, pools[2], tokens=1)


def test_refuses_steps_and_plans_that_make_no_sense(plan, library, pools, rng):
    x = rng.normal(size=(1, INPUTS)).astype(np.float32)
    with pytest.raises(KernelError, match="a plan of 3 instructions cannot run from 2 to 4"):
        plan.run(x, pools[2], begin=2, end=4)
    with pytest.raises(KernelError, match="none negative"):
        plan.run(x, pools[2], tokens=-1)
    with pytest.raises(KernelError, match="operand 1 of the plan is malformed"):
        Small(library, plan.blob, offset=3)


def test_keeps_the_instruction_set_that_it_was_made_for(plan, library, pools, rng):
    x = rng.normal(size=(2, INPUTS)).astype(np.float32)
    before, level = plan.run(x, pools[2]), library.isa
    library.use_isa("scalar")
    try:
        np.testing.assert_array_equal(plan.run(x, pools[2]), before)
    finally:
        library.use_isa(level)
