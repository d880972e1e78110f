"""Greedy tokens on the GPU and by the reference on the CPU: the same wherever they are decided."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from optpipe.targets.protocol import Executor
from optpipe.targets.reference import ReferenceExecutor
from optpipe_kernels.cuda.target import CudaTarget

from .cases import Place
from .random_model import TINY, program, weights

NOISE = 8 * 2**-8  # of the logits' spread: some roundings of activations to bfloat16


def parity(place: Place, folder: Path | None, seconds: float) -> dict[str, Any]:
    """Compare the logits of every position of some sequences, as many as there is time for.

    Args:
        folder: a paged artifact of a real model; a tiny random one where there is none.
        seconds: after which no sequence is begun.

    Returns:
        positions: compared. same: with the same most likely token. decided: whose two best logits are apart
        by more than the noise. wrong: decided, and another token. error: relative, of all logits.
    """
    deadline = time.monotonic() + seconds
    reference, ours, name = _executors(place, folder)
    random = np.random.default_rng(0)
    counts = {"positions": 0, "same": 0, "decided": 0, "wrong": 0}
    squares = np.zeros(2)
    for length in (16, 64, 200) if not place.dry else (12,):
        if time.monotonic() > deadline:
            break
        tokens = random.integers(0, reference.vocab_size, length)
        exact, found = reference.logits(tokens), ours.logits(tokens)
        squares += ((found - exact) ** 2).sum(), (exact**2).sum()
        top = np.sort(exact, axis=1)[:, -2:]
        decided = top[:, 1] - top[:, 0] > NOISE * exact.std()
        same = exact.argmax(1) == found.argmax(1)
        counts["positions"] += length
        counts["same"] += int(same.sum())
        counts["decided"] += int(decided.sum())
        counts["wrong"] += int((decided & ~same).sum())
    if not counts["positions"]:
        return {"model": name, "failed": f"not compared: loading took all of {seconds:.0f} s"}
    return {"model": name, **counts, "error": float(np.sqrt(squares[0] / squares[1]))}


def _executors(place: Place, folder: Path | None) -> tuple[Executor, Executor, str]:
    import torch

    options: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
    if folder is not None:
        from optpipe.artifact import load_artifact

        artifact = load_artifact(folder)
        reference = ReferenceExecutor(artifact.graph(), artifact.weights)
        return reference, CudaTarget().load_artifact(artifact, **options), folder.name
    from optpipe.program.fx import to_fx
    from optpipe.weights.store import Weights

    made = program(TINY, 16)
    drawn = Weights(weights(made, torch.device("cpu")))
    return (
        ReferenceExecutor(to_fx(made), drawn),
        CudaTarget().load(made, drawn, **options),
        "a tiny random Llama",
    )
