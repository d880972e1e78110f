"""Read an artifact: every file checked, nothing executed, no torch before the weights are asked for."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, ModelError
from ..program.parser import parse_program
from ..program.program import Program
from .folder import check_files
from .manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from torch import fx

    from ..weights.store import Weights

_GRAPH, _CONFIG = "graph.opt", "config.json"


@dataclass(frozen=True)
class Artifact:
    """A folder that was found whole.

    Attributes:
        path: where it is.
        manifest: what it says about itself.
        program: its graph.
        config: the content of config.json.
    """

    path: Path
    manifest: Manifest
    program: Program
    config: dict[str, Any]

    @functools.cached_property
    def weights(self) -> Weights:
        """The program's weights, mapped when they are touched.

        Raises:
            ArtifactError: one is missing, or is not what the program says.
        """
        return _weights(self)

    def graph(self) -> fx.GraphModule:
        """The program as an FX graph.

        Raises:
            ArtifactError: it names an operation that is unknown or not allowed.
        """
        from ..program.fx import to_fx

        return to_fx(self.program)

    def check_operations(self) -> None:
        """Raise unless every operation is known and allowed: what :meth:`graph` asks first, for less time.

        Raises:
            ArtifactError: names the first that is not.
        """
        import optpipe.dialect  # noqa: F401  (declares the ops that a Program may name)

        from ..program.ops import find_op

        for name in dict.fromkeys(node.op for node in self.program.nodes):
            try:
                find_op(name)
            except ArtifactError as error:
                raise _in_the_graph(self.path, error) from None

    def read(self, name: str) -> bytes | None:
        """One of the model's other files, or None when the artifact has no such file."""
        return (self.path / name).read_bytes() if name in self.manifest.files else None


def load_artifact(path: str | os.PathLike[str], *, hashes: bool = True) -> Artifact:
    """Open a folder that ``optpipe optimize`` wrote.

    Args:
        path: the folder.
        hashes: read every byte and compare; else only names and sizes are checked.

    Raises:
        ArtifactError: it is no artifact, is damaged, or is of a newer format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(
            f"There is no artifact at '{folder}': it is not a folder.",
            hint="`optpipe optimize MODEL -o DIR` makes one",
        )
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=hashes)
    for name in (_GRAPH, _CONFIG):
        if name not in manifest.files:
            raise ArtifactError(f"The artifact '{folder}' has no '{name}'.")
    return Artifact(folder, manifest, _program(folder), _config(folder))


def _program(folder: Path) -> Program:
    try:
        return parse_program((folder / _GRAPH).read_text(encoding="ascii"))
    except UnicodeDecodeError:
        raise ArtifactError(f"'{_GRAPH}' in the artifact '{folder}' is not ASCII text.") from None
    except ArtifactError as error:
        raise _in_the_graph(folder, error) from None


def _in_the_graph(folder: Path, error: ArtifactError) -> ArtifactError:
    return ArtifactError(f"'{_GRAPH}' in the artifact '{folder}': {error.message}", hint=error.hint)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ArtifactError(f"'{_CONFIG}' in the artifact '{folder}' holds no JSON object.")
    return config


def _weights(artifact: Artifact) -> Weights:
    from ..program.ops import dtype_name
    from ..weights.safetensors import safetensors_weights
    from ..weights.store import Weights

    found = {}
    for name in artifact.manifest.files:
        if name.endswith(".safetensors"):
            try:
                found.update(safetensors_weights(artifact.path / name, eight_bit_floats=True))
            except ModelError as error:
                raise ArtifactError(error.message, hint=error.hint) from None
    weights = Weights()
    for name, said in artifact.program.weights.items():
        if name not in found:
            raise ArtifactError(f"The artifact '{artifact.path}' lacks the weight '{name}' of its graph.")
        weight = found[name]
        if weight.shape != said.type.shape or dtype_name(weight.dtype) != said.stored:
            raise ArtifactError(
                f"The weight '{name}' in the artifact '{artifact.path}' is {dtype_name(weight.dtype)} of "
                f"{weight.shape}, and its graph says {said.stored} of {said.type.shape}."
            )
        weights[name] = weight
    return weights
