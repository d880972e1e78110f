"""Tokenizers that are not saved as tokenizer.json, made into one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from optpipe.errors import ModelError
from optpipe.sources.model import first_line
from optpipe.sources.source import Content, OpenOptions


def slow_to_fast(folder: Path, options: OpenOptions) -> dict[str, Content]:
    """tokenizer.json and what goes with it, from a folder that only has a vocabulary or sentencepiece file.

    Raises:
        ModelError: transformers cannot convert it.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), use_fast=True, trust_remote_code=options.trust_remote_code, local_files_only=True
            )
            tokenizer.save_pretrained(scratch)
        except Exception as error:  # tokenizer classes raise anything on files they do not expect
            raise ModelError(
                f"The tokenizer in '{folder}' cannot be converted to a tokenizer.json: {first_line(error)}"
            ) from error
        made = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir()) if path.is_file()}
    if "tokenizer.json" not in made:
        raise ModelError(
            f"The tokenizer in '{folder}' has no fast form, and only tokenizer.json is served.",
            hint="save it with a fast tokenizer class",
        )
    return {name: content for name, content in made.items() if name.endswith((".json", ".jinja"))}
