"""From what ``torch.export`` returns to the plain graph that passes rewrite.

Before: parameters and buffers are placeholders, regions are wrapped in higher-order ops, device literals
and asserts are everywhere, the output is a tuple.
After: placeholders are the model's inputs, weights are get_attr nodes by their Hugging Face names, every
node is an operation on tensors or sizes, the output is the logits, and nothing names a device.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..errors import TraceError
from ..graph.nodes import args_of, aten, set_constant

PREFIX = "model_"  # the attribute of the wrapper that holds the model; a path of its own

ASSERTS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
PLACE_KEYWORDS = ("device", "pin_memory", "layout")


def normalize(program: ExportedProgram, names: Mapping[str, str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """Rebuild the exported graph.

    Args:
        program: what ``torch.export`` returned for the wrapper of the tracer.
        names: parameter name → the name it goes by, so that tied tensors have one.

    Returns:
        The graph module, whose get_attr tensors are on meta, and for every weight or constant its name
        in the wrapper's state (for looking its value up).

    Raises:
        TraceError: the graph writes to a buffer or holds a control-flow operator.
    """
    for spec in program.graph_signature.output_specs:
        if spec.kind.name.endswith("MUTATION"):
            raise TraceError(
                f"the model writes to '{spec.target}' while it runs, so it keeps a state between calls"
            )
    builder = _Builder(program, names)
    builder.copy(program.graph_module, builder.inputs())
    gm = fx.GraphModule(builder.root, builder.graph)
    gm.graph.lint()
    return gm, builder.origins


class _Builder:
    """One walk over the exported graph, inlining what is wrapped."""

    def __init__(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        self.program = program
        self.names = names
        self.root = fx.GraphModule(torch.nn.Module(), fx.Graph())
        self.graph = fx.Graph()
        self.origins: dict[str, str] = {}
        self.known: dict[fx.Node, Any] = {}

    def inputs(self) -> Mapping[fx.Node, Any]:
        """New nodes for the exported placeholders."""
        new: dict[fx.Node, Any] = {}
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        specs = list(zip(nodes, self.program.graph_signature.input_specs, strict=True))
        for node, spec in specs:  # the model's own inputs first: a graph's placeholders lead it
            if spec.kind is InputKind.USER_INPUT:
                new[node] = self.graph.placeholder(node.name)
                new[node].meta["val"] = node.meta["val"]
        for node, spec in specs:
            if spec.kind is InputKind.USER_INPUT or not node.users:
                continue
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                raise TraceError(
                    f"the exported model takes '{node.name}' as {spec.kind.name}, which is not a tensor"
                )
            new[node] = self.weight(str(spec.target), node.meta["val"])
        return new

    def weight(self, target: str, val: torch.Tensor) -> fx.Node:
        plain = target.removeprefix(f"{PREFIX}.")
        name = self.names.get(plain, plain)
        self.origins[name] = target
        set_constant(self.root, name, val)
        node = self.graph.get_attr(name)
        node.meta["val"] = val
        return node

    def copy(self, gm: fx.GraphModule, env: Mapping[fx.Node, Any], nested: bool = False) -> Any:
        """Copy a graph's body; returns its outputs when nested, else makes the logits the output."""
        known: dict[fx.Node, Any] = dict(env)
        for node in gm.graph.nodes:
            if node.op == "placeholder" or (node.op == "call_function" and node.target in ASSERTS):
                continue
            if node.op == "output":
                outputs = fx.node.map_arg(args_of(node)[0], known.__getitem__)
                if nested:
                    return outputs
                self.graph.output(outputs[0])
                return None
            if node.op == "get_attr":
                known[node] = getattr(gm, str(node.target))
                if isinstance(known[node], torch.Tensor):
                    raise TraceError(f"the exported graph holds a tensor '{node.target}' of no known origin")
                continue
            known[node] = self.call(node, known)
        raise TraceError("the exported graph has no output")

    def call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.inline(node, known)
        if node.target is operator.getitem and not isinstance(known.get(args_of(node)[0]), fx.Node):
            return known[args_of(node)[0]][args_of(node)[1]]
        args = fx.node.map_arg(node.args, known.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
        target, args, kwargs = without_device(node.target, args, kwargs)
        new = self.graph.call_function(target, args, kwargs)
        new.meta["val"] = node.meta.get("val")
        new.meta["path"] = module_path(node)
        return new

    def inline(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        name = str(node.target)
        if name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            raise TraceError(f"the model's control flow depends on its data ({name} in {module_path(node)})")
        skip = 1 if name == "wrap_with_set_grad_enabled" else 4
        body, *operands = (known[arg] if isinstance(arg, fx.Node) else arg for arg in args_of(node)[skip:])
        inner = [n for n in body.graph.nodes if n.op == "placeholder"]
        return self.copy(body, dict(zip(inner, operands, strict=True)), nested=True)


def without_device(target: Any, args: Any, kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A call that places nothing: device moves become casts, device keywords go."""
    kwargs = {name: given for name, given in kwargs.items() if name not in PLACE_KEYWORDS}
    if target is aten.to.device:  # (self, device, dtype, non_blocking, copy, memory_format)
        return aten.to.dtype, (args[0], args[2]), {}
    if target is aten.to.dtype_layout:
        return aten.to.dtype, (args[0], kwargs.get("dtype", args[0].meta["val"].dtype)), {}
    if target is aten.to.other:
        return aten.to.dtype, (args[0], args[1].meta["val"].dtype), {}
    return target, args, kwargs


def module_path(node: fx.Node) -> str:
    """The path of the module that made a node, ``model.layers.0.self_attn``."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] for entry in stack.values() if isinstance(entry, tuple)]
    own = [name for name in names if name == PREFIX or name.startswith(f"{PREFIX}.")]
    return own[-1].removeprefix(PREFIX).removeprefix(".") if own else ""
