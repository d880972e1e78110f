"""Kernels for the operations of the dialect, and the targets made of them.

    cpu/      C++ behind a plain C ABI; a flat plan runs a whole step in one call
    triton/   the same operations for NVIDIA GPUs
    cuda/     the target that runs on them, its decode steps replayed from CUDA graphs

Families and targets enter through the hooks of
:mod:`optpipe_kernels.plugin`; where a kernel is missing, an operation runs on its reference body
(``optpipe/dialect``), which is slow and right.
"""
