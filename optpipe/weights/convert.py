"""Checkpoint names and layouts to those of a model's modules, by transformers' own rules, when asked for.

transformers keeps, for each architecture, renamings and converters (Mixtral: the experts' w1 and w3
matrices are stacked into one gate_up_proj). The renamings are applied at once, to names; a converter runs
each time that its result is read, on that layer's tensors only. Converters that only stack, join and
split rows are also run on codes and scales, so that a grid survives.

Source: transformers `core_model_loading.convert_and_load_state_dict_in_model`; this is its lazy form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from optpipe.errors import ModelError
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import BaseWeight, LazyWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROW_OPERATIONS = ("MergeModulelist", "SplitModulelist", "Concatenate", "Chunk", "Split")
_Part = Callable[[LazyWeight], torch.Tensor]


class Conversion:
    """One converter and the tensors that it takes; gives all its results at once."""

    def __init__(self, first: str, converter: Any, model: PreTrainedModel) -> None:
        self.first, self.converter, self.model = first, converter, model
        self.sources: list[tuple[str, str, LazyWeight]] = []  # (stored name, pattern, tensor)

    def run(self, part: _Part) -> dict[str, torch.Tensor]:
        """Convert one part (the values, the codes, …) of the sources.

        Raises:
            ModelError: the tensors are not what the converter takes.
        """
        converter = deepcopy(self.converter)
        for stored, pattern, weight in self.sources:
            converter.add_tensor(self.first, stored, pattern, lambda weight=weight: part(weight))
        try:
            results = converter.convert(self.first, model=self.model, config=self.model.config)
        except ModelError:
            raise
        except Exception as error:  # converters raise anything on tensors they do not expect
            names = ", ".join(stored for stored, _, _ in self.sources[:3])
            raise ModelError(
                f"'{self.first}' cannot be made of {len(self.sources)} stored tensors ({names}, …): {error}"
            ) from error
        return {name: one[0] if isinstance(one, list) else one for name, one in results.items()}

    def outline(self) -> dict[str, LazyWeight]:
        """The results, unread, under their names."""
        shapes = self.run(lambda weight: torch.empty(weight.shape, dtype=weight.dtype, device="meta"))
        return {name: ConvertedWeight(self, name, like, self._grid(like)) for name, like in shapes.items()}

    def _grid(self, like: torch.Tensor) -> GridInfo | None:
        """The grid of a result: that of the sources, when rows stay rows."""
        grids = {weight.grid for _, _, weight in self.sources}
        columns = {weight.shape[-1] for _, _, weight in self.sources}
        by_rows = all(type(op).__name__ in _ROW_OPERATIONS for op in self.converter.operations)
        return grids.pop() if by_rows and len(grids) == 1 and columns == {like.shape[-1]} else None


class ConvertedWeight(BaseWeight):
    """One result of a conversion, made when it is read."""

    def __init__(self, conversion: Conversion, name: str, like: torch.Tensor, grid: GridInfo | None) -> None:
        self._conversion, self._name = conversion, name
        sources = [weight for _, _, weight in conversion.sources]
        elements = sum(torch.Size(weight.shape).numel() for weight in sources)
        share = sum(weight.nbytes for weight in sources) * like.numel() // max(1, elements)
        super().__init__(like.shape, like.dtype, share, grid)

    def load(self) -> torch.Tensor:
        """The converted values."""
        return self._conversion.run(lambda weight: weight.load())[self._name]

    def blocks(self) -> QuantizedTensor:
        """The converted codes, scales and minima."""
        if self.grid is None:
            return super().blocks()
        codes = self._part(lambda blocks: blocks.codes)
        scale = self._part(lambda blocks: blocks.scale)
        minimum = self._part(_minimum) if self.grid.has_minimum else None
        return QuantizedTensor(codes, scale, minimum, self.grid.bits, self.grid.group)

    def _part(self, part: Callable[[QuantizedTensor], torch.Tensor]) -> torch.Tensor:
        return self._conversion.run(lambda weight: part(weight.blocks()))[self._name]


def _minimum(blocks: QuantizedTensor) -> torch.Tensor:
    assert blocks.minimum is not None, f"{blocks.info = } must have a minimum"
    return blocks.minimum


def convert(model: PreTrainedModel, stored: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """Stored tensors under the names and in the layouts of a model's modules.

    Args:
        model: built without weights.
        stored: tensors under their checkpoint names.

    Returns:
        Also tensors that the model has no place for, under their renamed names: ``bind`` judges them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    places = model.state_dict()
    found: dict[str, LazyWeight] = {}
    conversions: dict[str, Conversion] = {}
    for name in sorted(stored, key=dot_natural_key):
        renamed, pattern = _place(name, renamings, converters, model, places)
        if pattern is None or renamed not in places:
            if renamed in found:
                raise ModelError(f"Two stored tensors are both '{renamed}', one of them '{name}'.")
            found[renamed] = stored[name]
        else:
            conversion = conversions.setdefault(renamed, Conversion(renamed, by_pattern[pattern], model))
            conversion.sources.append((name, pattern, stored[name]))
    for conversion in conversions.values():
        found.update(conversion.outline())
    return found


def _place(
    name: str, renamings: list[Any], converters: list[Any], model: PreTrainedModel, places: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Where a stored tensor goes, and the converter pattern that it matched."""
    from transformers.core_model_loading import rename_source_key

    prefix = model.base_model_prefix
    renamed, pattern = rename_source_key(name, renamings, converters, prefix, places)
    if renamed not in places and name in places:
        renamed, pattern = rename_source_key(name, [], [], prefix, places)
    return renamed, pattern
