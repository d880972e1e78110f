"""A model folder as Hugging Face writes them: config.json, safetensors (sharded or not), tokenizer files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optpipe.errors import ModelError
from optpipe.sources.files import read_json, stored_as
from optpipe.sources.source import Content, ModelSource, OpenOptions

if TYPE_CHECKING:
    from optpipe.weights import LazyWeight

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"[^/\\]+\.safetensors")
_TOKENIZER = "tokenizer.json"
_SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_COPIED = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "consolidated.*.pth")


class FolderSource:
    """Opens model folders."""

    name: ClassVar[str] = "folder"
    rank: ClassVar[int] = 10

    def claims(self, spec: str) -> bool:
        """See ``SourceKind``."""
        pathlike = spec.startswith(("./", "../", "/", "~")) and not spec.lower().endswith(".gguf")
        return pathlike or (bool(spec) and Path(spec).expanduser().is_dir())

    def open(self, spec: str, options: OpenOptions) -> ModelSource:
        """See ``SourceKind``."""
        self.check(spec)
        folder = Path(spec).expanduser()
        return open_folder(folder, options, where=str(folder.resolve()))

    def check(self, spec: str) -> None:
        """See ``optpipe.sources.check``."""
        folder = Path(spec).expanduser()
        if folder.is_file():
            raise ModelError(f"'{spec}' is a file, and only .gguf files are models by themselves.")
        if not folder.is_dir():
            raise ModelError(f"There is no folder '{spec}'.")


def open_folder(folder: Path, options: OpenOptions, *, where: str, kind: str = "folder") -> ModelSource:
    """Open a model folder.

    Args:
        where: what ``identity`` calls the place it came from.
        kind: the source kind that found it.

    Raises:
        ModelError: something is missing, damaged, hostile, or quantized in a way that is not read.
    """
    config = _config(folder)
    from optpipe.sources.composite import text_weights
    from optpipe.sources.model import config_content, empty_model
    from optpipe.sources.tokenizer import slow_to_fast
    from optpipe.weights.bind import bind
    from optpipe.weights.convert import convert
    from optpipe.weights.packed import check_quantization, join_packed

    scheme = check_quantization(config)
    plain = {
        key: value
        for key, value in config.items()
        if key not in ("quantization_config", "compression_config")
    }
    code = folder if options.trust_remote_code and "auto_map" in config else None
    stored, digest = _stored(folder, options)
    _check_depth(plain, len(stored))
    model = empty_model(plain, trust_remote_code=options.trust_remote_code, code=code)
    stored = stored if scheme is None else join_packed(stored, scheme)
    weights = bind(model, convert(model, text_weights(model, plain, stored)))
    files: dict[str, Content] = {name: folder / name for name in _COPIED if _inside(folder, name)}
    if _TOKENIZER not in files and any(_inside(folder, name) for name in _SLOW_TOKENIZERS):
        files |= slow_to_fast(folder, options)
    dtype = stored_as(weights)
    return ModelSource(
        config=config_content(model, plain),
        weights=weights,
        files=files,
        description=f"{folder.resolve().name} ({model.config.model_type}, {dtype})",
        identity={"kind": kind, "where": where, "headers_sha256": digest},
        bytes=weights.nbytes,
        dtype=dtype,
        code=code,
    )


def _config(folder: Path) -> dict[str, Any]:
    if not _inside(folder, "config.json"):
        what = "is empty" if not any(folder.iterdir()) else "has no config.json"
        raise ModelError(
            f"The folder '{folder}' {what}.", hint="a model folder has config.json and *.safetensors"
        )
    return read_json(folder / "config.json")


def _check_depth(config: dict[str, Any], tensors: int) -> None:
    """Refuse a config of absurd depth before its modules are built: a layer has a tensor at least."""
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"):
        layers = config.get(key)
        if isinstance(layers, int) and layers > tensors:
            raise ModelError(
                f"The config.json asks for {layers} layers, and the checkpoint has {tensors} tensors."
            )


def _stored(folder: Path, options: OpenOptions) -> tuple[dict[str, LazyWeight], str]:
    """All tensors of all shards, unread, and a hash over config, index and the shards' headers and sizes."""
    from optpipe.weights.safetensors import safetensors_weights

    shards = _shards(folder)
    stored: dict[str, LazyWeight] = {}
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for done, (name, expected) in enumerate(sorted(shards.items())):
        options.report("reading headers", done, len(shards))
        path = folder / name
        found = safetensors_weights(path)
        digest.update(
            f"{name} {path.stat().st_size} {sorted((k, w.shape) for k, w in found.items())}".encode()
        )
        if expected is not None and (lost := expected - found.keys()):
            raise ModelError(
                f"The shard '{name}' lacks the tensor '{min(lost)[:120]}' that the index puts there."
            )
        if twice := stored.keys() & found.keys():
            raise ModelError(f"The tensor '{min(twice)[:120]}' is in two shards, one of them '{name}'.")
        stored |= found
    return stored, digest.hexdigest()


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """Shard file to the tensors that the index puts there, or None when there is no index."""
    if _inside(folder, _INDEX):
        entries = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(entries, dict) or not entries:
            raise ModelError(f"'{_INDEX}' in '{folder}' has no 'weight_map'.")
        shards: dict[str, set[str] | None] = {}
        for tensor, name in entries.items():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ModelError(
                    f"'{_INDEX}' puts '{tensor[:120]}' outside of the folder: '{str(name)[:120]}'."
                )
            expected = shards.setdefault(name, set())
            assert expected is not None, f"{name = } was put there above"
            expected.add(tensor)
        for name in shards:
            if not _inside(folder, name):
                raise ModelError(
                    f"The shard '{name}' is missing from '{folder}'.", hint="fetch the model again"
                )
        return shards
    if _inside(folder, _SINGLE):
        return {_SINGLE: None}
    return dict.fromkeys([_lone(folder)])


def _lone(folder: Path) -> str:
    """The one safetensors file of another name, or the error that says why there is none."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(names) == 1 and _inside(folder, names[0]):
        return names[0]
    if names:
        raise ModelError(f"The folder '{folder}' has {len(names)} safetensors files and no {_INDEX}.")
    if pickles := _first(folder, _PICKLES):
        raise ModelError(
            f"The weights in '{folder}' are pickled ('{pickles}'), and reading a pickle can run any code.",
            hint="where you trust the file, load it with transformers once and save_pretrained it",
        )
    if gguf := _first(folder, ("*.gguf",)):
        raise ModelError(f"The folder '{folder}' has no safetensors.", hint=f"name the file: {folder / gguf}")
    raise ModelError(
        f"The folder '{folder}' has a config.json and no weights.", hint="looked for *.safetensors"
    )


def _first(folder: Path, patterns: Iterable[str]) -> str | None:
    return next((path.name for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _inside(folder: Path, name: str) -> bool:
    """Whether the folder has the file, by itself and not by a link to somewhere else.

    The hub's cache is links from snapshots/REVISION to blobs of the same model: those are followed.

    Raises:
        ModelError: it is a link that leaves the folder.
    """
    path = folder / name
    if not path.is_file():
        return False
    real, home = path.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    blobs = home.parent.parent / "blobs"
    if home.parent.name == "snapshots" and blobs.is_dir() and real.parent == blobs:
        return True
    raise ModelError(
        f"'{name}' in '{folder}' is a link that leaves the folder.", hint="copy the file into it"
    )
