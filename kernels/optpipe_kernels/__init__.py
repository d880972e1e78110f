"""Kernels for the operations of the dialect.

There are none yet: every operation runs on its reference body (``optpipe/dialect``), which is slow and
right. The CPU kernels come with the CPU target, the Triton kernels with the GPU target; each will be one
operation a file and enter through the ``optpipe_kernels`` hook of :mod:`optpipe_kernels.plugin`.
"""
