"""Write an artifact: everything into a folder beside the target, which takes its name at the end."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError
from ..program.program import Program
from ..program.text import print_program
from ..program.types import DTYPE_BYTES
from ..weights.store import LazyWeight
from .folder import hash_folder, written_whole
from .hf import Obstacle, hf_form
from .load import load_artifact
from .manifest import NAME, CacheNeeds, CacheTensor, Manifest, check_file_name, write_manifest
from .tensors import SHARD_BYTES, write_sharded, write_tensors

if TYPE_CHECKING:
    from torch import nn

CONFIG, GRAPH, CONSTANTS = "config.json", "graph.opt", "constants.safetensors"
_OWN = (CONFIG, GRAPH, CONSTANTS, NAME)


@dataclass(frozen=True)
class Draft:
    """Everything an artifact is made of.

    Attributes:
        program: the graph.
        weights: values of the program's weights, by name.
        config: the content of the model's config.json.
        files: what else to put into the folder: tokenizer, chat template, generation config.
        pipeline: the full pipeline's text.
        passes: a JSON record a pass.
        quality: what was measured, for JSON.
        source: where the model came from, for JSON.
        model: the model's own class, parameters never read; None when others need not load the folder.
        checkpoint: the source's values by parameter name, tied names included.
    """

    program: Program
    weights: Mapping[str, LazyWeight]
    config: Mapping[str, Any]
    files: Mapping[str, bytes | Path]
    pipeline: str
    passes: Sequence[Mapping[str, Any]] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None
    checkpoint: Mapping[str, LazyWeight] = field(default_factory=dict)


def save_artifact(draft: Draft, target: Path, *, shard_bytes: int = SHARD_BYTES) -> Manifest:
    """Write ``draft`` as the folder ``target``; an artifact that is there already is replaced.

    What was written is read back before the folder gets its name. Memory: one tensor at a time, and of a
    large one 64 MB.

    Raises:
        ArtifactError: something other than an artifact is at ``target``, the disk refuses, or what is on it
            is not what was written. Nothing is left behind then.
    """
    with written_whole(target) as folder:
        form = hf_form(draft.program, draft.weights, draft.model, draft.checkpoint, draft.config)
        mine = {name: draft.weights[name] for name in draft.program.weights}
        _check_stored(draft.program, mine)
        constants = {name: weight for name, weight in mine.items() if name in form.foreign}
        shared = {name: weight for name, weight in mine.items() if name not in constants}
        write_sharded(folder, {**shared, **form.extra}, shard_bytes=shard_bytes)
        if constants:
            write_tensors(folder / CONSTANTS, constants)
        (folder / CONFIG).write_text(to_json(form.config))
        text = print_program(draft.program)
        (folder / GRAPH).write_text(text, encoding="ascii")
        copy_files(draft.files, folder)
        manifest = Manifest(
            pipeline=draft.pipeline,
            passes=tuple(dict(record) for record in draft.passes),
            quality=dict(draft.quality),
            source=dict(draft.source),
            versions=_versions(),
            cache=cache_needs(draft.program),
            hf_loadable=form.load_obstacle is None,
            hf_obstacle=_sentence(form.load_obstacle, draft.passes),
            export_obstacle=_sentence(form.export_obstacle, draft.passes),
            transposed=form.transposed,
            files=hash_folder(folder),
        )
        write_manifest(folder, manifest)
        _read_back(folder, manifest, text, target)
    return manifest


def _read_back(folder: Path, manifest: Manifest, text: str, target: Path) -> None:
    """Open what was just written as any reader will: hashes, graph, and the types of its weights."""
    try:
        opened = load_artifact(folder)
        list(opened.weights)  # each is compared with what the graph says of it
        same = opened.manifest == manifest and print_program(opened.program) == text
        wrong = None if same else "it reads back as another one"
    except ArtifactError as error:
        wrong = error.message
    if wrong is not None:
        raise ArtifactError(
            f"The artifact for '{target}' was not kept: {wrong.rstrip('.')}.",
            hint="the disk may be failing; if not, this is a defect of optpipe",
        )


def copy_files(files: Mapping[str, bytes | Path], folder: Path) -> None:
    """Put a model's other files into a folder.

    Raises:
        ArtifactError: a name is not a plain file's, or one of the artifact's own.
    """
    for name, content in files.items():
        try:
            check_file_name(name)
        except ValueError as error:
            raise ArtifactError(f"The model's file '{name}' cannot be stored: {error}.") from None
        if name in _OWN or name.endswith(".safetensors"):
            raise ArtifactError(f"The model brings a file '{name}', a name that artifacts use themselves.")
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def to_json(content: Mapping[str, Any]) -> str:
    """JSON as Hugging Face writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _sentence(obstacle: Obstacle | None, passes: Sequence[Mapping[str, Any]]) -> str | None:
    """An obstacle with the pass that put it there: the last that rewrote anything in that module."""
    if obstacle is None:
        return None
    home = (obstacle.parameter or "").rpartition(".")[0]
    for record in reversed(passes):
        for remark in record.get("remarks", ()):
            if home and remark["kind"] == "applied" and remark["where"] == home:
                return f"{obstacle.reason} (by the pass '{record['pass']}')"
    return obstacle.reason


def cache_needs(program: Program) -> CacheNeeds | None:
    """What the program's caches take: f32[P, block, …] each, P blocks."""
    caches = [item.value for item in program.inputs if item.kind == "cache"]
    if not caches:
        return None
    block = int(caches[0].type.shape[1])
    per_block = 0
    for cache in caches:
        count = DTYPE_BYTES[cache.type.dtype]
        for dim in cache.type.shape[1:]:
            count *= int(dim)
        per_block += count
    tensors = tuple(CacheTensor(cache.name, str(cache.type)) for cache in caches)
    return CacheNeeds(block, per_block // block, tensors)


def _check_stored(program: Program, weights: Mapping[str, LazyWeight]) -> None:
    from ..program.ops import dtype_name

    for name, weight in weights.items():
        said = program.weights[name]
        assert said.stored == dtype_name(weight.dtype), f"{name}: {said.stored = } {weight.dtype = }"
        assert said.type.shape == tuple(weight.shape), f"{name}: {said.type.shape = } {weight.shape = }"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("optpipe", "torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
