"""Does a graph hold together? Run between passes, before what a pass made may replace the graph.

Checked: torch's own lint; every node is of an allowed kind and says what it gives (``meta["val"]``); shapes
and dtypes, worked out again with fake tensors, are what the nodes say; no symbolic size has become a number
or equal to another; caches are written before they are read; no operation stands where its stage is over.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

import optpipe.dialect  # noqa: F401  (declares the ops that a graph may hold)

from .errors import PassError
from .pipeline.stage import Stage
from .program.guards import broken_guard
from .program.ops import PLACES, SYMBOLIC_OPS, argument_name, gives_one_tensor, op_name, why_not_call
from .program.propagate import Propagator

STAGES: dict[str, tuple[Stage, Stage]] = {
    "optpipe.mask": (Stage.TRACE, Stage.TRACE),  # folded into attention by the end of the trace
    "aten.scaled_dot_product_attention": (Stage.TRACE, Stage.CLEAN),  # what bypasses attention's registry
    "optpipe.kv_write": (Stage.CACHE, Stage.LOWER),
    "optpipe.paged_attention": (Stage.LOWER, Stage.LOWER),
}
"""The first and the last stage after whose passes an operation may stand; the others always may."""


def verify(gm: fx.GraphModule, *, stage: Stage | None = None) -> None:
    """Raise unless ``gm`` holds together.

    Args:
        gm: the graph. It is not changed, but for the fake mode of its metas, which may learn guards.
        stage: the stage of the pass that made it; None leaves out the check of what is allowed when.

    Raises:
        PassError: it does not; names the node, its module path, what was expected and what was found.
    """
    try:
        gm.graph.lint()
    except Exception as error:  # lint raises whatever it meets
        raise PassError(f"The graph fails torch's lint: {_first_line(error)}") from error
    for node in gm.graph.nodes:
        _check_kind(gm, node)
        if stage is not None:
            _check_stage(node, stage)
    _check_output(gm)
    _check_caches(gm)
    _check_types(gm, _fake_mode(gm))
    _check_symbols(gm)


def _fail(node: fx.Node, problem: str, *, expected: object = None, got: object = None) -> NoReturn:
    path = node.meta.get("path") or "no module"
    what = f" (calling {_target(node)})" if node.op == "call_function" else ""
    compared = "" if expected is None and got is None else f": expected {expected}, got {got}"
    raise PassError(f"Node '{node.name}' of {path}{what} {problem}{compared}.")


def _target(node: fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        return op_name(node.target)
    return getattr(node.target, "__name__", str(node.target))


# --- kinds of nodes ---------------------------------------------------------------------------------------


def _check_kind(gm: fx.GraphModule, node: fx.Node) -> None:
    value = node.meta.get("val")
    if node.op == "placeholder":
        if not isinstance(value, torch.Tensor):
            _fail(node, "is an input without a tensor", expected="a fake tensor", got=_kind(value))
    elif node.op == "get_attr":
        _check_weight(gm, node, value)
    elif node.op == "call_function":
        _check_call(node, value)
    elif node.op != "output":
        _fail(node, "is of a kind that no graph may hold", expected="call_function", got=node.op)


def _check_weight(gm: fx.GraphModule, node: fx.Node, value: Any) -> None:
    tensor: Any = gm
    for part in str(node.target).split("."):
        tensor = getattr(tensor, part, None)
    if not isinstance(tensor, torch.Tensor):
        _fail(node, f"refers to the weight '{node.target}'", expected="a tensor", got=_kind(tensor))
    if not isinstance(value, torch.Tensor) or not _same_type(tensor, value):
        _fail(node, "says another type than its weight has", expected=_spell(tensor), got=_spell(value))


def _check_call(node: fx.Node, value: Any) -> None:
    target = node.target
    if target is operator.getitem:
        source, index = node.args
        inner = source.meta.get("val") if isinstance(source, fx.Node) else None
        if not isinstance(inner, tuple | list) or not isinstance(index, int) or not 0 <= index < len(inner):
            _fail(node, "takes an item", expected="an operation with that many results", got=_kind(inner))
    elif target in SYMBOLIC_OPS:
        if not isinstance(value, int | torch.SymInt):
            _fail(node, "computes a size", expected="an integer in meta['val']", got=_kind(value))
        return
    elif not isinstance(target, OpOverload):
        _fail(node, "calls something else", expected="an ATen or optpipe operation", got=repr(target))
    elif (reason := why_not_call(target, node.args, node.kwargs)) is not None:
        _fail(node, f"is not allowed: the operation {reason}")
    else:
        _check_place(node, target)
        if not gives_one_tensor(target):
            _check_results(node, target, value)
            return
    if not isinstance(value, torch.Tensor):
        _fail(node, "does not say what it gives", expected="a fake tensor in meta['val']", got=_kind(value))


def _check_place(node: fx.Node, op: OpOverload) -> None:
    named = [(argument_name(op, index), arg) for index, arg in enumerate(node.args)]
    for name, arg in (*named, *node.kwargs.items()):
        if name in PLACES and arg is not None and arg is not False and arg is not torch.strided:
            _fail(node, "names a place, which is for the target to choose", expected=f"no {name}", got=arg)


def _check_results(node: fx.Node, op: OpOverload, value: Any) -> None:
    if not op._schema.returns:
        if value not in (None, ()):
            _fail(node, "gives nothing but says otherwise", expected="None in meta['val']", got=_spell(value))
    elif not isinstance(value, tuple | list) or not all(isinstance(item, torch.Tensor) for item in value):
        _fail(node, "does not say what it gives", expected="a tuple of fake tensors", got=_spell(value))


def _check_stage(node: fx.Node, stage: Stage) -> None:
    if not isinstance(node.target, OpOverload):
        return
    first, last = STAGES.get(op_name(node.target), (stage, stage))
    if not first <= stage <= last:
        _fail(node, f"may stand from {first.name} to {last.name} only", expected="it gone", got=stage.name)


def _check_output(gm: fx.GraphModule) -> None:
    outputs = [node for node in gm.graph.nodes if node.op == "output"]
    if len(outputs) != 1:
        raise PassError(f"The graph has {len(outputs)} output nodes; expected one.")
    given = outputs[0].args[0]
    for item in given if isinstance(given, tuple | list) else (given,):
        if not isinstance(item, fx.Node) or not isinstance(item.meta.get("val"), torch.Tensor):
            _fail(outputs[0], "returns something", expected="tensors", got=item)


# --- caches -----------------------------------------------------------------------------------------------


def _check_caches(gm: fx.GraphModule) -> None:
    """Every cache is written before it is read, and nothing else is written."""
    caches = {n for n in gm.graph.nodes if n.op == "placeholder" and n.meta.get("kind") == "cache"}
    written: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        writes = set(_written(node, node.target))
        for operand in node.all_input_nodes:
            if operand in writes and operand not in caches:
                _fail(node, f"writes to '{operand.name}'", expected="a cache", got="something else")
            if operand in caches and operand not in writes and operand not in written:
                _fail(node, f"reads the cache '{operand.name}'", expected="a write before it", got="none")
        written |= writes


def _written(node: fx.Node, op: OpOverload) -> Iterator[fx.Node]:
    """The operands that the operation's schema says it changes."""
    for index, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            yield from (item for item in _flat(given) if isinstance(item, fx.Node))


def _flat(argument: Any) -> Iterable[Any]:
    return argument if isinstance(argument, tuple | list) else (argument,)


# --- shapes, dtypes and symbols ---------------------------------------------------------------------------


def _fake_mode(gm: fx.GraphModule) -> FakeTensorMode:
    """The one fake mode that every meta belongs to."""
    mode: FakeTensorMode | None = None
    for node in gm.graph.nodes:
        for item in _flat(node.meta.get("val")) if node.op != "output" else ():
            if not isinstance(item, torch.Tensor):
                continue
            if not isinstance(item, FakeTensor):
                _fail(node, "holds a real tensor in meta['val']", expected="a fake tensor", got=_spell(item))
            if mode is not None and item.fake_mode is not mode:
                _fail(node, "is of another fake mode than the nodes above it")
            mode = item.fake_mode
    if mode is None:
        raise PassError("The graph holds no tensor.")
    return mode


def _check_types(gm: fx.GraphModule, mode: FakeTensorMode) -> None:
    """Run every operation on fake tensors and compare what comes with what the nodes say."""
    known: dict[fx.Node, Any] = {}
    propagator = Propagator(mode)
    for node in gm.graph.nodes:
        said = node.meta.get("val")
        if node.op in ("placeholder", "get_attr"):
            with mode:  # afresh: contiguous, and on one device, whatever the trace was made on
                known[node] = torch.empty(said.shape, dtype=said.dtype)
        elif node.op == "call_function":
            known[node] = _run(node, known, propagator, gm.meta.get("symbols", {}))
            _compare(node, said, known[node])


def _run(node: fx.Node, known: dict[fx.Node, Any], propagator: Propagator, names: Mapping[str, str]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    env = propagator.mode.shape_env
    guards = len(env.guards) if env is not None else 0
    try:
        result = propagator.run(node.target, args, kwargs)  # type: ignore[arg-type]
    except Exception as error:  # whatever torch makes of operands that it cannot take
        raise PassError(
            f"Node '{node.name}' of {node.meta.get('path') or 'no module'} (calling {_target(node)}) "
            f"cannot take its operands {', '.join(map(_spell, _tensors(args)))}: {_first_line(error)}"
        ) from error
    if env is not None and (broken := broken_guard(env, guards, names)) is not None:
        _fail(node, "holds only for some sizes", expected="no condition", got=broken)
    return result


def _tensors(args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    for arg in args:
        for item in _flat(arg):
            if isinstance(item, torch.Tensor):
                yield item


def _compare(node: fx.Node, said: Any, found: Any) -> None:
    if isinstance(found, tuple | list) and isinstance(said, tuple | list):
        agree = len(found) == len(said) and all(map(_same_type, said, found))
    elif isinstance(found, torch.Tensor) and isinstance(said, torch.Tensor):
        agree = _same_type(said, found)
    elif isinstance(found, int | torch.SymInt) and isinstance(said, int | torch.SymInt):
        agree = _same_size(said, found)
    else:
        agree = found is None and said in (None, ())
    if not agree:
        _fail(node, "says another type than its operation gives", expected=_spell(found), got=_spell(said))


def _same_type(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.dim() == right.dim()
        and all(map(_same_size, left.shape, right.shape))
    )


def _same_size(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Equal whatever the symbols are, without learning a guard."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    if (
        isinstance(left, torch.SymInt)
        and isinstance(right, torch.SymInt)
        and left.node.expr == right.node.expr
    ):
        return True
    return bool(statically_known_true(left == right))


def _check_symbols(gm: fx.GraphModule) -> None:
    """The number of tokens is free, and so is every size that has a name."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node in inputs:
        shape = node.meta["val"].shape
        if node.target == "input_ids" and all(isinstance(size, int) for size in shape):
            _fail(node, "has a fixed number of tokens", expected="a symbolic T", got=list(shape))
    env = _environment(inputs)
    fixed = [name for found, name in gm.meta.get("symbols", {}).items() if env and _is_fixed(env, found)]
    if fixed:
        raise PassError(f"The symbolic size {', '.join(fixed)} is symbolic no more.")


def _environment(inputs: Iterable[fx.Node]) -> ShapeEnv | None:
    return next((node.meta["val"].fake_mode.shape_env for node in inputs), None)


def _is_fixed(env: ShapeEnv, name: str) -> bool:
    return any(str(found) == name for found in env.replacements)


# --- words ------------------------------------------------------------------------------------------------


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _spell(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_spell, value))})"
    return str(value) if isinstance(value, int | torch.SymInt) else _kind(value)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
