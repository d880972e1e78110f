"""Run a graph on the dialect's bodies: the reference, and what every contract is measured with.

Weights come from the lazy store one node at a time and are let go after their last use, so a model that
does not fit in memory can still be checked. A dialect op runs its body, never a registered kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..dialect import body_of, quant_linear, row_wise_linear
from ..dialect.op import accumulator
from ..weights.cache import WeightCache
from ..weights.store import Weights
from . import streamed
from .nodes import args_of, aten, input_name, is_call, value


@dataclass
class Interpreter:
    """Runs one graph again and again.

    Attributes:
        gm: the graph; its get_attr nodes name entries of ``weights``.
        weights: real values.
        dtype: what the graph's float32 stands for: float32, or float64 for a check without noise.
        device: where to compute.
        cache: keeps weights in memory between runs; None reads them again every time.
        rounds: whether ``row_wise_linear`` rounds activations, as it says; without, graphs that compute the
            same give the same within float32's noise, for which a rounding is a cliff.
    """

    gm: fx.GraphModule
    weights: Weights
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: WeightCache | None = None
    rounds: bool = True

    def __post_init__(self) -> None:
        self._order = list(_in_time(self.gm.graph))
        self._inputs = [node for node in self.gm.graph.nodes if node.op == "placeholder"]
        self._deferred = {n for n in self._order if n.op == "get_attr" and self._read_by_rows(n)}
        self._bodies = {n: body_of(n.target) for n in self._order if n.op == "call_function"}
        self._done_after = _last_uses(self.gm.graph)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        """Run the graph.

        Args:
            inputs: a tensor for every placeholder, by name; caches are changed in place.

        Returns:
            What the graph returns, tensors for nodes.
        """
        return self.run_many([inputs])[0]

    @torch.no_grad()
    def run_many(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> list[Any]:
        """Run the graph on several inputs side by side, reading every weight once for all of them."""
        lanes: list[dict[fx.Node, Any]]
        lanes = [{node: self._given(node, given) for node in self._inputs} for given in inputs]
        for node in self._order:
            if node.op == "output":
                return [fx.node.map_arg(args_of(node)[0], lane.__getitem__) for lane in lanes]
            weight = self._load(node) if node.op == "get_attr" else None
            for lane in lanes:
                lane[node] = weight if node.op == "get_attr" else self._call(node, lane)
                for done in self._done_after.get(node, ()):
                    del lane[done]
        raise AssertionError("a graph ends with its output")

    def _given(self, node: fx.Node, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        given = inputs[input_name(node)]
        if node.meta.get("kind") == "cache":
            return given
        return given.to(device=self.device, dtype=self._compute_dtype(given.dtype))

    def _call(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        args: Any = fx.node.map_arg(node.args, env.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, env.__getitem__)
        table = args_of(node)[1] if is_call(node, aten.linear) else args_of(node)[0] if node.args else None
        if isinstance(table, fx.Node) and table in self._deferred:
            weight = self.weights[str(table.target)]
            if is_call(node, aten.linear):
                return streamed.linear(args[0], weight, args[2] if len(args) > 2 else None)
            return streamed.embedding(weight, args[1], self._compute_dtype(value(table).dtype))
        if self._reads_packed(node):
            return self._quant_linear(node, args, kwargs)
        if not self.rounds and is_call(node, torch.ops.optpipe.row_wise_linear):
            return row_wise_linear.smooth(*args, **kwargs)
        return self._bodies[node](*self._dtypes(args), **self._dtypes(kwargs))

    def _reads_packed(self, node: fx.Node) -> bool:
        return is_call(node, torch.ops.optpipe.quant_linear) and args_of(node)[1].op == "get_attr"

    def _quant_linear(self, node: fx.Node, args: Any, kwargs: Any) -> torch.Tensor:
        """The op's body in two halves: values, which are kept like other weights, and their product.

        A large weight goes through by rows, whether its values can be kept or not.
        """
        x, packed, scale = args[:3]
        minimum = args[3] if len(args) > 3 else kwargs.get("minimum")
        bits, wide = kwargs["bits"], accumulator(x)
        weight, how = self.weights[str(args_of(node)[1].target)], ("values", wide)
        size = packed.numel() * (32 // bits) * wide.itemsize
        large = size > streamed.STREAM_BYTES
        values = None
        if not large or (self.cache is not None and self.cache.keeps(weight, how, size)):
            make = functools.partial(quant_linear.dequantize, packed, scale, minimum, bits, wide)
            values = make() if self.cache is None else self.cache.derived(weight, how, make)
        if large:
            return streamed.quant_linear(x, packed, scale, minimum, _bias(args, kwargs), bits, values)
        assert values is not None, "small weights have values"
        return quant_linear.product(x, values, _bias(args, kwargs))

    def _load(self, node: fx.Node) -> torch.Tensor | None:
        if node in self._deferred:
            return None
        weight, want = self.weights[str(node.target)], value(node).dtype
        dtype = self._compute_dtype(want) if want.is_floating_point else None  # float8 stays what it is
        if self.cache is not None:
            return self.cache.load(weight, dtype, self.device)
        return weight.load().to(device=self.device, dtype=dtype)

    def _read_by_rows(self, node: fx.Node) -> bool:
        """Whether a weight is only looked up by rows, or too large to be held whole."""
        if self.device.type != "cpu":
            return False
        if all(is_call(user, aten.embedding) and args_of(user)[0] is node for user in node.users):
            return True
        return streamed.is_large(self.weights[str(node.target)], self.dtype) and all(
            (is_call(user, aten.linear) and args_of(user)[1] is node and args_of(user)[0] is not node)
            or (is_call(user, aten.embedding) and args_of(user)[0] is node)
            for user in node.users
        )

    def _compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype is torch.float32 else dtype

    def _dtypes(self, arg: Any) -> Any:
        """Arguments that name float32 name the dtype it stands for."""
        if self.dtype is torch.float32:
            return arg
        if isinstance(arg, torch.dtype):
            return self._compute_dtype(arg)
        if isinstance(arg, tuple | list):
            return type(arg)(self._dtypes(item) for item in arg)
        if isinstance(arg, dict):
            return {name: self._dtypes(item) for name, item in arg.items()}
        return arg


def _bias(args: Any, kwargs: Any) -> torch.Tensor | None:
    bias: torch.Tensor | None = args[4] if len(args) > 4 else kwargs.get("bias")
    return bias


def _in_time(graph: fx.Graph) -> Iterator[fx.Node]:
    """What is run, in order, each weight right before its first reader: tracing puts them all on top."""
    loaded: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and operand not in loaded:
                loaded.add(operand)
                yield operand
        yield node


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that are no longer needed once it has run."""
    seen: set[fx.Node] = set()
    done: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            seen.update(node.all_input_nodes)
            continue
        for operand in (*node.all_input_nodes, node):
            if operand not in seen and operand.op != "placeholder":
                seen.add(operand)
                done.setdefault(node, []).append(operand)
    return done
