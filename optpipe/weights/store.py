"""The lazy store: names to tensors that are read when somebody asks, and not before.

    Weights ── overlay() ──▶ Weights          a child sees its parent's tensors and shadows them
      │
      └── name ─▶ LazyWeight                  safetensors, GGUF, packed, derived, or in memory

A model larger than memory is never loaded: passes and targets ask for one tensor at a time and let go of
it. Two names with the very same ``LazyWeight`` object are tied.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Protocol, runtime_checkable

import torch

from optpipe.errors import ModelError, nearest
from optpipe.weights.grid import GridInfo, QuantizedTensor


@runtime_checkable
class LazyWeight(Protocol):
    """One stored tensor, not yet in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""

    @property
    def dtype(self) -> torch.dtype:
        """Stored dtype; float32 when ``grid`` is not None."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor where it is stored (codes and scales, when on a grid)."""

    @property
    def grid(self) -> GridInfo | None:
        """The grid the tensor arrives on, or None when it is stored as plain values."""

    def load(self) -> torch.Tensor:
        """All values, in ``dtype``. The caller may keep but not write the result."""

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The same as ``load()[index]``, reading only those rows where the storage can.

        Args:
            index: [R] integer row numbers, in [0, shape[0]).
        """

    def blocks(self) -> QuantizedTensor:
        """The codes and their grid.

        Raises:
            ModelError: ``grid`` is None.
        """


class BaseWeight:
    """What the implementations share: facts set once, rows by way of everything, and no grid."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, nbytes: int, grid: GridInfo | None = None
    ) -> None:
        self.shape, self.dtype, self.nbytes, self.grid = tuple(shape), dtype, nbytes, grid

    def load(self) -> torch.Tensor:
        """See ``LazyWeight``."""
        raise NotImplementedError

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """See ``LazyWeight``."""
        return self.load()[index]

    def blocks(self) -> QuantizedTensor:
        """See ``LazyWeight``."""
        raise ModelError(f"A weight of shape {self.shape} is stored as plain {self.dtype}, not on a grid.")


class TensorWeight(BaseWeight):
    """A weight that is in memory already."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()
        super().__init__(tensor.shape, tensor.dtype, tensor.numel() * tensor.element_size())

    def load(self) -> torch.Tensor:
        """The tensor itself."""
        return self._tensor


class GridWeight(BaseWeight):
    """A quantized weight that is in memory already."""

    def __init__(self, blocks: QuantizedTensor) -> None:
        self._blocks = blocks
        parts = [part for part in (blocks.codes, blocks.scale, blocks.minimum) if part is not None]
        nbytes = sum(part.numel() * part.element_size() for part in parts)
        super().__init__(blocks.codes.shape, torch.float32, nbytes, blocks.info)

    def load(self) -> torch.Tensor:
        """The values, dequantized."""
        return self._blocks.dequantize()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Only those rows, dequantized."""
        return self._blocks.each(lambda part: part[index]).dequantize()

    def blocks(self) -> QuantizedTensor:
        """The tensor itself."""
        return self._blocks


class Weights(MutableMapping[str, LazyWeight]):
    """Names to lazy weights, with an optional parent underneath.

    >>> import torch
    >>> base = Weights({"a": TensorWeight(torch.ones(2))})
    >>> child = base.overlay()
    >>> child.set("a", torch.zeros(3))
    >>> del child["a"]
    >>> len(base), len(child)
    (1, 0)
    """

    def __init__(self, entries: dict[str, LazyWeight] | None = None, parent: Weights | None = None) -> None:
        self._own: dict[str, LazyWeight | None] = dict(entries or {})  # None hides the parent's entry
        self._parent = parent

    def overlay(self) -> Weights:
        """A child that shares these weights; what is set in it stays in it."""
        return Weights(parent=self)

    def set(self, name: str, tensor: torch.Tensor | QuantizedTensor) -> None:
        """Store a tensor that is in memory."""
        self[name] = GridWeight(tensor) if isinstance(tensor, QuantizedTensor) else TensorWeight(tensor)

    def tied(self, name: str) -> tuple[str, ...]:
        """The other names of the same stored tensor, sorted."""
        weight = self[name]
        return tuple(sorted(other for other in self if other != name and self[other] is weight))

    @property
    def nbytes(self) -> int:
        """Stored bytes, tied tensors counted once."""
        return sum(weight.nbytes for weight in {id(w): w for w in self.values()}.values())

    def __getitem__(self, name: str) -> LazyWeight:
        weight = self._find(name)
        if weight is None:
            raise KeyError(name)
        return weight

    def get_or_raise(self, name: str) -> LazyWeight:
        """Like ``self[name]``, with an error for people.

        Raises:
            ModelError: there is no such weight.
        """
        weight = self._find(name)
        if weight is None:
            raise ModelError(f"The model has no weight named '{name}'.", hint=nearest(name, self))
        return weight

    def _find(self, name: str) -> LazyWeight | None:
        if name in self._own:
            return self._own[name]
        return None if self._parent is None else self._parent._find(name)

    def __setitem__(self, name: str, weight: LazyWeight) -> None:
        self._own[name] = weight

    def __delitem__(self, name: str) -> None:
        if self._find(name) is None:
            raise KeyError(name)
        if self._parent is not None and self._parent._find(name) is not None:
            self._own[name] = None
        else:
            del self._own[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        below = () if self._parent is None else tuple(self._parent)
        yield from (name for name in below if name not in self._own)
        yield from (name for name, weight in self._own.items() if weight is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors, {self.nbytes} bytes)"


def check_rows(weight: LazyWeight, index: torch.Tensor) -> None:
    """Our own invariant: the row numbers exist (a bad one would read another tensor's bytes)."""
    if index.numel():
        low, high = int(index.min()), int(index.max())
        assert 0 <= low <= high < weight.shape[0], f"rows {low} to {high} must be in a {weight.shape = }"
