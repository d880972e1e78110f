from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from optpipe.errors import KernelError
from optpipe_kernels.triton.launch import SHARED_LIMIT, Compiled, Launch


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def row_facts(x, SCALE: tl.constexpr):
    return tl.sum(x, axis=0) * SCALE, x.max(0), tl.reduce(x, 0, product)


@triton.jit
def facts_kernel(x_ptr, y_ptr, n, bias, width: tl.constexpr, SCALE: tl.constexpr):
    at = tl.arange(0, width)
    row = tl.program_id(0)
    x = tl.load(x_ptr + row * n + at, mask=at < n, other=0.0).to(tl.float32)
    total, top, all_of_them = row_facts(x + bias, SCALE)
    count = tl.zeros([width], tl.float32)
    for _ in tl.range(row, n, tl.num_programs(0)):
        count += tl.cdiv(n, 4)
    y = total + top + all_of_them + count + tl.cumsum(x, 0)
    tl.store(y_ptr + row * n + at, y, mask=at < n)


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def outer_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at[:, None] * BLOCK + at[None, :])
    y = tl.dot(x, x)
    tl.store(y_ptr + at[:, None] * BLOCK + at[None, :], y + tl.dot(x, tl.trans(x)) * x)


def copy(x, y, n):
    return Launch(copy_kernel, (1, 1, 1), (x, y, n), {"BLOCK": 1024})


def test_runs_with_helpers_reductions_and_the_language_s_own_functions(device):
    x = torch.randn(3, 13, device=device)
    y = torch.full_like(x, torch.nan)
    Launch(facts_kernel, (3, 1, 1), (x, y, 13, 0.0), {"width": 16, "SCALE": 2.0}).run()
    counts = torch.tensor([len(range(row, 13, 3)) * 4.0 for row in range(3)], device=device)[:, None]
    full = torch.nn.functional.pad(x, (0, 3))
    product_of_row = full.prod(1, keepdim=True)
    expected = 2 * x.sum(1, keepdim=True) + full.amax(1, keepdim=True) + product_of_row + counts + x.cumsum(1)
    torch.testing.assert_close(y, expected)


def test_a_kernel_compiles_before_and_after_it_was_interpreted():
    x = torch.randn(13)
    launch = Launch(facts_kernel, (1, 1, 1), (x, torch.zeros(13), 13, 0.5), {"width": 16, "SCALE": 2.0})
    before = launch.compile(90)
    launch.run()
    assert launch.compile(90).ptx == before.ptx
    assert not triton.knobs.runtime.interpret


def test_a_failure_in_the_interpreter_leaves_the_language_as_it_was():
    bad = Launch(copy_kernel, (1, 1, 1), (torch.zeros(4), torch.zeros(4), 4), {"BLOCK": 3})
    with pytest.raises(ValueError, match="power of 2"):
        bad.run()
    assert copy(torch.zeros(4), torch.zeros(4), 4).compile(90).registers > 0


def test_an_empty_grid_does_nothing():
    y = torch.ones(4)
    Launch(copy_kernel, (0, 1, 1), (torch.zeros(4), y, 4), {"BLOCK": 4}).run()
    assert y.tolist() == [1.0] * 4


def test_operands_of_meta_or_of_two_devices_do_not_run():
    here, nowhere = torch.zeros(4), torch.zeros(4, device="meta")
    with pytest.raises(KernelError, match="cannot run on tensors of device 'meta'"):
        copy(nowhere, nowhere, 4).run()
    with pytest.raises(KernelError, match="operands on cpu, meta"):
        copy(here, nowhere, 4).run()


@pytest.mark.parametrize("capability", sorted(SHARED_LIMIT))
def test_alignment_comes_from_the_launch_s_own_operands(capability):
    x, y = torch.empty(2048, dtype=torch.float16, device="meta"), torch.empty(2048, dtype=torch.float16)
    aligned = copy(x, y.to("meta"), 2048).compile(capability)
    assert "ld.global.v4.b32" in aligned.ptx
    assert "ld.global.v4.b32" not in copy(x, y.to("meta"), 2047).compile(capability).ptx  # the mask is not
    assert "ld.global.v4.b32" not in copy(y[1:], y, 2048).compile(capability).ptx  # the pointer is not


def test_a_compiled_launch_says_what_it_takes():
    x = torch.empty(64, 64, dtype=torch.float16, device="meta")
    launch = Launch(outer_kernel, (1, 1, 1), (x, x), {"BLOCK": 64}, num_warps=4, name="outer 64")
    built = launch.compile(90)
    assert (built.name, built.capability, built.spills) == ("outer 64", 90, 0)
    assert 0 < built.registers <= 255 and built.shared >= 64 * 64 * 2 and built.fits
    assert "wgmma.mma_async" in built.ptx and "HGMMA" in built.sass


def test_spills_are_seen():
    x = torch.empty(64, 64, dtype=torch.float32, device="meta")
    built = Launch(outer_kernel, (1, 1, 1), (x, x), {"BLOCK": 64}, num_warps=1).compile(80)
    assert built.spills > 0 and re.search(r"\bSTL\b", built.sass)


class TooLarge:
    """A kernel that fits in so many stages."""

    def __init__(self, fits):
        self.fits, self.tried = fits, []

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, num_stages, **keywords):
        self.tried.append(num_stages)
        if num_stages > self.fits:
            raise OutOfResources(1000 * num_stages, 900, "shared memory")


def test_a_launch_takes_fewer_stages_where_shared_memory_has_no_room(monkeypatch):
    monkeypatch.setattr(Launch, "_device", lambda self: "cuda")
    kernel = TooLarge(fits=2)
    Launch(kernel, (1, 1, 1), (), {}, num_stages=4, name="large").run()
    assert kernel.tried == [4, 3, 2]
    with pytest.raises(KernelError, match="large needs 1000 bytes of shared memory; this GPU has 900"):
        Launch(TooLarge(fits=0), (1, 1, 1), (), {}, num_stages=2, name="large").run()


def test_too_much_shared_memory_is_seen():
    built = Compiled("x", 80, 1, 0, 164 * 1024, "", b"", "")
    assert not built.fits
    assert Compiled("x", 90, 1, 0, 164 * 1024, "", b"", "").fits
