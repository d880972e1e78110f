"""``drop-batch``: one sequence needs no batch dimension.

Before: %x: f32[1, T, 576] = aten.linear(%h: f32[1, T, 576], …)
After:  %x: f32[T, 576] = aten.linear(%h: f32[T, 576], …)
Guards: an operation that is not in the tables below keeps its batch dimension: it reads its operands
        through a reshape and hands its result on through another, so nothing depends on the tables being
        complete
Source: the rules are those of vectorising maps (``torch.vmap``) read backwards
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.graph.canonical import eliminate_dead
from optpipe.graph.nodes import args_of, aten, is_tensor, positive, rank, same_size, shape, value
from optpipe.graph.sizes import as_arguments
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext

# operations on one dimension or several: where the dimension stands among the arguments, and its default
DIMENSION: dict[Any, tuple[int, Any]] = {
    aten.softmax.int: (1, None),
    aten._softmax.default: (1, None),
    aten.log_softmax.int: (1, None),
    aten.cumsum.default: (1, None),
    aten.sum.dim_IntList: (1, None),
    aten.mean.dim: (1, None),
    aten.var.dim: (1, None),
    aten.var.correction: (1, None),
    aten.amax.default: (1, None),
    aten.amin.default: (1, None),
    aten.max.dim: (1, None),
    aten.argmax.default: (1, None),
    aten.argsort.default: (1, -1),
    aten.topk.default: (2, -1),
    aten.sort.default: (1, -1),
    aten.linalg_vector_norm.default: (2, None),
    aten.norm.ScalarOpt_dim: (2, None),
    aten.gather.default: (1, None),
    aten.scatter.src: (1, None),
    aten.scatter.value: (1, None),
    aten.index_select.default: (1, None),
    aten.slice.Tensor: (1, 0),
    aten.select.int: (1, None),
    aten.narrow.default: (1, None),
    aten.split.Tensor: (2, 0),
    aten.split_with_sizes.default: (2, 0),
    aten.split.sizes: (2, 0),
    aten.chunk.default: (2, 0),
    aten.unbind.int: (1, 0),
    aten.flip.default: (1, None),
    aten.cat.default: (1, 0),
    aten.stack.default: (1, 0),
    aten.repeat_interleave.self_int: (2, None),
}
# operations that work on the last dimensions and take any number in front
TRAILING = frozenset(
    {
        aten.linear.default,
        aten.layer_norm.default,
        aten.rms_norm.default,
        aten.constant_pad_nd.default,
        aten.embedding.default,
        aten.one_hot.default,
        aten.glu.default,
    }
)
# elementwise, though torch does not tag them so
ELEMENTWISE = frozenset({aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.contiguous.default})
PRODUCTS: dict[Any, Any] = {aten.bmm.default: aten.mm.default, aten.matmul.default: aten.matmul.default}


def _leads_with_batch(node: fx.Node) -> bool:
    """Whether a value is [1, T, …], whatever it was made from: a stack of batches has its batch inside."""
    if not is_tensor(node) or rank(node) < 2:
        return False
    batch, tokens = shape(node)[:2]
    return same_size(batch, 1) and isinstance(tokens, torch.SymInt)


@dataclass(frozen=True)
class DropBatch(Pass):
    """Remove the batch dimension of one from every value."""

    name: ClassVar[str] = "drop-batch"
    stage: ClassVar[Stage] = Stage.CLEAN
    always: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("clean", "fold-constants")
    whole: ClassVar[bool] = True

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if any(rank(node) != 2 for node in inputs):
            return
        _Walk(cx).run(inputs)
        eliminate_dead(graph)


class _Walk:
    """One pass over the graph in order; ``without`` holds the value that replaces a batched node's."""

    def __init__(self, cx: PassContext) -> None:
        self.cx = cx
        self.graph = cx.gm.graph
        self.without: dict[fx.Node, fx.Node] = {}

    def run(self, inputs: list[fx.Node]) -> None:
        for node in inputs:
            self.input(node)
        for node in list(self.graph.nodes):
            if node in self.without or node.op == "placeholder":
                continue
            if node.op == "output":
                node.args = (self.without.get(args_of(node)[0], args_of(node)[0]),)
            elif node.op == "call_function":
                self.call(node)

    def input(self, node: fx.Node) -> None:
        """The input itself loses the dimension; its users read it through one that adds it back."""
        node.meta["val"] = value(node)[0]
        self.cx.applied(node, "input without batch")
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        users = list(node.users)
        with self.graph.inserting_before(first):
            wide = self.cx.call(aten.unsqueeze.default, node, 0)
        for user in users:
            user.replace_input_with(node, wide)
        self.without[wide] = node

    def call(self, node: fx.Node) -> None:
        batched = [operand for operand in node.all_input_nodes if operand in self.without]
        with self.graph.inserting_before(node):
            new = self.rewritten(node, batched)
        if new is None:
            if batched or _leads_with_batch(node):
                self.narrow(node)
            return
        for made in new if isinstance(new, tuple) else (new,):
            made.meta.setdefault("path", node.meta.get("path", ""))
        if isinstance(new, tuple):  # several results: their getitems are what follows
            for user in list(node.users):
                self.item(user, new[0])
            return
        with self.graph.inserting_before(node):
            wide = self.cx.call(aten.unsqueeze.default, new, 0)
        node.replace_all_uses_with(wide)
        self.without[wide] = new

    def narrow(self, node: fx.Node) -> None:
        """A call that kept its batch dimension hands its result on without it."""
        if not is_tensor(node) or rank(node) < 2 or not same_size(shape(node)[0], 1):
            return
        with self.graph.inserting_after(node):
            new = self.cx.call(aten.squeeze.dim, node, 0)
        with self.graph.inserting_after(new):
            wide = self.cx.call(aten.unsqueeze.default, new, 0)
        node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not new)
        self.without[wide] = new

    def item(self, user: fx.Node, source: fx.Node) -> None:
        with self.graph.inserting_before(user):
            new = self.cx.call(operator.getitem, source, args_of(user)[1])
            wide = self.cx.call(aten.unsqueeze.default, new, 0)
        new.meta["path"] = user.meta.get("path", "")
        user.replace_all_uses_with(wide)
        self.without[wide] = new
        self.without[user] = new  # dead, and not to be visited

    def rewritten(self, node: fx.Node, batched: list[fx.Node]) -> fx.Node | tuple[fx.Node, ...] | None:
        """The call without its batch dimension, or None when it keeps it."""
        if node.target is aten.reshape.default:
            return self.reshape(node)
        if not batched:
            return None
        if node.target in DIMENSION:
            return self.along_dimension(node, batched)
        if node.target is aten.permute.default:
            return self.permute(node)
        if node.target in PRODUCTS:
            return self.product(node)
        if node.target in TRAILING:
            return self.trailing(node)
        if node.target is aten.expand.default:
            return self.expand(node)
        if node.target in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self.pointwise(node)
        return None

    def reshape(self, node: fx.Node) -> fx.Node | None:
        """A reshape whose result leads with one; one that flattens the batch away works as it is."""
        source: Any = args_of(node)[0]
        if rank(node) < 2 or not same_size(shape(node)[0], 1):
            return None
        sizes = as_arguments(self.graph, shape(node)[1:])
        return self.cx.call(aten.reshape.default, self.without.get(source, source), sizes)

    def along_dimension(self, node: fx.Node, batched: list[fx.Node]) -> fx.Node | tuple[fx.Node, ...] | None:
        at, default = DIMENSION[node.target]
        count = rank(batched[0])
        dims = args_of(node)[at] if len(node.args) > at else node.kwargs.get("dim", default)
        listed = isinstance(dims, list | tuple)
        if dims is None or any(rank(operand) != count for operand in self.tensors(node)):
            return None
        extra = 1 if node.target is aten.stack.default else 0
        plain = [positive(dim, count + extra) for dim in (dims if listed else (dims,))]
        if 0 in plain or any(operand not in self.without for operand in self.tensors(node)):
            return None
        moved = [dim - 1 for dim in plain]
        args = list(fx.node.map_arg(node.args, lambda n: self.without.get(n, n)))
        kwargs = {key: given for key, given in node.kwargs.items() if key != "dim"}
        if len(args) > at:
            args[at] = moved if listed else moved[0]
        else:
            kwargs["dim"] = moved if listed else moved[0]
        new = self.cx.call(node.target, *args, **kwargs)
        return new if isinstance(value(node), torch.Tensor) else (new,)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        return [operand for operand in node.all_input_nodes if is_tensor(operand)]

    def permute(self, node: fx.Node) -> fx.Node | None:
        order = [positive(dim, rank(node)) for dim in args_of(node)[1]]
        if order[0] != 0:
            return None
        source = self.without[args_of(node)[0]]
        return self.cx.call(aten.permute.default, source, [dim - 1 for dim in order[1:]])

    def product(self, node: fx.Node) -> fx.Node | None:
        left, right = args_of(node)[:2]
        if left not in self.without or rank(left) < 3:
            return None
        if right in self.without and rank(right) == rank(left):
            return self.cx.call(PRODUCTS[node.target], self.without[left], self.without[right])
        if right not in self.without and rank(right) == 2 and node.target is aten.matmul.default:
            return self.cx.call(aten.matmul.default, self.without[left], right)
        return None

    def trailing(self, node: fx.Node) -> fx.Node | None:
        data = 1 if node.target is aten.embedding.default else 0
        if [n for n in node.all_input_nodes if n in self.without] != [args_of(node)[data]] or rank(node) < 2:
            return None
        if node.target is aten.constant_pad_nd.default and len(args_of(node)[1]) > 2 * (rank(node) - 1):
            return None
        return self.again(node)

    def expand(self, node: fx.Node) -> fx.Node | None:
        source, sizes = args_of(node)[:2]
        if source not in self.without or rank(source) != len(sizes):
            return None
        if not same_size(shape(node)[0], 1):
            return None
        return self.cx.call(aten.expand.default, self.without[source], list(sizes)[1:])

    def pointwise(self, node: fx.Node) -> fx.Node | None:
        """Broadcasting lines dimensions up from the right, so batched operands must be of one rank."""
        count = rank(node)
        without: dict[fx.Node, fx.Node] = {}
        for operand in self.tensors(node):
            if operand in self.without:
                if rank(operand) != count:
                    return None
                without[operand] = self.without[operand]
            elif rank(operand) == count:
                if not same_size(shape(operand)[0], 1):
                    return None
                without[operand] = self.cx.call(aten.squeeze.dim, operand, 0)
        if count < 2 or not same_size(shape(node)[0], 1):
            return None
        return self.again(node, without)

    def again(self, node: fx.Node, without: dict[fx.Node, fx.Node] | None = None) -> fx.Node:
        known = self.without if without is None else without
        swap: Callable[[fx.Node], fx.Node] = lambda n: known.get(n, n)  # noqa: E731
        args, kwargs = fx.node.map_arg(node.args, swap), fx.node.map_arg(node.kwargs, swap)
        return self.cx.call(node.target, *args, **kwargs)
