"""``model.gguf``: one file with config, tokenizer and tensors, as llama.cpp writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optpipe.errors import ModelError
from optpipe.sources.source import ModelSource, OpenOptions

if TYPE_CHECKING:
    import torch

    from optpipe.sources.gguf_config import Architecture
    from optpipe.weights import LazyWeight
    from optpipe.weights.gguf_file import GgufFile


class GgufSource:
    """Opens ``.gguf`` files of the architectures in ``gguf_config.ARCHITECTURES``."""

    name: ClassVar[str] = "gguf"
    rank: ClassVar[int] = 20

    def claims(self, spec: str) -> bool:
        """See ``SourceKind``."""
        return spec.lower().endswith(".gguf") and ":" not in spec.partition("/")[0]

    def open(self, spec: str, options: OpenOptions) -> ModelSource:
        """See ``SourceKind``."""
        self.check(spec)
        path = Path(spec).expanduser()
        return open_gguf(path, options, where=str(path.resolve()))

    def check(self, spec: str) -> None:
        """See ``optpipe.sources.check``."""
        if not Path(spec).expanduser().is_file():
            raise ModelError(f"There is no file '{spec}'.", hint="a GGUF model is named by its path")


def open_gguf(path: Path, options: OpenOptions, *, where: str, kind: str = "gguf") -> ModelSource:
    """Open one GGUF file.

    Args:
        where: what ``identity`` calls the place it came from.
        kind: the source kind that found it.

    Raises:
        ModelError: it is damaged, of another architecture, or its tensors do not fit its config.
    """
    from optpipe.sources.files import sha256_of, stored_as
    from optpipe.sources.gguf_config import architecture_of, gguf_config
    from optpipe.sources.gguf_tokenizer import tokenizer_files
    from optpipe.sources.model import empty_model
    from optpipe.weights.bind import bind
    from optpipe.weights.gguf_file import read_gguf

    file = read_gguf(path)
    config = gguf_config(file)
    weights = bind(empty_model(config), module_weights(file, architecture_of(file)))
    digest = sha256_of(path, options)
    dtype = stored_as(weights)
    return ModelSource(
        config=config,
        weights=weights,
        files=tokenizer_files(file, digest, options) | {"generation_config.json": _generation(file)},
        description=f"{file.metadata.get('general.name') or path.name} ({file.architecture}, GGUF, {dtype})",
        identity={"kind": kind, "where": where, "file": path.name, "sha256": digest},
        bytes=weights.nbytes,
        dtype=dtype,
    )


def module_weights(file: GgufFile, kind: Architecture) -> dict[str, LazyWeight]:
    """The file's tensors under the names that the model's modules have, llama.cpp's changes undone.

    Raises:
        ModelError: a tensor belongs to no module.
    """
    from optpipe.sources.gguf_config import Metadata
    from optpipe.weights.gguf import gguf_weights

    stored = gguf_weights(file)
    stored.pop("rope_freqs.weight", None)  # it became rope_parameters
    named: dict[str, LazyWeight] = {}
    for here, there in kind.names(Metadata(file).integer("block_count")).items():
        for suffix in (".weight", ".bias"):
            if there + suffix in stored:
                named[here + suffix] = _undo(file, kind, here, stored.pop(there + suffix))
    if stored:
        names = ", ".join(f"'{name[:80]}'" for name in sorted(stored)[:5])
        raise ModelError(f"The GGUF file '{file.path.name}' has tensors of no known use: {names}.")
    return named


def _undo(file: GgufFile, kind: Architecture, module: str, weight: LazyWeight) -> LazyWeight:
    """Rows of q and k back into halves; norms back to what the model adds to one."""
    from optpipe.sources.gguf_config import Metadata
    from optpipe.weights import PermutedRows, ShiftedWeight

    meta = Metadata(file)
    heads = meta.integer("attention.head_count")
    if kind.permuted and module.endswith("self_attn.q_proj"):
        return PermutedRows(weight, _halves(weight.shape[0], heads))
    if kind.permuted and module.endswith("self_attn.k_proj"):
        return PermutedRows(weight, _halves(weight.shape[0], meta.integer("attention.head_count_kv", heads)))
    if kind.norm_shift and module.endswith("norm"):
        return ShiftedWeight(weight, kind.norm_shift)
    return weight


def _halves(rows: int, heads: int) -> torch.Tensor:
    """For each row, where it is stored: llama.cpp interleaves the two halves of each head.

    A head of D rows is stored as 0, D/2, 1, D/2+1, …; row h of the first half is stored at 2h.
    """
    import torch

    if rows % (2 * heads):
        raise ModelError(f"A projection of {rows} rows does not divide into {heads} heads of two halves.")
    return torch.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def _generation(file: GgufFile) -> bytes:
    """generation_config.json: the ids that begin, pad and end a text (a turn's end ends it too)."""
    ids: Mapping[str, Any] = {
        name: file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos", "eot", "padding")
    }
    ends = [end for end in dict.fromkeys([ids["eos"], ids["eot"]]) if end is not None]
    content = {"bos_token_id": ids["bos"], "eos_token_id": ends, "pad_token_id": ids["padding"]}
    kept = {key: value for key, value in content.items() if value not in (None, [])}
    return (json.dumps(kept, indent=2) + "\n").encode()
