"""What a pass works with: making nodes, replacing them, weights, and saying what it left alone.

Every rewrite goes through :meth:`PassContext.replace`, which numbers it. The numbers run through the whole
pipeline, so that ``--only-rewrites 1-40`` means the same rewrites every time and a quality loss can be
bisected to the first one that brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from ..graph.nodes import is_call, path, set_constant, value
from ..graph.propagate import fake_mode
from ..weights.store import LazyWeight, Weights
from .calibrate import Calibration

Replacement = fx.Node | tuple[fx.Node, ...]


@dataclass(frozen=True)
class Remark:
    """One thing a pass did or left.

    Attributes:
        kind: "applied" or "missed".
        where: the module path of the node.
        what: the operation.
        text: the rewrite's number, or the reason it was missed.
    """

    kind: str
    where: str
    what: str
    text: str


@dataclass
class Numbering:
    """One numbering of rewrites for a whole pipeline.

    The first n numbers mean the same rewrites whatever comes after them, which is what bisection needs;
    leaving one out can take away the ground of later ones, and they are numbered anew.
    """

    only: tuple[range, ...] | None = None
    last: int = 0

    def next(self) -> tuple[int, bool]:
        """The next number, and whether that rewrite is to be made."""
        self.last += 1
        return self.last, self.only is None or any(self.last in span for span in self.only)


@dataclass
class PassContext:
    """A pass's hands on one graph.

    Attributes:
        gm: the graph module whose graph is being rewritten.
        weights: values of its weights, lazily; setting one stays with this pass's graph until it is accepted.
        config: the model's config.json.
        calibration: text for calibrated algorithms, or None.
        constants: names of weights that no checkpoint has.
        remarks: what was done and left, in order.
        progress: to be told the share of the work that is done, 0 to 1, by passes that take long.
    """

    gm: fx.GraphModule
    weights: Weights
    config: dict[str, Any]
    numbering: Numbering = field(default_factory=Numbering)
    calibration: Calibration | None = None
    whole: bool = False
    constants: set[str] = field(default_factory=set)
    remarks: list[Remark] = field(default_factory=list)
    progress: Callable[[float], None] = lambda fraction: None

    @property
    def rewrites(self) -> int:
        """How many were made so far."""
        return sum(remark.kind == "applied" for remark in self.remarks)

    def nodes(self, *targets: Any) -> Iterator[fx.Node]:
        """The nodes in order, or those that call one of ``targets``; safe while the graph is rewritten."""
        for node in list(self.gm.graph.nodes):
            if not node._erased and (not targets or is_call(node, *targets)):
                yield node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call at the insertion point; its fake value is worked out from its operands'."""
        node = self.gm.graph.call_function(target, args, kwargs)
        real_args = fx.node.map_arg(node.args, value)
        real_kwargs = fx.node.map_arg(node.kwargs, value)
        with fake_mode(self.gm), enable_python_dispatcher():  # see optpipe.program.propagate
            node.meta["val"] = target(*real_args, **real_kwargs)
        return node

    def weight(self, node: object) -> LazyWeight | None:
        """The lazy weight behind a get_attr node, or None when ``node`` is something else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.weights[str(node.target)]
        return None

    def set_weight(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> fx.Node:
        """Store a tensor under ``name`` and add a node that yields it.

        Args:
            name: the weight's full name; an existing one is replaced.
            tensor: the values.
            dtype: the dtype it has in the graph; float32 for every floating tensor when None.
        """
        self.weights.set(name, tensor)
        shown = dtype or (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        return self._attribute(name, torch.empty(tensor.shape, dtype=shown, device="meta"))

    def get_weight(self, name: str) -> fx.Node:
        """Add a node that yields a weight that is in the store already."""
        weight = self.weights[name]
        shown = torch.float32 if weight.dtype.is_floating_point else weight.dtype
        return self._attribute(name, torch.empty(weight.shape, dtype=shown, device="meta"))

    def set_constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """Store a tensor that belongs to the graph and to no checkpoint, and add a node that yields it."""
        self.constants.add(name)
        return self.set_weight(name, tensor, tensor.dtype)

    def placeholder(self, name: str, like: torch.Tensor, *, cache: bool = False) -> fx.Node:
        """Add an input after the present ones. ``like`` is a fake tensor of its dtype and shape."""
        inputs = [node for node in self.gm.graph.nodes if node.op == "placeholder"]
        with self.gm.graph.inserting_after(inputs[-1]):
            node = self.gm.graph.placeholder(name.replace(".", "_"))
        node.meta.update(val=like, name=name, kind="cache" if cache else "input", path="")
        return node

    def replace(
        self, node: fx.Node, build: Callable[[], Replacement], *, what: str | None = None
    ) -> Replacement | None:
        """Make one numbered rewrite: build new nodes before ``node``, give its users to them, erase it.

        Args:
            node: what is replaced. Operands that it alone used go with it.
            build: adds the new nodes through :meth:`call` and returns the one that takes over; for a node
                with several results, a tuple, one for each ``getitem``.
            what: a name for the rewrite in ``--explain``; the operation when None.

        Returns:
            What ``build`` returned, or None when this rewrite's number is switched off.
        """
        number, wanted = self.numbering.next()
        if not wanted and not self.whole:
            return None
        where, before = path(node), node.prev
        with self.gm.graph.inserting_before(node):
            new = build()
        self._adopt(before, node, where)
        self._hand_over(node, new)
        self.remarks.append(Remark("applied", where, what or operation(node), str(number)))
        self._erase(node)
        return new

    def applied(self, node: fx.Node, what: str) -> None:
        """Number and record a rewrite that was made by other means and cannot be left out."""
        number, _ = self.numbering.next()
        self.remarks.append(Remark("applied", path(node), what, str(number)))

    def missed(self, node: fx.Node, reason: str) -> None:
        """Record that ``node`` was not rewritten, and why."""
        self.remarks.append(Remark("missed", path(node), operation(node), reason))

    def _hand_over(self, node: fx.Node, new: Replacement) -> None:
        if isinstance(new, fx.Node):
            node.replace_all_uses_with(new)
            return
        for user in list(node.users):
            user.replace_all_uses_with(new[user.args[1]])  # type: ignore[index]
            self.gm.graph.erase_node(user)

    def _adopt(self, before: fx.Node, node: fx.Node, where: str) -> None:
        """Nodes that were built take over the module path of the one they replace."""
        new = before.next
        while new is not node:
            new.meta.setdefault("path", where)
            new = new.next

    def _erase(self, node: fx.Node) -> None:
        """Erase a node and every operand that nothing else uses."""
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            if dead.users or dead.op in ("placeholder", "output") or dead._erased or has_effect(dead):
                continue
            operands = dead.all_input_nodes
            self.gm.graph.erase_node(dead)
            waiting.extend(operands)

    def _attribute(self, name: str, meta: torch.Tensor) -> fx.Node:
        set_constant(self.gm, name, meta)
        node = self.gm.graph.get_attr(name)
        node.meta["val"] = self._fake(meta)
        return node

    def _fake(self, meta: torch.Tensor) -> torch.Tensor:
        with fake_mode(self.gm):
            return torch.empty(meta.shape, dtype=meta.dtype)

    def empty(self, *shape: int | torch.SymInt, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A fake tensor, for :meth:`placeholder`."""
        with fake_mode(self.gm):
            return torch.empty(shape, dtype=dtype)


def has_effect(node: fx.Node) -> bool:
    """Whether a node writes to one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def operation(node: fx.Node) -> str:
    """What a node computes, ``aten.add``."""
    name = str(node.target)
    return name.removesuffix(".default") if node.op == "call_function" else f"{node.op} {name}"
