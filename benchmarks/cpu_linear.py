"""What the linear kernels of the CPU target reach, beside what the machine allows.

    python benchmarks/cpu_linear.py [--threads 2] [--isa avx2] [--bits 4] [--group 32] [--minimum]

Three limits are measured first: bytes a second read from memory and from the last-level cache, and int8
operations a second with every operand in a register. Then every product of SmolLM2-135M at 1, 4, 16 and 512
tokens: microseconds, operations, bytes of weights, and the fraction of its bound, which is the longer of
bytes / bandwidth of memory and operations / peak. Each figure is the best of many: other work on the machine
only ever adds time. The last lines add the products of a whole step up.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optpipe_kernels.cpu.abi import Tensor
from optpipe_kernels.cpu.library import Library, Operand, Pool, library, tensor
from optpipe_kernels.cpu.pack import Matrix, aligned_zeros, pack, quantized_bytes

TOKENS = (1, 4, 16, 512)
LAYERS = 30
BODY = {"qkv": (960, 576), "o": (576, 576), "gate and up": (3072, 576), "down": (576, 1536)}
HEAD = (49152, 576)
Form = tuple[int, int, bool]  # bits, group, minimum
KEPT = 64 << 20  # bytes of copies that a product walks through, so that no cache keeps its weight


@dataclass(frozen=True)
class Machine:
    """Limits: bytes a second of memory and of the last-level cache, operations a second."""

    memory: float
    cache: float
    peak: float


class Caller:
    """Kernel calls with everything but the time in them prepared."""

    def __init__(self, found: Library, pool: Pool) -> None:
        self.found, self.pool = found, pool

    def __call__(
        self, kernel: str, operands: list[Operand], ints: tuple[int, ...] = ()
    ) -> Callable[[], None]:
        native, number = self.found.native.optpipe_cpu_call, self.found.number(kernel)
        tensors = (Tensor * len(operands))(*(tensor(it) for it in operands))
        whole, none = (ctypes.c_int64 * max(1, len(ints)))(*ints), (ctypes.c_double * 1)()
        handle, count = self.pool.handle, len(operands)

        def run(kept: list[Operand] = operands) -> None:
            if native(handle, number, tensors, count, whole, len(ints), none, 0):
                self.found.check(False)

        return run


def best(runs: list[Callable[[], None]], seconds: float) -> float:
    """The shortest time of one call, in seconds, going round the runs."""
    shortest, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for run in runs:
            begin = time.perf_counter()
            run()
            shortest = min(shortest, time.perf_counter() - begin)
    return shortest


def matrix(rows: int, inputs: int, bits: int, group: int, minimum: bool) -> Matrix:
    rng = np.random.default_rng(0)
    groups = 1 if group == -1 else inputs // group
    words = rng.integers(-(2**31), 2**31, (rows, inputs * bits // 32), dtype=np.int32)
    scale = rng.uniform(0.01, 0.02, (rows, groups)).astype(np.float16)
    return Matrix(words, scale, scale if minimum else None)


def measure(call: Caller) -> Machine:
    out = np.zeros(64, np.float32)

    def bandwidth(part: int, parts: int) -> float:
        """Parts are read in turn, so that only what fits a cache together is read from one."""
        whole = np.ones(part * parts // 4, np.float32)
        runs = [call("machine_read", [it, out]) for it in np.split(whole, parts)]
        return part / best(runs, 1.0)

    repeats = 20_000
    lanes = {"avx512bf16": 16, "avx512vnni": 16, "avxvnni": 8, "avx2": 8, "scalar": 4}[call.found.isa]
    operations = call.pool.threads * repeats * 12 * lanes * 8
    peak = operations / best([call("machine_dots", [out], (repeats,))], 0.5)
    return Machine(bandwidth(8 << 20, 32), bandwidth(4 << 20, 3), peak)


def product(call: Caller, tokens: int, rows: int, inputs: int, form: Form) -> tuple[float, int]:
    """Seconds of one product over a weight that no cache keeps, and the bytes of the weight."""
    blob = pack([matrix(rows, inputs, *form)], inputs, *form[:2], pool=call.pool)
    copies = [blob]
    while len(copies) * blob.nbytes < KEPT:
        copies.append(aligned_zeros(blob.nbytes))
        copies[-1][:] = blob
    x = np.random.default_rng(1).normal(size=(tokens, inputs)).astype(np.float32)
    q = np.zeros((tokens, quantized_bytes(inputs)), np.uint8)
    call("quantize", [x, q])()
    out = np.zeros((tokens, rows), np.float32)
    runs = [call("quant_linear", [q, it, None, None, out], (rows, inputs, *form)) for it in copies]
    return best(runs, 1.5 if tokens > 16 else 0.5), blob.nbytes


def table(call: Caller, machine: Machine, form: Form) -> None:
    print(f"{'product':14}{'T':>5}{'us':>10}{'GOPS':>8}{'GB/s':>7}{'of bound':>10}")
    steps = dict.fromkeys(TOKENS, 0.0)
    bounds = dict.fromkeys(TOKENS, 0.0)
    for name, (rows, inputs, its, count) in shapes(form).items():
        for tokens in TOKENS:
            logits = min(tokens, 16) if name.startswith("head") else tokens
            seconds, size = product(call, logits, rows, inputs, its)
            operations = 2 * rows * inputs * logits
            bound = max(size / machine.memory, operations / machine.peak)
            steps[tokens] += count * seconds
            bounds[tokens] += count * bound
            print(
                f"{name:14}{logits:5}{seconds * 1e6:10.1f}{operations / seconds / 1e9:8.0f}"
                f"{size / seconds / 1e9:7.1f}{bound / seconds:10.0%}"
            )
    for tokens, seconds in steps.items():
        bound = bounds[tokens]
        print(
            f"all products of {tokens} tokens: {seconds * 1e3:.2f} ms, {tokens / seconds:.0f} tok/s;"
            f" bound {bound * 1e3:.2f} ms, {tokens / bound:.0f} tok/s"
        )


def shapes(form: Form) -> dict[str, tuple[int, int, Form, int]]:
    """Name → N, K, form, how many there are."""
    body = {name: (*shape, form, LAYERS) for name, shape in BODY.items()}
    return body | {"head, 8 bits": (*HEAD, (8, -1, False), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the linear kernels beside the machine's limits.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="instead of the widest")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--minimum", action="store_true")
    options = parser.parse_args()
    found = library()
    if options.isa:
        found.use_isa(options.isa)
    with Pool(found, options.threads) as pool:
        call = Caller(found, pool)
        machine = measure(call)
        print(
            f"{found.isa}, {options.threads} threads: memory {machine.memory / 1e9:.1f} GB/s, last-level"
            f" cache {machine.cache / 1e9:.1f} GB/s (12 MB), int8 peak {machine.peak / 1e9:.0f} GOPS"
        )
        table(call, machine, (options.bits, options.group, options.minimum))


if __name__ == "__main__":
    main()
