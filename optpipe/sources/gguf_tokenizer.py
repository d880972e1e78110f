"""The tokenizer inside a GGUF file, as the tokenizer files of a model folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from optpipe.errors import ModelError
from optpipe.sources.files import cache_folder
from optpipe.sources.source import Content, OpenOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from optpipe.weights.gguf_file import GgufFile

_VERSION = 2  # of what is cached; raised when the conversion changes
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_BEGINNING_SPLITS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
_MAX_TEMPLATE = 1 << 20  # characters


def tokenizer_files(file: GgufFile, digest: str, options: OpenOptions) -> dict[str, Content]:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF file.

    Converting a large vocabulary takes seconds (merges are found again), so the result is cached under
    the file's hash.

    Raises:
        ModelError: the file has no tokenizer, or one that transformers cannot convert.
    """
    import transformers

    if "tokenizer.ggml.tokens" not in file.metadata:
        raise ModelError(f"The GGUF file '{file.path.name}' has no tokenizer in it.")
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and (not isinstance(template, str) or len(template) > _MAX_TEMPLATE):
        raise ModelError(
            f"The chat template in the GGUF file '{file.path.name}' is not a text of sane length."
        )
    folder = cache_folder(options) / "tokenizers" / f"{digest[:32]}-{transformers.__version__}-{_VERSION}"
    if not folder.is_dir():
        options.report("converting the tokenizer", 0)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            _convert(file, made)
            try:
                made.rename(folder)
            except OSError:  # another process made it meanwhile
                if not folder.is_dir():
                    shutil.copytree(made, folder)
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def _convert(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer's files into a new folder."""
    from optpipe.sources.model import first_line

    try:
        tokenizer = _backend(file)
        special = _special_tokens(file)
        _frame(tokenizer, file, special)
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    except Exception as error:  # the conversion raises anything on a vocabulary it does not expect
        raise ModelError(
            f"The tokenizer in the GGUF file '{file.path.name}' cannot be converted: {first_line(error)}"
        ) from error
    limit = file.metadata.get(f"{file.architecture}.context_length")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if (template := file.metadata.get("tokenizer.chat_template")) is not None:
        (folder / "chat_template.jinja").write_text(template)


def _backend(file: GgufFile) -> Tokenizer:
    """The tokenizer that transformers makes of the metadata.

    The direct way takes a quarter of the time and a third of the memory of AutoTokenizer, which reads the
    whole header again, but exists only in newer versions.
    """
    try:
        from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    except ImportError:
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
        return cast("Tokenizer", slow.backend_tokenizer)
    wanted = {f"tokenizer.{key}": name for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()}
    described = {name: file.metadata[key] for key, name in wanted.items() if key in file.metadata}
    return cast("Tokenizer", convert_gguf_tokenizer(file.architecture, described)[0])


def _special_tokens(file: GgufFile) -> dict[str, str]:
    """The tokens behind the special ids, checked to exist."""
    tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
    special = {}
    for name, key in _SPECIAL.items():
        token = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            continue
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise ModelError(f"its {key} token is number {token} of {len(tokens)}")
        special[name] = tokens[token]
    return special


def _frame(tokenizer: Tokenizer, file: GgufFile, special: dict[str, str]) -> None:
    """Put the begin and end tokens around texts, where the file says so."""
    from tokenizers.processors import TemplateProcessing

    begins, ends = _adds(file, "bos", _begins_by_default(file)), _adds(file, "eos", False)
    begin = special.get("bos_token") if begins else None
    end = special.get("eos_token") if ends else None
    if begin is None and end is None:
        return
    single = " ".join(part for part in (begin, "$A", end) if part)
    pair = " ".join(
        part for part in (begin, "$A", end, begin and f"{begin}:1", "$B:1", end and f"{end}:1") if part
    )
    known = [(token, tokenizer.token_to_id(token)) for token in {begin, end} if token]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=known)


def _adds(file: GgufFile, which: str, default: bool) -> bool:
    return bool(file.metadata.get(f"tokenizer.ggml.add_{which}_token", default))


def _begins_by_default(file: GgufFile) -> bool:
    """What llama.cpp assumes of files that do not say."""
    kind, split = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    return kind == "llama" or split in _BEGINNING_SPLITS
