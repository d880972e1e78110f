"""``balance-channels``: where much flows weights are made larger, so that quantization spares them.

Before: %x = optpipe.rms_norm(%h, @norm); %q = aten.linear(%x, @q); %k = aten.linear(%x, @k)
After:  the same graph, with @norm / s and @q · s, @k · s                   s: a power of two for each channel
        likewise between optpipe.gated_act(%gate, aten.linear(%h, @up)) and the linear that reads it
Guards: everything that reads the channels is a linear; the weights are read nowhere else, came on no grid,
        and the products are exact; the norm multiplies with its weight (and not with 1 + weight)
Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization"
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx

from optpipe.dialect import OPS
from optpipe.pipeline import Contract, Lossless, Pass, Stage
from optpipe.pipeline.context import PassContext
from optpipe.weights.grid import GridInfo
from optpipe_passes.layer_inputs import LayerInputs

from .scales import best_scale

LINEAR = torch.ops.aten.linear.default
RMS_NORM, ADD_RMS_NORM, GATED_ACT = (OPS[it].overload for it in ("rms_norm", "add_rms_norm", "gated_act"))


class Channels(NamedTuple):
    """K channels between the weight that they leave and the linears that read them.

    Attributes:
        values: [T, K], what flows.
        source: the weight node whose first dimension is the channels: [K] of a norm, [K, …] of a linear.
        readers: linears with weights [N, K].
    """

    values: fx.Node
    source: fx.Node
    readers: tuple[fx.Node, ...]

    @property
    def place(self) -> fx.Node:
        """The operation that the channels come from, for remarks."""
        origin = self.values.args[0] if self.values.target == operator.getitem else self.values
        assert isinstance(origin, fx.Node), f"{self.values = } must come from an operation"
        return origin

    @property
    def weights(self) -> tuple[fx.Node, ...]:
        """The weight nodes that the readers multiply with."""
        return tuple(reader.args[1] for reader in self.readers if isinstance(reader.args[1], fx.Node))


def find_channels(graph: fx.Graph) -> Iterator[Channels]:
    """Every place whose channels end in linears, and start in a weight that can take the inverse scale."""
    for node in graph.nodes:
        readers = tuple(node.users)
        if readers and all(it.target == LINEAR and it.args[0] is node for it in readers):
            source = source_of(node)
            if source is not None:
                yield Channels(node, source, readers)


def source_of(node: fx.Node) -> fx.Node | None:
    """The weight that scales each of the channels of ``node`` where they begin, or None."""
    origin: Any = node.args[0] if node.target == operator.getitem and node.args[1] == 0 else node
    weight: Any = None
    if node.target == RMS_NORM:
        weight = origin.args[1]
    elif origin is not node and origin.target == ADD_RMS_NORM:
        weight = origin.args[2]
    elif node.target == GATED_ACT:
        up: Any = node.args[1]
        plain = isinstance(up, fx.Node) and up.target == LINEAR and len(up.args) == 2 and len(up.users) == 1
        weight = up.args[1] if plain else None
    is_weight = isinstance(weight, fx.Node) and weight.op == "get_attr"
    return weight if is_weight and not origin.kwargs.get("unit_offset") else None


def why_not(found: Channels, grid: GridInfo, cx: PassContext) -> str | None:
    """The reason to leave channels alone, or None."""
    nodes = (found.source, *found.weights)
    stored = [cx.weight(node) for node in nodes]
    if any(len(node.users) > 1 for node in nodes):
        return "a weight is read elsewhere too"
    for weight in stored:
        if weight is None:
            return "a linear multiplies with something that is no weight"
        if weight.grid is not None:
            return "a weight came on a grid, which scaling would lose; keep_grids=false lets go of it"
    width = found.values.meta["val"].shape[-1]
    return f"{width} channels do not fill groups of {grid.group}" if width % grid.group else None


@dataclass(frozen=True)
class BalanceChannels(Pass):
    """Scale channels by what flows through them, so that quantization loses less.

    Args:
        bits: of the grid that the weights will be put on.
        group: of that grid.
        windows: how much calibration text is read, in windows of 512 tokens.
        keep_grids: leave weights alone that came quantized.
    """

    bits: int = 4
    group: int = 32
    windows: int = 4
    keep_grids: bool = True

    name: ClassVar[str] = "balance-channels"
    stage: ClassVar[Stage] = Stage.QUANT
    before: ClassVar[tuple[str, ...]] = ("quant",)
    whole: ClassVar[bool] = True

    def contract(self) -> Contract:
        """Powers of two round nothing: the logits stay as they are."""
        return Lossless()

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        """Scale every place that no guard protects; the graph stays, its weights change."""
        grid = GridInfo(self.bits, self.group, has_minimum=False)
        chosen: dict[fx.Node, Channels] = {}
        for found in find_channels(graph):
            reason = why_not(found, grid, cx)
            if reason and (self.keep_grids or "grid" not in reason):
                cx.missed(found.place, reason)
            else:
                chosen[found.readers[0]] = found
        if not chosen:
            return
        if cx.calibration is None:
            cx.missed(next(iter(chosen)), "there is no calibration text")
            return
        windows = cx.calibration.windows(self.windows)
        wanted = {reader: found.values for reader, found in chosen.items()}
        scales = {
            reader: scale_of(chosen[reader], torch.cat(inputs), grid, cx)
            for reader, inputs in LayerInputs(cx.gm, cx.weights).stream(windows, wanted)
        }
        for reader, scale in scales.items():
            rescale(chosen[reader], scale, cx)


def scale_of(found: Channels, inputs: torch.Tensor, grid: GridInfo, cx: PassContext) -> torch.Tensor:
    """The best scale [K] for one place."""
    return best_scale(inputs, torch.cat([values_of(node, cx).float() for node in found.weights]), grid)


def rescale(found: Channels, scale: torch.Tensor, cx: PassContext) -> None:
    """Put the scale into the readers' weights and its inverse into the source's, when both are exact."""
    source = values_of(found.source, cx)
    inverse = (1 / scale).reshape(-1, *[1] * (source.dim() - 1))
    new = {found.source: (source, inverse)}
    new |= {node: (values_of(node, cx), scale) for node in found.weights}
    if torch.equal(scale, torch.ones_like(scale)):
        cx.missed(found.place, "no scale is better than none")
    elif not all(exact(values, factor) for values, factor in new.values()):
        cx.missed(found.place, "a scaled weight would leave the range of its dtype")
    else:
        for node, (values, factor) in new.items():
            cx.weights.set(str(node.target), values * factor.to(values.dtype))
        cx.applied(found.place, f"scale of {len(scale)} channels")


def values_of(node: fx.Node, cx: PassContext) -> torch.Tensor:
    """A weight's values."""
    stored = cx.weight(node)
    assert stored is not None, f"{node = } was guarded"
    return stored.load()


def exact(values: torch.Tensor, factor: torch.Tensor) -> bool:
    """Whether the product rounds nothing, so that dividing gives the values back."""
    factor = factor.to(values.dtype)
    return torch.equal(values * factor / factor, values)
