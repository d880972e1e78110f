"""The state of one lowering: which view each value of the Program has, and the instructions so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optpipe.errors import KernelError
from optpipe.program.dims import Dim
from optpipe.program.program import Arg, Expr, Node, Program, Value, WeightRef
from optpipe.program.types import TensorType

from .extent import Extent, extent_of, over, product
from .instruction import Instruction, Lowered, Segment, Step
from .recipe import Experts, Linear, Plain, Recipe
from .siblings import Siblings, find_siblings
from .view import External, View, new_buffer, row_major

DTYPES = ("f32", "bf16", "f16", "i64", "i32", "i8", "u8", "bool")  # the order of optpipe_dtype


class Unsupported(Exception):  # noqa: N818 - control flow inside one lowering; the message is the reason
    """No kernel does this node; the message says why."""


class Builder:
    """Collects instructions.

    ``quantized_bytes(K)`` is the size of one plane of a token's quantized activations; a row has ``planes``.
    """

    def __init__(self, program: Program, quantized_bytes: Callable[[int], int], planes: int) -> None:
        self.program = program
        self.siblings: Siblings = find_siblings(program)
        self.steps: list[Step] = []
        self.weights: dict[External, Recipe] = {}
        self._views: dict[str, View] = {}
        self._quantized: dict[View, View] = {}
        self._quantized_bytes = quantized_bytes
        self.planes = planes
        self.node: Node | None = None

    def finish(self, inputs: list[View]) -> Lowered:
        """The lowering, once every node has been through."""
        return Lowered(self.steps, self.view(self.program.outputs[0]), self.weights, inputs)

    def bind(self, value: Value, view: View | None) -> None:
        """Say where a value lies.

        Raises:
            Unsupported: nowhere.
        """
        if view is None:
            raise Unsupported(f"{value} of {value.type} is no strided view")
        wanted = sizes(value.type.shape)
        if view.size != wanted:
            reshaped = view.reshape(wanted)
            if reshaped is None:
                raise Unsupported(f"{value} of {value.type} has another layout")
            view = reshaped
        self._views[value.name] = view

    def bind_input(self, value: Value, view: View) -> None:
        """Say where an input lies, whatever its Program sizes are."""
        self._views[value.name] = view

    def view(self, arg: Arg) -> View:
        """Where an argument lies: a value, or a weight as it is stored, widened to the graph's dtype."""
        if isinstance(arg, Value):
            return self._views[arg.name]
        if isinstance(arg, WeightRef):
            kind = self.program.weights[arg.name].type
            return self.weight(Plain(arg.name, known_dtype(kind)), known_dtype(kind), sizes(kind.shape))
        raise Unsupported(f"the operand {arg} is no tensor")

    def weight(self, recipe: Recipe, dtype: str, size: tuple[Extent, ...]) -> View:
        """A weight of the plan, contiguous."""
        external = External("weight", str(recipe))
        self.weights[external] = recipe
        stride = row_major(size)
        assert stride is not None, f"{size = } of a weight is fixed"
        return View(external, dtype, size, stride)

    def packed(self, recipe: Linear | Experts) -> View:
        """A weight of linear layers, as the bytes the kernels read."""
        count = recipe.experts if isinstance(recipe, Experts) else 1
        try:
            size = recipe.form.bytes * count
        except KernelError as error:
            raise Unsupported(error.message) from None
        return self.weight(recipe, "u8", (Extent(size),))

    def stored(self, arg: Arg) -> View:
        """As ``view``, but a weight in the dtype that it is stored in."""
        if not isinstance(arg, WeightRef):
            return self.view(arg)
        weight = self.program.weights[arg.name]
        kind = TensorType(weight.stored, weight.type.shape)
        return self.weight(Plain(arg.name, known_dtype(kind)), kind.dtype, sizes(kind.shape))

    def new(self, kind: TensorType) -> View:
        """A buffer for a value of that type."""
        return self.buffer(known_dtype(kind), sizes(kind.shape))

    def buffer(self, dtype: str, size: tuple[Extent, ...]) -> View:
        """A contiguous buffer.

        Raises:
            Unsupported: its size is no multiple of T, R or B alone.
        """
        made = new_buffer(dtype, size)
        if made is None:
            raise Unsupported(f"a tensor of sizes [{', '.join(map(str, size))}] is no multiple of T, R or B")
        return made

    def emit(
        self,
        kernel: str,
        reads: Sequence[View | None],
        writes: Sequence[View | None],
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
    ) -> None:
        """Add an instruction."""
        path = "" if self.node is None else self.node.path
        self.steps.append(Instruction(kernel, list(reads), list(writes), tuple(ints), tuple(floats), path))

    def dense(self, view: View) -> View:
        """The same values, contiguous: the view itself, or a copy."""
        return view if view.contiguous else self.copied(view, view.dtype)

    def copied(self, view: View, dtype: str) -> View:
        """A contiguous copy in ``dtype``."""
        out = self.buffer(dtype, view.size)
        self.emit("copy", [view], [out])
        return out

    def rows(self, view: View, width: int) -> View:
        """``view`` as [rows, width], a copy where it must be."""
        last = Extent(width)
        for candidate in (view, None):
            candidate = candidate or self.dense(view)
            total = candidate.reshape((flat_rows(candidate.size, width), last))
            if total is not None and total.stride[1] == Extent(1):
                return total
        raise Unsupported(f"a tensor of sizes {view.size} is no list of rows of {width}")

    def quantized(self, x: View) -> View:
        """Activations [rows, K] rounded to 8 bits a token and group of 32; once for all who ask."""
        if x not in self._quantized:
            width = x.size[1].fixed
            assert width is not None, f"{x.size = } has a fixed width"
            out = self.buffer("u8", (x.size[0], Extent(self.planes * self._quantized_bytes(width))))
            self.emit("quantize", [x], [out])
            self._quantized[x] = out
        return self._quantized[x]

    def forget(self, kept: int) -> None:
        """Drop the instructions after the first ``kept``."""
        if len(self.steps) == kept:
            return
        del self.steps[kept:]
        made = {view.place for step in self.steps for view in step.writes if view is not None}
        self._quantized = {x: q for x, q in self._quantized.items() if q.place in made}

    def segment(self, node: Node, reason: str) -> None:
        """Leave a node to torch.

        Raises:
            Unsupported: an operand or a result is nothing that a plan can hold.
        """
        reads = [self.view(arg) for arg in node.operands() if isinstance(arg, Value | WeightRef)]
        writes = [self.new(value.type) for value in node.results]
        self.steps.append(Segment(node, [self.dense(view) for view in reads], list(writes), reason))
        for value, view in zip(node.results, writes, strict=True):
            self.bind(value, view)


def known_dtype(kind: TensorType) -> str:
    """The dtype, when kernels have it."""
    if kind.dtype not in DTYPES:
        raise Unsupported(f"kernels have no {kind.dtype}")
    return kind.dtype


def sizes(shape: Sequence[Dim | Expr]) -> tuple[Extent, ...]:
    """A shape as extents.

    Raises:
        Unsupported: a size is no multiple of one count.
    """
    found = []
    for dim in shape:
        extent = extent_of(dim.text if isinstance(dim, Expr) else dim)
        if extent is None:
            raise Unsupported(f"the size {dim} is no multiple of one count")
        found.append(extent)
    return tuple(found)


def flat_rows(size: tuple[Extent, ...], width: int) -> Extent:
    """How many rows of ``width`` a tensor of ``size`` has."""
    total = product(size)
    rows = None if total is None else over(total, Extent(width))
    if rows is None:
        raise Unsupported(f"a tensor of sizes {size} is no list of rows of {width}")
    return rows
