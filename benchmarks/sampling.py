"""What choosing a step's tokens costs, beside reading its logits once.

    python benchmarks/sampling.py                     the table
    python benchmarks/sampling.py --vocab 262144 --batch 32 --threads 2
    python benchmarks/sampling.py --write             into benchmarks/results/sampling.md and .json too
    python benchmarks/sampling.py --check             exit 1 when a limit is passed

"best" is the fastest of the repeats and "median" their median, in wall-clock time; "cpu" is the processor's
time of a step over all threads, which other programs on the machine change little: on two free cores a step
takes about half of it. "bound" is what reading the logits takes: the largest value of every row by one
thread, divided by the threads. Logits are random, of standard deviation 1 ("flat", where top-p keeps most of
the vocabulary) and 4 ("peaked", nearer to a model's).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from report import write

from optpipe_runtime.sampling import Group, Sampler, SamplingParams

CASES = {
    "greedy, ids from the executor": {"temperature": 0.0},
    "greedy, from logits": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-k 50, top-p 0.95": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "min-p 0.1": {"temperature": 0.8, "min_p": 0.1},
    "penalties, top-k 50": {"temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1},
    "top-k 50, 5 logprobs": {"temperature": 0.8, "top_k": 50, "logprobs": 5},
}
COLUMNS = (
    '"best" is the fastest step and "median" the median, in wall-clock time; "cpu" is the processor time of '
    'a step over all threads; "bound" is what reading the logits once takes. Logits are random, of standard '
    'deviation 1 ("flat", where top-p keeps most of the vocabulary) and 4 ("peaked", nearer to a model).'
)
# The targets, in ms, for 32 sequences over 262,144 tokens on two cores.
GREEDY_MS, SAMPLED_MS = 2.0, 10.0
LIMITED = list(CASES)[:6]
PAUSE = 0.01  # seconds between steps: other programs get their turn then, and not amid a step


@dataclass(frozen=True)
class Figure:
    """Milliseconds a step."""

    case: str
    shape: str
    vocab: int
    batch: int
    threads: int
    best: float
    median: float
    cpu: float
    bound: float


def timed(step: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Best and median wall-clock time and mean processor time of a step, in ms."""
    step()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    processor = time.process_time()
    while time.perf_counter() < until or len(taken) < 5:
        begun = time.perf_counter()
        step()
        taken.append(1e3 * (time.perf_counter() - begun))
        time.sleep(PAUSE)
    processor = 1e3 * (time.process_time() - processor) / len(taken)
    return min(taken), statistics.median(taken), processor


def measure(
    case: str, shape: str, logits: NDArray[np.float32], sampler: Sampler, threads: int, seconds: float
) -> Figure:
    batch, vocab = logits.shape
    params = SamplingParams(**CASES[case])  # type: ignore[arg-type]
    groups = [Group(sampler.state(params, range(100), eos=[], seed=i)) for i in range(batch)]
    if case.endswith("executor"):
        ids = logits.argmax(axis=1)
        best, median, processor = timed(lambda: sampler.sample_greedy(ids, groups), seconds)
        return Figure(case, shape, vocab, batch, threads, best, median, processor, 0.0)
    bound = timed(lambda: [row.max() for row in logits], seconds / 4)[0] / min(threads, batch)
    best, median, processor = timed(lambda: sampler.sample(logits, groups), seconds)
    return Figure(case, shape, vocab, batch, threads, best, median, processor, bound)


def figures(vocabs: list[int], batches: list[int], threads: int, seconds: float) -> list[Figure]:
    found = []
    print(f"{'case':32}{'logits':8}{'V':>8}{'B':>4}{'best':>9}{'median':>9}{'cpu':>9}{'bound':>9}  ms")
    for vocab in vocabs:
        normal = np.random.default_rng(0).standard_normal((max(batches), vocab), dtype=np.float32)
        with Sampler(vocab, threads=threads) as sampler:
            for batch in batches:
                for shape, spread in (("flat", 1), ("peaked", 4)):
                    logits = normal[:batch] * np.float32(spread)
                    for case in CASES:
                        one = measure(case, shape, logits, sampler, threads, seconds)
                        print(
                            f"{case:32}{shape:8}{vocab:8}{batch:4}{one.best:9.3f}{one.median:9.3f}"
                            f"{one.cpu:9.3f}{one.bound:9.3f}",
                            flush=True,
                        )
                        found.append(one)
    return found


def broken(found: list[Figure]) -> list[str]:
    """What is over its limit, judged by the best step."""
    sentences = []
    for one in found:
        limit = GREEDY_MS if one.case.startswith("greedy") else SAMPLED_MS
        if one.case in LIMITED and one.best > limit:
            sentences.append(
                f"{one.case} ({one.shape}, V={one.vocab}, B={one.batch}): {one.best:.2f} ms > {limit} ms"
            )
    return sentences


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[49_152, 262_144])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="a case")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    found = figures(given.vocab, given.batch, given.threads, given.seconds)
    if given.write:
        note = (
            f"Milliseconds a step, {given.threads} threads. Targets for 32 sequences over 262,144 tokens: "
            f"{GREEDY_MS:g} ms greedy, {SAMPLED_MS:g} ms with temperature, top-k and top-p. " + COLUMNS
        )
        tables = {
            f"{batch} sequences, {vocab} tokens": [
                {
                    "case": it.case, "logits": it.shape, "best": it.best, "median": it.median, "cpu": it.cpu,
                    "bound": it.bound,
                }
                for it in found
                if (it.batch, it.vocab) == (batch, vocab)
            ]
            for vocab in given.vocab
            for batch in given.batch
        }  # fmt: skip
        write("sampling", "What choosing tokens costs", "python benchmarks/sampling.py --write", note, tables)
    wrong = broken(found) if given.check else []
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
