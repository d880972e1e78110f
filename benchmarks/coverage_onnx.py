"""The ONNX column of coverage.py: an artifact through ``--target onnx``, compared with the reference."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from coverage import AGREES

MOST = 1e-3  # KL divergence of a position's distribution from the reference's, nats
TOKENS = 40  # past every window of the tiny models
PIECES = ((0, 29), (29, 30), (30, TOKENS))


def in_onnx(folder: Path) -> str:
    """Whether the logits of a prompt in pieces agree with the reference's of the whole, or why not."""
    import optpipe
    from optpipe.artifact import load_artifact
    from optpipe.errors import OptpipeError
    from optpipe_kernels.onnx.target import OnnxTarget

    artifact = load_artifact(folder)
    vocabulary = int(artifact.program.outputs[0].type.shape[-1])
    tokens = np.random.default_rng(0).integers(3, min(vocabulary, 250), TOKENS)
    wanted = optpipe.load(artifact, target="reference").logits(tokens)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OPTPIPE_CACHE"] = cache
        try:
            executor = OnnxTarget().load_artifact(artifact, threads=1, slot_tokens=TOKENS)
            executor.allocate(2)
            found = np.concatenate([_piece(executor, tokens, begin, end) for begin, end in PIECES])
        except OptpipeError as error:
            return " ".join(str(error).split())
        except Exception as error:
            return " ".join(f"fails: {type(error).__name__}: {error}".split())[:240]
    worst = divergence(wanted, found)
    return AGREES if worst < MOST else f"differs: KL {worst:.2g}"


def _piece(executor: Any, tokens: Any, begin: int, end: int) -> Any:
    """Logits of some tokens, the ones before them being in slot 1."""
    from optpipe.targets.protocol import StepInputs

    at = np.arange(begin, end)
    step = StepInputs(
        token_ids=tokens[at],
        positions=at,
        slot_mapping=TOKENS + at,
        query_start=np.asarray([0, len(at)], np.int32),
        context_lens=np.asarray([end], np.int32),
        block_tables=np.asarray([[1]], np.int32),
        logit_rows=np.arange(len(at)),
    )
    return executor.submit(step).result().logits


def divergence(wanted: Any, found: Any) -> float:
    """The largest KL divergence of a row, in nats; infinite when a row is no distribution."""
    left, right = (_log_softmax(np.asarray(it, np.float64)) for it in (wanted, found))
    rows = (np.exp(left) * (left - right)).sum(-1)
    return float(rows.max()) if np.isfinite(rows).all() else float("inf")


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
