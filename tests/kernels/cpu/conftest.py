"""The native library at every instruction set that this machine runs, and operands for it."""

from __future__ import annotations

import numpy as np
import pytest

from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.cache import cache_bytes
from optpipe_kernels.cpu.library import Bf16, Pool
from optpipe_kernels.cpu.pack import Matrix, quantized_bytes

LEVELS = ("avx512bf16", "avx512vnni", "avxvnni", "avx2", "scalar")


@pytest.fixture(params=LEVELS)
def library(request):
    """The library at one level; the level of the session comes back afterwards."""
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    loaded = native.library()
    if request.param not in loaded.isas:
        pytest.skip(f"this processor does not run {request.param}")
    before = loaded.isa
    loaded.use_isa(request.param)
    yield loaded
    loaded.use_isa(before)


@pytest.fixture(scope="session")
def pools():
    """Pools of 1, 2 and 3 threads, by their number of threads."""
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    made = {threads: Pool(native.library(), threads) for threads in (1, 2, 3)}
    yield made
    for pool in made.values():
        pool.close()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def grid(rng):
    """(N, K, bits, group, minimum) → a matrix as artifacts store it, and its values [N, K] in float64."""

    def make(rows, inputs, bits, group, minimum, scales=np.float16):
        width = inputs if group == -1 else group
        groups = inputs // width
        codes = rng.integers(0, 1 << bits, (rows, inputs), dtype=np.uint8)
        scale = rng.uniform(0.01, 0.02, (rows, groups)).astype(scales)
        low = rng.normal(size=(rows, groups)).astype(scales) if minimum else None
        packed = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
        words = np.ascontiguousarray(packed).view(np.int32)
        whole = codes.astype(np.float64) - (0 if minimum else 1 << (bits - 1))
        values = whole * np.repeat(scale.astype(np.float64), width, 1)
        if low is not None:
            values += np.repeat(low.astype(np.float64), width, 1)
        return Matrix(words, scale, low), values

    return make


@pytest.fixture
def rounded():
    """x [T, K] → codes [T, G, 32] and scales [T, G]: rounding written down independently of the kernel."""

    def make(x):
        tokens, inputs = x.shape
        groups = -(-inputs // 32)
        padded = np.zeros((tokens, groups * 32), np.float32)
        padded[:, :inputs] = x
        padded = padded.reshape(tokens, groups, 32)
        top = np.abs(padded).max(-1)
        inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
        return np.rint(padded * inverse[..., None]), top * np.float32(1 / 127)

    return make


@pytest.fixture
def quantize(library, pools):
    """x [T, K] → its rows in the kernels' quantized form."""

    def make(x):
        q = np.zeros((x.shape[0], quantized_bytes(x.shape[1])), np.uint8)
        library.call("quantize", [x, q], pool=pools[2])
        return q

    return make


@pytest.fixture
def run(library, pools):
    """(kernel, reads, results, ints, floats) → the results, each given as its sizes, (sizes, dtype) or None

    The kernel runs on 1, 2 and 3 threads over results that begin as garbage, and the bits must agree.
    """

    def make(kernel, reads, results, ints=(), floats=()):
        found = []
        for pool in pools.values():
            outs = [_garbage(it) for it in results]
            library.call(kernel, [*reads, *outs], ints, floats, pool=pool)
            found.append(outs)
        for outs in found[1:]:
            for one, other in zip(found[0], outs, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{kernel} on other numbers of threads")
        return found[0][0] if len(results) == 1 else found[0]

    return make


def _garbage(result):
    if result is None:
        return None
    sizes, dtype = result if result and isinstance(result[0], tuple) else (result, np.float32)
    return np.full(sizes, 77, dtype)


@pytest.fixture
def randn(rng):
    """(*sizes) → standard normal float32."""
    return lambda *sizes: rng.standard_normal(sizes, dtype=np.float32)


_ITEMS = {"f32": np.float32, "bf16": np.uint16, "i8": np.int8}
_GUARD = 64  # bytes after a cache, which nobody may touch


class Caches:
    """A layer's keys and values in the layout of kv_cache.h, full of garbage (NaN where a dtype has it).

    Attributes:
        raw: the bytes of both.
        operands: both, as kernels take them; only the address and the sizes [P, block, H, D] mean anything.
    """

    def __init__(self, blocks, block, heads, width, deep, dtype):
        self.shape, self.dtype, self.raw, self.operands, self._whole = (
            (block, heads, width, deep),
            dtype,
            [],
            [],
            [],
        )
        for size, keys in ((width, True), (deep, False)):
            count = blocks * cache_bytes(block, heads, size, dtype, keys=keys)
            room = np.full(count + 64 + _GUARD, 255, np.uint8)
            begin = -room.ctypes.data % 64
            self._whole.append(room)
            self.raw.append(room[begin : begin + count])
            first = np.ndarray((1,), _ITEMS[dtype], room, begin)
            sizes = (blocks, block, heads, size)
            strides = np.empty(sizes, np.bool_).strides
            shaped = np.lib.stride_tricks.as_strided(first, sizes, [it * first.itemsize for it in strides])
            self.operands.append(Bf16(shaped) if dtype == "bf16" else shaped)

    def read(self, slots):
        """(keys [n, H, D], values [n, H, Dv]) of slots, by the layout drawn in kv_cache.h."""
        return tuple(self._read(raw, keys, slots) for raw, keys in zip(self.raw, (True, False), strict=True))

    def _read(self, raw, keys, slots):
        block, heads, width, deep = self.shape
        rows, size, whole = -(-block // 16) * 16, width if keys else deep, self.dtype == "i8"
        together = {"f32": 1, "bf16": 2, "i8": 4}[self.dtype]  # channels of a key, or slots of a value
        columns = -(-size // together) * together if keys else -(-size // 16) * 16
        each, item = cache_bytes(block, heads, size, self.dtype, keys=keys), np.dtype(_ITEMS[self.dtype])
        head = rows * columns * item.itemsize + (rows * 4 if whole else 0)
        found = np.empty((len(slots), heads, size), np.float32)
        for n, slot in enumerate(slots):
            for h in range(heads):
                begin = slot // block * each + h * head
                numbers = raw[begin : begin + rows * columns * item.itemsize].view(item)
                if whole:  # 128 is added
                    numbers = (numbers.view(np.uint8) ^ 128).view(np.int8)
                groups = (
                    numbers.reshape(columns // together, rows, together)
                    if keys
                    else numbers.reshape(-1, columns, together)
                )
                flat = groups.swapaxes(1, 2).reshape((columns, rows) if keys else (rows, columns))
                row = (flat[:, slot % block] if keys else flat[slot % block])[:size]
                if self.dtype == "bf16":
                    row = (row.astype(np.uint32) << 16).view(np.float32)
                scales = raw[begin + rows * columns * item.itemsize : begin + head].view(np.float32)
                found[n, h] = row * scales[slot % block] if self.dtype == "i8" else row
        return found

    def guards_hold(self):
        """Whether the bytes around both are as they were."""
        return all(
            (whole[: -whole.ctypes.data % 64] == 255).all()
            and (whole[-whole.ctypes.data % 64 + len(raw) :] == 255).all()
            for whole, raw in zip(self._whole, self.raw, strict=True)
        )


@pytest.fixture
def caches():
    """(blocks, block, heads, width, value width, dtype) → the caches of a layer."""
    return Caches
