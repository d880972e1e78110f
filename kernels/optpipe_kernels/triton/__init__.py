"""The dialect's operations as Triton kernels.

One op a file: the device kernel, a pure function from tensors to launches, ``shipped(key)`` with the
launches that real models make on a chip (``sm_80``, ``sm_90``, ``sm_100``), and the public op. Tensors
may lie on a GPU, on the CPU (the launches are then interpreted) or on ``meta`` (they only compile).

    launch.py      what is launched is what is compiled ahead of time
    interpret.py   launches on CPU tensors, in the process that also compiles
    tiles.py       the checked-in table of tile sizes, warps and stages
    resources.py   python -m optpipe_kernels.triton.resources: registers and shared memory of what ships
"""

from __future__ import annotations

from importlib.util import find_spec

from optpipe.errors import KernelError

if find_spec("triton") is None:
    raise KernelError(
        "the Triton kernels need the package 'triton', which is not installed",
        hint="pip install 'optpipe[cuda]'",
    )
