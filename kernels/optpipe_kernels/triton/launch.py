"""``Launch``: one kernel call as a value, so that what runs is what was compiled and looked at before.

An op turns its operands into launches without touching data. A launch on CUDA tensors runs, one on CPU
tensors is interpreted, and one on tensors of any kind, ``meta`` too, compiles for a GPU that need not be
there: the signature and the alignment attributes come from the launch's own arguments, through the
code that the just-in-time compiler itself specializes with.

Sizes that change from step to step (tokens, sequences, the width of block tables) are not specialized on
(``do_not_specialize``): one compiled kernel serves them all, so nothing is compiled while a model is served
that was not when it first ran, and a row has the bits of one machine code whatever else is in its step.

Source: triton/runtime/jit.py (``JITFunction.run``), of 3.6 and of 3.9.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction, create_function_from_signature

from optpipe.errors import KernelError

from .interpret import LOCK, interpret

TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory that one block may ask for (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT: Final[Mapping[int, int]] = {
    80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024,
}  # fmt: skip
# A product and a sum become one rounding only where a kernel writes tl.fma: what the compiler would fuse
# differs from kernel to kernel, and two kernels that must agree to the bit would not.
OPTIONS: Final[Mapping[str, Any]] = {"enable_fp_fusion": False}
_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


@dataclass(frozen=True)
class Compiled:
    """A launch's machine code for one chip.

    Attributes:
        name: the kernel.
        capability: a key of ``SHARED_LIMIT``.
        registers: a thread's.
        spills: bytes of stack and local memory a thread; 0 when everything fits in registers.
        shared: bytes of shared memory a block.
        ptx: the assembly text.
        cubin: the machine code.
        ttgir: Triton's own representation, which says how tiles lie in threads.
    """

    name: str
    capability: int
    registers: int
    spills: int
    shared: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    ttgir: str = field(repr=False)

    @cached_property
    def sass(self) -> str:
        """The disassembly."""
        return _tool("cuobjdump", "-sass", cubin=self.cubin)

    @property
    def fits(self) -> bool:
        """Whether a block's shared memory is within the chip's limit."""
        return self.shared <= SHARED_LIMIT[self.capability]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel with its grid and operands.

    Attributes:
        kernel: a ``triton.jit`` function.
        grid: programs along three axes.
        args: the run-time operands in the kernel's order: tensors, ints, floats, None.
        constants: the kernel's constexpr parameters by name.
        num_warps: warps a program.
        num_stages: depth of the software pipeline of its loops.
        name: what tables call it; the kernel's own name where it is empty.
    """

    kernel: JITFunction[Any]
    grid: tuple[int, int, int]
    args: tuple[Any, ...]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    name: str = ""

    @property
    def title(self) -> str:
        """The name that reports use."""
        return self.name or str(self.kernel.__name__)

    def run(self) -> None:
        """Enqueue on the operands' GPU, or interpret on CPU tensors; an empty grid does nothing.

        Raises:
            KernelError: the operands lie on no device that can run them, or it does not fit the GPU.
        """
        if 0 in self.grid:
            return
        device = self._device()
        if device == "cpu":
            interpret(self.kernel, self.grid, self.args, self.constants)
        elif device == "cuda":
            self._launch()
        else:
            raise KernelError(f"{self.title} cannot run on tensors of device '{device}', only on cuda or cpu")

    def _launch(self) -> None:
        """Enqueue, in fewer stages where shared memory has no room: their number moves no bits."""
        keywords = self._keywords()
        for stages in range(self.num_stages, 0, -1):
            try:
                self.kernel[self.grid](*self.args, **{**keywords, "num_stages": stages})
                return
            except OutOfResources as error:
                lacking = error
        raise KernelError(
            f"{self.title} needs {lacking.required} bytes of {lacking.name}; this GPU has {lacking.limit}",
            hint="compute in 16 bits (--dtype bf16) if this is float32",
        )

    def compile(self, capability: int) -> Compiled:
        """Machine code for a chip, by the compiler of the installed Triton; needs no GPU.

        Args:
            capability: 80, 86, 89, 90, 100 or 120.
        """
        target = GPUTarget("cuda", capability, 32)
        source, options = self._source(target)
        with LOCK:  # an interpreted launch patches the language while it runs
            built = triton.compile(source, target=target, options=options)
        registers, spills = _resources(built.asm["cubin"])
        return Compiled(
            self.title, capability, registers, spills, built.metadata.shared,
            ptx=built.asm["ptx"], cubin=built.asm["cubin"],
            ttgir=str(built.asm["ttgir"]),
        )  # fmt: skip

    def code(self, capability: int) -> str:
        """Equal for launches that one compiled kernel serves: their machine code is the same."""
        source, options = self._source(GPUTarget("cuda", capability, 32))
        return f"{source.hash()} {sorted(options.items(), key=str)}"

    def _source(self, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
        """What is compiled, and how: specialized as the just-in-time compiler does it."""
        backend, keywords = make_backend(target), self._keywords()
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, extra = binder(*self.args, **keywords)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, keywords, bound, specialization, extra
        )
        return ASTSource(self.kernel, signature, constants, attributes), options.__dict__

    def _keywords(self) -> dict[str, Any]:
        return {
            **self.constants, **OPTIONS, "num_warps": self.num_warps, "num_stages": self.num_stages,
        }  # fmt: skip

    def _device(self) -> str:
        kinds = {arg.device.type for arg in self.args if isinstance(arg, torch.Tensor)}
        if len(kinds) != 1:
            raise KernelError(f"{self.title} got operands on {', '.join(sorted(kinds)) or 'no device'}")
        return kinds.pop()


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of stack and local memory a thread."""
    text = _tool("cuobjdump", "--dump-resource-usage", cubin=cubin)
    found = _USAGE.search(text)
    assert found is not None, f"cuobjdump said nothing about registers: {text!r}"
    registers, stack, _, local = (int(number) for number in found.groups())
    return registers, stack + local


def _tool(name: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([TOOLS / name, *options, file.name], capture_output=True, text=True, check=True)
    return done.stdout
