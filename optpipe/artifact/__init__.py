"""The artifact: a folder that holds a graph, its weights, and everything known about how it was made.

    config.json            the model's config; with quantization_config where others can load the weights
    generation_config.json, tokenizer files, chat_template.jinja      as the model came with them
    model.safetensors      or shards and their index
    constants.safetensors  tensors of the graph that no checkpoint has
    graph.opt              the Program, as text
    optpipe.json           the manifest: pipeline, remarks, measurements, and the hash of every file

    save.py  a Draft → a folder, all of it or nothing      load.py  a folder → an Artifact, checked
    export.py  an artifact → a plain Hugging Face folder   hf.py  who else can load it

Reading an artifact needs no torch until its weights are asked for, and executes nothing from the folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import Artifact, load_artifact
    from .manifest import Manifest

__all__ = ["Artifact", "Manifest", "load_artifact"]


def __getattr__(name: str) -> Any:
    if name in ("Artifact", "load_artifact"):
        from . import load

        return getattr(load, name)
    if name == "Manifest":
        from .manifest import Manifest

        return Manifest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
