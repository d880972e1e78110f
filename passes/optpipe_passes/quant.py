"""``quant``: linear layers read weights of 4 or 8 bits, or multiply rows of 8 bits.

Before: %y = aten.linear(%x, @q_proj.weight, @q_proj.bias)
After:  %y = optpipe.quant_linear(%x, @q_proj.weight_packed, @q_proj.weight_scale, @q_proj.weight_minimum,
        @q_proj.bias, bits=4, group=32)
        in the schemes ``fp8`` and ``w8a8``
        %y = optpipe.row_wise_linear(%x, @q_proj.weight, @q_proj.weight_scale, @q_proj.bias)
Guards: the weight is stored, its inputs fill whole groups (else smaller groups are tried) and words; it
        chooses no experts; no skip pattern names its module; rows of 8 bits: 16 inputs at a time, and
        nobody else reads the weight
Source: GGUF's Q4_1 (the float minimum), compressed-tensors (the symmetric form), GPTQ (``algorithm=gptq``)

A weight that arrives on a grid of the wanted width keeps it, exactly, unless an option asks for another one.
With a float minimum the embedding is packed too where that is exact, or where it is the LM head's table.
The schemes round activations too, dynamically, a scale a token; the LM head and experts keep theirs, over
weights of 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import fx

from optpipe.errors import PassError, PipelineError
from optpipe.graph.nodes import path
from optpipe.pipeline import Lossy, Pass, Stage, auto
from optpipe.pipeline.context import PassContext, operation
from optpipe.quantize.gptq import Hessian, compensate
from optpipe.quantize.pack import pack
from optpipe.quantize.rtn import joined, round_to_nearest, why_not
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import LazyWeight

from . import quant_row_wise as row_wise
from .layer_inputs import LayerInputs
from .quant_budgets import budget
from .quant_sites import Site, find_sites

CALIBRATION_WINDOWS = 16  # of 512 tokens; see optpipe.quantize.gptq for what 8 and 32 give

SLAB_BYTES = 64 << 20  # of a float32 weight at once, while rounding


class Packed(NamedTuple):
    """A quantized weight as it is stored."""

    words: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None


@dataclass(frozen=True)
class Quant(Pass):
    """Store the weights of linear layers in 4 or 8 bits.

    Attributes:
        bits: of a weight. auto: 4, and 8 in the schemes that round activations.
        group: inputs that share a scale; -1 for one scale a row. auto: what a weight arrives with, else 32
            for 4 bits and -1 for 8.
        zero: "none" for the symmetric grid, which other loaders read; "float" for a minimum a group. auto:
            "float" for 4 bits, "none" for 8.
        algorithm: "rtn" rounds to the nearest, "gptq" makes up for errors with calibration text. auto:
            "gptq" for weights that are put on 4 bits, "rtn" for 8.
        head: bits of the LM head; none leaves it alone.
        skip: patterns of modules to leave alone.
        scheme: "weights" leaves activations alone; "w8a8" multiplies rows of int8, "fp8" rows of float8 e4m3,
            with a scale a token and one an output. They have no other grid.
    """

    name: ClassVar[str] = "quant"
    stage: ClassVar[Stage] = Stage.QUANT

    bits: Literal[4, 8] | None = auto()
    group: Literal[-1, 32, 64, 128] | None = auto()
    zero: Literal["none", "float"] | None = auto()
    algorithm: Literal["rtn", "gptq"] | None = auto()
    head: Literal[8, 4] | None = 8
    skip: tuple[str, ...] = ()
    scheme: Literal["weights", "w8a8", "fp8"] = "weights"

    def __post_init__(self) -> None:
        """Raises PipelineError where a scheme is given a grid that it does not have."""
        only_one = {"bits": 8, "group": -1, "zero": "none", "algorithm": "rtn"}
        for option, only in only_one.items():
            value = getattr(self, option)
            if self.scheme != "weights" and value not in (None, only):
                raise PipelineError(
                    f"quant{{scheme={self.scheme}}} has {option}={only} and no other, got {option}={value}."
                )

    @property
    def width(self) -> int:
        """Bits of a weight."""
        return self.bits or (4 if self.scheme == "weights" else 8)

    @property
    def grid(self) -> GridInfo:
        """The grid of weights that bring none."""
        group = self.group or (32 if self.width == 4 else -1)
        return GridInfo(self.width, group, self.has_minimum)

    @property
    def has_minimum(self) -> bool:
        """Whether groups have a minimum of their own."""
        return self.zero == "float" or (self.zero is None and self.width == 4)

    @property
    def calibrated(self) -> bool:
        """Whether errors are compensated with calibration text."""
        return self.algorithm == "gptq" or (self.algorithm is None and self.width == 4)

    def contract(self) -> Lossy:
        """A divergence measured for these options, with room."""
        return Lossy(max_kld=budget(self.scheme, self.grid, calibrated=self.calibrated, head=self.head))

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        """Rewrite every site that has a grid."""
        sites = list(find_sites(graph, cx))
        if self.scheme != "weights":
            sites = list(self._row_wise(sites, cx))
        chosen = dict(self._choose(sites, cx))
        made = dict(self._calibrate(chosen, cx)) if self.calibrated else {}
        for done, (site, grid) in enumerate(chosen.items(), 1):
            cx.replace(site.node, lambda: build(cx, site, grid, made), what=describe(self, site, grid))  # noqa: B023
            cx.progress(done / len(chosen))

    def _row_wise(self, sites: Sequence[Site], cx: PassContext) -> Iterator[Site]:
        """Rewrite the layers whose activations are rounded; what remains has weights of 8 bits."""
        for site in sites:
            if site.kind != "linear" or site.head:
                yield site
            elif (reason := skipped(self, site) or row_wise.why_not(site, cx)) is not None:
                cx.missed(site.node, reason)
            else:
                dtype = row_wise.SCHEMES[self.scheme]
                what = f"{operation(site.node)} in {self.scheme}"
                cx.replace(site.node, lambda: row_wise.build(cx, site, dtype), what=what)  # noqa: B023

    def _choose(self, sites: Sequence[Site], cx: PassContext) -> Iterator[tuple[Site, GridInfo]]:
        """Every site that is rewritten, with its grid; a reason is recorded for the others."""
        head = {site.weights[0]: grid_of(self, site, cx) for site in sites if site.head}
        for site in sites:
            grid = grid_of(self, site, cx, head.get(site.weights[0]))
            if isinstance(grid, str):
                cx.missed(site.node, grid)
            else:
                yield site, grid

    def _calibrate(self, chosen: dict[Site, GridInfo], cx: PassContext) -> Iterator[tuple[str, Packed]]:
        """Compensated weights by name, of the layers that calibration helps."""
        layers = {
            site.node: site
            for site, grid in chosen.items()
            if site.kind == "linear" and grid.bits == self.width and not kept(cx, site, grid)
        }
        if not layers:
            return
        if cx.calibration is None:
            if self.algorithm is None:
                return
            raise PassError("quant{algorithm=gptq} needs calibration text, and there is none.")
        windows = cx.calibration.windows(CALIBRATION_WINDOWS)
        wanted = {node: site.inputs for node, site in layers.items()}
        seen: tuple[fx.Node, Hessian] | None = None
        for done, (node, inputs) in enumerate(LayerInputs(cx.gm, cx.weights).stream(windows, wanted), 1):
            site = layers[node]
            if seen is None or seen[0] is not site.inputs:  # q, k and v have the same inputs
                seen = site.inputs, hessian_of(inputs)
            weight = cx.weights[site.weights[0]].load().float()
            values = compensate(weight.T if site.transposed else weight, seen[1], chosen[site])
            yield site.weights[0], packed(values)
            cx.progress(done / len(layers) * 0.9)


def grid_of(
    options: Quant, site: Site, cx: PassContext, shared: GridInfo | str | None = None
) -> GridInfo | str:
    """The grid a site's weights are to lie on, or why they are left alone.

    Args:
        shared: what this function says of the LM head, when the site is the embedding with the same table.
    """
    if (reason := skipped(options, site)) is not None:
        return reason
    weights = [cx.weights[name] for name in site.weights]
    if site.kind == "embedding":
        return _embedding_grid(options, weights[0], shared)
    if site.head and options.head is None:
        return "head=none leaves the LM head alone"
    wanted = options.grid
    if site.head and options.head != options.width:
        wanted = GridInfo(8, -1, False) if options.head == 8 else GridInfo(4, 32, options.has_minimum)
    arriving = weights[0].grid
    if arriving is not None and all(weight.grid == arriving for weight in weights):
        wanted = arriving if _may_keep(options, site, arriving, wanted) else wanted
    return fitting([site.columns(weight) for weight in weights], wanted)


def skipped(options: Quant, site: Site) -> str | None:
    """The pattern that leaves a site alone, as a reason, or None."""
    named = (pattern for pattern in options.skip if fnmatchcase(path(site.node), pattern))
    return next((f"skip={pattern} leaves it alone" for pattern in named), None)


def fitting(columns: Sequence[int], wanted: GridInfo) -> GridInfo | str:
    """The wanted grid, else the same in the widest groups that the inputs fill, else why there is none."""
    smaller = [group for group in (128, 64, 32) if group < wanted.group]
    for group in (wanted.group, *smaller):
        grid = GridInfo(wanted.bits, group, wanted.has_minimum)
        if all(why_not(count, grid) is None for count in columns):
            return grid
    return next(reason for count in columns if (reason := why_not(count, wanted)) is not None)


def _embedding_grid(options: Quant, weight: LazyWeight, shared: GridInfo | str | None) -> GridInfo | str:
    if not options.has_minimum:
        return "other loaders read embeddings unpacked; zero=float packs them"
    if isinstance(shared, str):
        return "the LM head reads the same table, unpacked"
    if shared is not None:
        return shared
    if weight.grid is None:
        return "it arrives unquantized, and is not the LM head's table"
    return why_not(weight.shape[-1], weight.grid) or weight.grid


def _may_keep(options: Quant, site: Site, arriving: GridInfo, wanted: GridInfo) -> bool:
    """Whether an arriving grid is as good as the wanted one: it costs nothing, and loses nothing."""
    if site.transposed or arriving.bits != wanted.bits or (arriving.has_minimum and not options.has_minimum):
        return False
    return options.group in (None, arriving.group) or (site.head and options.head != options.width)


def describe(options: Quant, site: Site, grid: GridInfo) -> str:
    """The operation, with its grid where that is not the one asked for."""
    asked = options.grid
    unlike = [f"{grid.bits} bits"] if grid.bits != asked.bits else []
    unlike += (
        [f"groups of {grid.group}" if grid.group > 0 else "a scale a row"]
        if grid.group != asked.group
        else []
    )
    return operation(site.node) + (f" in {' and '.join(unlike)}" if unlike else "")


def kept(cx: PassContext, site: Site, grid: GridInfo) -> bool:
    """Whether a weight stays on the grid it arrives on."""
    return not site.transposed and cx.weights[site.weights[0]].grid == grid


def build(cx: PassContext, site: Site, grid: GridInfo, made: dict[str, Packed]) -> fx.Node:
    """The operation over packed weights that takes the place of a site."""
    operands = [operand for name in site.weights for operand in _operands(cx, site, name, grid, made)]
    form = {"bits": grid.bits, "group": grid.group}
    if site.kind == "embedding":
        return cx.call(torch.ops.optpipe.quant_embedding.default, site.inputs, *operands, **form)
    if site.kind == "linear":
        return cx.call(torch.ops.optpipe.quant_linear.default, site.inputs, *operands, site.bias, **form)
    rest = {key: value for key, value in site.node.kwargs.items() if key != "transposed"}
    routed, biases = site.node.args[:3], site.node.args[5:]
    return cx.call(torch.ops.optpipe.quant_moe.default, *routed, *operands, *biases, **rest, **form)


def _operands(
    cx: PassContext, site: Site, name: str, grid: GridInfo, made: dict[str, Packed]
) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Nodes of words, scale and minimum; stored when the first site that reads them is built."""
    base = stored_name(cx, site, name)
    names = [f"{base}_{part}" for part in ("packed", "scale", "minimum")]
    if names[0] not in cx.weights:
        values = made.pop(name, None) or quantize(cx.weights[name], grid, site.transposed)
        for part, tensor in zip(names, values, strict=True):
            if tensor is not None:
                cx.weights.set(part, tensor)
    nodes = [cx.get_weight(part) if part in cx.weights else None for part in names]
    assert nodes[0] is not None, f"{names[0]} must be stored"
    assert nodes[1] is not None, f"{names[1]} must be stored"
    return nodes[0], nodes[1], nodes[2]


def stored_name(cx: PassContext, site: Site, name: str) -> str:
    """What packed weights are called: after the module that reads them, when the table is not packed for all.

    A head that is tied to an embedding is untied by packing it alone: it becomes ``lm_head.weight_packed``.
    """
    readers = [node for node in cx.gm.graph.nodes if node.op == "get_attr" and node.target == name]
    users = {user for reader in readers for user in reader.users}
    if len(users) > 1 and site.head:
        own = [tied for tied in cx.weights.tied(name) if tied.startswith(f"{path(site.node)}.")]
        return own[0] if own else name
    return name


def quantize(weight: LazyWeight, grid: GridInfo, transposed: bool) -> Packed:
    """A weight on a grid: its own when it has that already, else rounded, a slab at a time."""
    if weight.grid == grid and not transposed:
        return packed(weight.blocks())
    if transposed and len(weight.shape) == 2:
        return packed(round_to_nearest(weight.load().T, grid))
    parts = []
    step = max(1, SLAB_BYTES // (4 * math.prod(weight.shape[1:])))
    for begin in range(0, weight.shape[0], step):
        rows = weight.rows(torch.arange(begin, min(begin + step, weight.shape[0])))
        parts.append(round_to_nearest(rows.transpose(-1, -2) if transposed else rows, grid))
    return packed(joined(parts))


def packed(values: QuantizedTensor) -> Packed:
    """Words and the grid they are on."""
    return Packed(pack(values.codes, values.bits), values.scale, values.minimum)


def hessian_of(inputs: Sequence[torch.Tensor]) -> Hessian:
    """Over all windows."""
    hessian = Hessian(inputs[0].shape[-1])
    for window in inputs:
        hessian.update(window)
    return hessian
