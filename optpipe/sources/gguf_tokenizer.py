"""The tokenizer inside a GGUF file, as the tokenizer files of a model folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from optpipe.errors import ModelError
from optpipe.sources.files import cache_folder
from optpipe.sources.source import Content, OpenOptions

if TYPE_CHECKING:
    from optpipe.weights.gguf_file import GgufFile

_VERSION = 1  # of what is cached; raised when the conversion changes
_LOCAL_KEYS = ("is_local", "local_files_only")  # where transformers found it; means nothing elsewhere
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
    from optpipe.sources.model import first_line

    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the conversion raises anything on a vocabulary it does not expect
        raise ModelError(
            f"The tokenizer in the GGUF file '{file.path.name}' cannot be converted: {first_line(error)}"
        ) from error
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    limit = file.metadata.get(f"{file.architecture}.context_length")
    settings = {key: value for key, value in settings.items() if key not in _LOCAL_KEYS}
    path.write_text(json.dumps(settings | {"model_max_length": limit}, indent=2) + "\n")
