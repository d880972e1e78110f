"""What this room provides to optpipe: no kernels yet, and so an empty list rather than a false one."""

from __future__ import annotations

from collections.abc import Iterable

from optpipe.plugins import hookimpl
from optpipe.plugins.hookspecs import KernelEntry


@hookimpl
def optpipe_kernels() -> Iterable[KernelEntry]:
    """Provide the kernel families of this package."""
    return []
