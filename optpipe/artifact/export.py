"""``optpipe export --format hf``: a plain Hugging Face folder, for consumers that know no quantization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import ArtifactError
from ..quantize.pack import unpack
from ..weights.grid import QuantizedTensor
from ..weights.safetensors import safetensors_weights
from ..weights.store import BaseWeight, LazyWeight
from .folder import written_whole
from .hf import CODES, MINIMUM, PACKED, SCALE, SHAPE, PackedParameter, packed_parameters
from .load import Artifact
from .save import CONFIG, CONSTANTS, GRAPH, copy_files, to_json
from .tensors import INDEX, SHARD_BYTES, write_sharded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Dequantized(BaseWeight):
    """A packed parameter as plain values, in the orientation its module holds it."""

    def __init__(
        self, parts: dict[str, LazyWeight], item: PackedParameter, dtype: torch.dtype, transposed: bool
    ) -> None:
        self._parts, self._item, self._transposed = parts, item, transposed
        *lead, rows, columns = item.shape
        shape = (*lead, columns, rows) if transposed else item.shape
        size = rows * columns * dtype.itemsize
        for dim in lead:
            size *= dim
        super().__init__(shape, dtype, size)

    def load(self) -> torch.Tensor:
        """All values."""
        values = self._values({part: weight.load() for part, weight in self._parts.items()})
        return values.transpose(-1, -2).contiguous() if self._transposed else values

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Some of the first dimension; of a transposed matrix that takes all of it."""
        if self._transposed and len(self.shape) == 2:
            return self.load()[index]
        values = self._values({part: weight.rows(index) for part, weight in self._parts.items()})
        return values.transpose(-1, -2).contiguous() if self._transposed else values

    def _values(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        if CODES in parts:
            return (parts[CODES].float() * parts[SCALE].float()).to(self.dtype)
        codes = unpack(parts[PACKED], self._item.bits, self._item.shape[-1])
        grid = QuantizedTensor(codes, parts[SCALE], parts.get(MINIMUM), self._item.bits, self._item.group)
        return grid.dequantize().to(self.dtype)


class Cast(BaseWeight):
    """A plain weight in another dtype."""

    def __init__(self, weight: LazyWeight, dtype: torch.dtype) -> None:
        self._weight = weight
        super().__init__(weight.shape, dtype, weight.nbytes // weight.dtype.itemsize * dtype.itemsize)

    def load(self) -> torch.Tensor:
        """All values."""
        return self._weight.load().to(self.dtype)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Some rows."""
        return self._weight.rows(index).to(self.dtype)


def export_hf(
    artifact: Artifact, target: Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder that ``AutoModelForCausalLM`` loads without any quantization library.

    Args:
        target: may not exist, or be an empty folder.
        dtype: of the floating weights; float32 loses nothing.

    Raises:
        ArtifactError: a pass left nothing that the model's own class could load, or ``target`` is taken.
    """
    if dtype not in DTYPES:
        raise ArtifactError(f"Weights cannot be exported as '{dtype}'.", hint=f"known: {', '.join(DTYPES)}")
    if artifact.manifest.export_obstacle is not None:
        raise ArtifactError(
            f"The artifact '{artifact.path}' cannot be exported: {artifact.manifest.export_obstacle}."
        )
    with written_whole(target, replaceable=False) as folder:
        write_sharded(folder, dict(_parameters(artifact, DTYPES[dtype])), shard_bytes=shard_bytes)
        config = {key: value for key, value in artifact.config.items() if key != "quantization_config"}
        (folder / CONFIG).write_text(to_json(config | {"dtype": dtype}))
        copy_files(_other_files(artifact), folder)


def _other_files(artifact: Artifact) -> dict[str, bytes | Path]:
    return {
        name: artifact.path / name
        for name in artifact.manifest.files
        if name not in (CONFIG, GRAPH, CONSTANTS, INDEX) and not name.endswith(".safetensors")
    }


def _parameters(artifact: Artifact, dtype: torch.dtype) -> Iterator[tuple[str, LazyWeight]]:
    """The model's parameters by their own names; what only the graph knows is left out."""
    stored: dict[str, LazyWeight] = {}
    for name in artifact.manifest.files:
        if name.endswith(".safetensors") and name != CONSTANTS:
            stored.update(safetensors_weights(artifact.path / name, eight_bit_floats=True))
    packed = packed_parameters(artifact.program)
    for parameter, item in packed.items():
        parts = {part: stored.pop(parameter + part) for part in item.parts}
        stored.pop(parameter + SHAPE, None)
        yield parameter, Dequantized(parts, item, dtype, parameter in artifact.manifest.transposed)
    for name, weight in stored.items():
        yield name, Cast(weight, dtype) if weight.dtype.is_floating_point else weight
