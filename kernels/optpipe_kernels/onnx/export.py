"""``optpipe export --format onnx``: an artifact as a folder that ONNX Runtime runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from optpipe.artifact import Artifact
from optpipe.artifact.folder import written_whole
from optpipe.errors import ArtifactError, PluginError, RequestError
from optpipe.plugins import installed_plugins
from optpipe.program.program import Node

from ..cpu.tensors import map_tensors
from .convert import convert, paged
from .converter import Converter, ExportOptions
from .genai import genai_config
from .model import ModelWriter
from .rules import RULES

MODEL, DATA = "model.onnx", "model.onnx.data"
_OPSET = 23
_STANDARD_OPSET = 24  # has TensorScatter
_MOST = 1 << 20  # positions; 128 MB a table of cos or sin, for heads of 64
_CONTEXT = 2048  # positions, of a model that does not say
_OURS = ("graph.opt", "model.safetensors.index.json")


def export_onnx(artifact: Artifact, target: Path, options: ExportOptions) -> None:
    """Write a folder: the model, its weights, the tokenizer's files, and genai_config.json where it fits.

    Args:
        target: may not exist, or be an empty folder.

    Raises:
        RequestError: the artifact is not paged, or an operation has no mapping.
        ArtifactError: ``target`` is taken, or a weight is missing.
    """
    with written_whole(target, replaceable=False) as folder:
        written = onnx.load(str(write_model(artifact, folder, options)), load_external_data=False)
        inputs = {it.name for it in written.graph.input}
        config = genai_config(artifact, context=options.context, model=MODEL, inputs=inputs)
        if config is not None and options.microsoft:  # its generator gives a mask, and buffers that grow
            (folder / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in artifact.manifest.files:
            if not name.endswith(".safetensors") and name not in _OURS:
                shutil.copyfile(artifact.path / name, folder / name)


def context_of(artifact: Artifact, wanted: int | None = None) -> int:
    """Positions that tables are made for: what is asked for, or what the model was made for.

    Raises:
        RequestError: more are asked for than tables can have.
    """
    if wanted is not None and wanted > _MOST:
        raise RequestError(f"An ONNX model has tables for at most {_MOST} positions, not for {wanted}.")
    longest = artifact.config.get("max_position_embeddings") or artifact.config.get("n_positions")
    return wanted or (min(longest, _MOST) if isinstance(longest, int) else _CONTEXT)


def write_model(artifact: Artifact, folder: Path, options: ExportOptions) -> Path:
    """Write model.onnx and its weights.

    Raises:
        RequestError: the artifact is not paged, or an operation has no mapping.
    """
    if not paged(artifact.program):
        raise RequestError(
            "Only a paged artifact has the cache that the ONNX model takes.",
            hint="optimize it with --passes paged",
        )
    opset = _OPSET if options.microsoft else _STANDARD_OPSET
    with ModelWriter(folder, DATA, opset) as writer:
        converter = Converter(artifact.program, writer, options, reader(artifact), _plugins())
        convert(converter)
        return writer.save(MODEL, metadata={"optpipe.pipeline": artifact.manifest.pipeline})


def reader(artifact: Artifact) -> Callable[[str], NDArray[Any]]:
    """Stored values by the name of the weight; bfloat16 widened to float32."""
    tensors: dict[str, NDArray[Any]] = {}
    for name in artifact.manifest.files:
        if name.endswith(".safetensors"):
            tensors.update(map_tensors(artifact.path / name))
    program = artifact.program

    def read(name: str) -> NDArray[Any]:
        if name not in tensors:
            raise ArtifactError(f"The artifact '{artifact.path}' lacks the weight '{name}' of its graph.")
        found = tensors[name]
        if program.weights[name].stored == "bf16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    return read


def _plugins() -> dict[str, Callable[[Converter, Node], None]]:
    """Mappings of third parties.

    Raises:
        PluginError: one claims an operation that is mapped here.
    """
    found = installed_plugins().onnx_mappings()
    for name, provided in found.items():
        if name in RULES:
            raise PluginError(
                f"The plugin of {provided.plugin.distribution} maps {name}, which optpipe maps itself."
            )
    return {name: it.value.write for name, it in found.items()}
