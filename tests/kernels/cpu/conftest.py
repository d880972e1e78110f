"""The native library at every instruction set that this machine runs, and operands for it."""

from __future__ import annotations

import numpy as np
import pytest

from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.library import Pool
from optpipe_kernels.cpu.pack import Matrix, quantized_bytes

LEVELS = ("avx512vnni", "avxvnni", "avx2", "scalar")


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
