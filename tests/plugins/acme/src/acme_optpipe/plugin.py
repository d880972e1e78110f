"""One thing for every hook."""

import sys
from dataclasses import dataclass
from typing import ClassVar

from optpipe.pipeline import Lossless, Pass, Stage
from optpipe.plugins import hookimpl


@dataclass(frozen=True)
class AcmeCount(Pass):
    """Count the nodes, and change nothing."""

    loud: bool = False

    name: ClassVar[str] = "acme-count"
    stage: ClassVar[Stage] = Stage.FUSE

    def contract(self):
        return Lossless()

    def apply(self, graph, cx):
        cx.missed(next(iter(graph.nodes)), f"counted {len(graph.nodes)} nodes")


class AcmeSource:
    """``acme:PATH`` is the folder PATH."""

    name = "acme"
    rank = 50

    def claims(self, spec):
        return spec.startswith("acme:")

    def open(self, spec, options):
        from optpipe.sources.folder import FolderSource

        return FolderSource().open(spec.removeprefix("acme:"), options)


class AcmeTarget:
    """The reference target under another name."""

    name = "acme"

    def load(self, program, weights, **options):
        from optpipe.targets.reference_target import ReferenceTarget

        return ReferenceTarget().load(program, weights, **options)


class AcmeKernels:
    """Kernels that no machine can run."""

    name = "acme-kernels"
    device = "cuda"
    ops = ("rope", "rms_norm")

    def why_not(self):
        return "this machine has no such device"


@hookimpl
def optpipe_passes():
    return [AcmeCount]


@hookimpl
def optpipe_model_sources():
    return [AcmeSource()]


@hookimpl
def optpipe_targets():
    return [AcmeTarget()]


@hookimpl
def optpipe_kernels():
    return [AcmeKernels()]


@hookimpl
def optpipe_before_pass(pass_):
    print(f"before {pass_.name}", file=sys.stderr)


@hookimpl
def optpipe_after_pass(pass_, graph):
    print(f"after {pass_.name}: {len(graph.graph.nodes)} nodes", file=sys.stderr)
