"""The start of a process: from nothing to the first tokens of an 8B model, and how fast weights are read.

    python -m benchmarks.gpu.start [--dry-run]       the process that is timed: a line for every stage

Weights are made on the device, so that no file of 5 GB is needed; what reading adds is told by a file of 2 GB
that the machine's memory holds, and by the sizes of the models. The process runs twice: the first time fills
Triton's cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from optpipe.targets.protocol import StepInputs
from optpipe.weights.safetensors import safetensors_weights

from .cases import Place, Row, reason
from .random_model import TINY, Size, program, weights

ROOT = Path(__file__).parents[2]
BITS, PROMPT, MOST = 4, 100, 15.0  # the last: seconds that a start may take
STAGES = ("imports", "graph and weights", "first token", "second token, captured")
READ = 2 << 30  # bytes of the file


def rows(place: Place) -> Iterator[Row]:
    """The start without reading, and what reading the weights of an artifact adds."""
    started = f"start of a process, 8B in {BITS} bits, to the second token"
    try:
        command = [sys.executable, "-m", "benchmarks.gpu.start", *(["--dry-run"] if place.dry else [])]
        staged(command)
        found = staged(command)
        note = f"of {MOST:.0f} s; " + ", ".join(f"{name} {at:.2f} s" for name, at in found.items())
        yield Row(started, 0.0, found[STAGES[-1]], {}, None, None, note=note)
    except (RuntimeError, subprocess.SubprocessError) as error:
        yield Row(started, 0.0, reason(error), {}, None, None)
    seconds = _read(place)
    rate = place.size(READ, 1 << 20) / seconds
    more = ", ".join(f"in {bits} bits {stored(bits) / rate:.1f} s" for bits in (16, 8, 4))
    note = f"{rate / 1e9:.1f} GB/s: 8B {more}"
    yield Row("2 GB from a file to the GPU", 0.0, seconds, {}, None, None, note=note)


def stored(bits: int) -> int:
    """Bytes of an 8B model's weights in so many bits."""
    return sum(it.nbytes for it in weights(program(Size(), bits), torch.device("meta")).values())


def staged(command: list[str]) -> dict[str, float]:
    """Seconds from a process's beginning to the end of each stage.

    Raises:
        RuntimeError: it did not come to the last.
    """
    begun, found = time.perf_counter(), {}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None, "it is a pipe"
        try:
            for line in process.stdout:
                found[line.strip()] = time.perf_counter() - begun
        except BaseException:
            process.kill()
            raise
        log.seek(0)
        complaint = log.read().strip()
    if tuple(found) != STAGES:
        raise RuntimeError(complaint.splitlines()[-1] if complaint else "it said nothing")
    return found


def _read(place: Place) -> float:
    """Seconds from a safetensors file to the device, the way that an artifact's weights go."""
    from safetensors.torch import save_file

    from optpipe_kernels.cuda.weights import Uploader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        parts = {f"w{n}": torch.zeros(place.size(READ, 1 << 20) // 8, dtype=torch.uint8) for n in range(8)}
        save_file(parts, path)
        begun = time.perf_counter()
        stored = safetensors_weights(path).values()
        if place.device.type != "cuda":
            assert sum(int(it.load().sum()) for it in stored) == 0, "they are zeros"
            return time.perf_counter() - begun
        with Uploader(place.device) as uploader:
            for wait in [uploader.fetch(it) for it in stored]:
                wait()
        torch.cuda.synchronize()
        return time.perf_counter() - begun


def main() -> None:
    """The process that is timed."""
    dry = "--dry-run" in sys.argv
    device = torch.device("cpu" if dry else "cuda")
    from optpipe_kernels.cuda.target import CudaTarget

    _say(STAGES[0])
    made = program(TINY if dry else Size(), BITS)
    dtype = torch.float16 if dry else torch.bfloat16
    executor = CudaTarget().load(made, weights(made, device), device=device, dtype=dtype)  # type: ignore[arg-type]
    executor.allocate(64)
    _say(STAGES[1])
    for stage, begin, end in ((STAGES[2], 0, PROMPT), (STAGES[3], PROMPT, PROMPT + 1)):
        executor.submit(_step(begin, end, executor.cache_spec.block_size), logits=False).result()
        _say(stage)


def _step(begin: int, end: int, block: int) -> StepInputs:
    """Tokens of the one sequence, of which the last is asked for its token."""
    from optpipe.targets.steps import one_sequence

    step = one_sequence([1] * (end - begin), block, begin)  # type: ignore[arg-type]
    return StepInputs(**{**vars(step), "logit_rows": step.logit_rows[-1:]})


def _say(stage: str) -> None:
    print(stage, flush=True)


if __name__ == "__main__":
    main()
