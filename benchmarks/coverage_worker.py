"""One worker of coverage.py: reads model types line by line, writes an entry as JSON for each.

With --onnx it tries the ONNX export alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coverage import FUSIONS, Entry
from coverage_onnx import in_onnx

MEMORY = 8 << 30  # bytes of address space


def source_of(name: str) -> tuple[Any, str]:
    """A tiny random model as an opened model source with a tokenizer, and its class."""
    from optpipe.sources.model import parse_config
    from optpipe.sources.source import ModelSource
    from optpipe.testing import model_of, tiny_config, weights_of
    from optpipe.testing.tokenizer import save_tokenizer

    content = json.loads(tiny_config(name).to_json_string(use_diff=False))
    model = model_of(parse_config(content))
    weights = weights_of(model)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    size = sum(weight.nbytes for weight in {id(w): w for w in weights.values()}.values())
    source = ModelSource(content, weights, files, f"a tiny {name}", {"kind": "tiny"}, size, "f32")
    return source, type(model).__name__


def onnx_of(name: str) -> Entry:
    """Export one model to ONNX and say whether it agrees; optpipe's own checks are left out."""
    from optpipe import optimize

    entry = Entry(name)
    try:
        source, entry.model = source_of(name)
        with tempfile.TemporaryDirectory() as folder:
            optimize(source, output=Path(folder) / "artifact", verify=False)
            entry.onnx = in_onnx(Path(folder) / "artifact")
    except Exception as error:
        entry.reason = one_line(f"it failed: {type(error).__name__}: {error}")
    return entry


def attempt(name: str) -> Entry:
    """Optimize one model and say how far it came."""
    from optpipe import optimize
    from optpipe.errors import ContractError, OptpipeError
    from optpipe.testing.overrides import NOT_RUNNABLE

    entry = Entry(name)
    if name in NOT_RUNNABLE:
        entry.reason = NOT_RUNNABLE[name]
        return entry
    doing = ""

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal doing
        doing = what
        entry.traced |= what.startswith("passes")
        entry.rewritten |= what == "save"

    try:
        source, entry.model = source_of(name)
        with tempfile.TemporaryDirectory() as folder:
            report = optimize(source, output=Path(folder) / "artifact", progress=progress)
            entry.onnx = in_onnx(Path(folder) / "artifact")
    except OptpipeError as error:
        entry.traced |= "differs from the model" in str(error)
        entry.rewritten |= isinstance(error, ContractError)
        entry.reason = one_line(str(error))
    except Exception as error:
        entry.reason = one_line(f"{doing or 'building'} failed: {type(error).__name__}: {error}")
    else:
        entry.traced = entry.rewritten = entry.verified = True
        rows = [row for row in report.rows if row.name in FUSIONS]
        entry.rewrites = {row.name: row.rewrites for row in rows if row.rewrites}
        entry.missed = {row.name: row.missed for row in rows if row.missed}
    return entry


def one_line(text: str) -> str:
    return " ".join(text.split())[:240]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a model prints is no answer
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            entry = (onnx_of if "--onnx" in sys.argv else attempt)(line.strip())
        print(json.dumps(asdict(entry)), file=answers, flush=True)


if __name__ == "__main__":
    main()
