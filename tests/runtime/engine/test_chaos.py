"""Everything at once: requests of all kinds, aborts, failing steps, too few blocks, speculation, for a while.

What is not disturbed has its own answer, the scheduler holds together after every step, and in the end
nothing is left.
"""

import contextlib
import random
import threading

import pytest

import optpipe_runtime.engine.parts as parts
from optpipe.errors import CapacityError
from optpipe_runtime.core import Scheduler
from optpipe_runtime.sampling import SamplingParams

from ..tape import TapeExecutor
from .test_lifecycle import until

REQUESTS = 150


class Checked(Scheduler):
    def commit(self, *arguments):
        super().commit(*arguments)
        self.check_integrity()

    def rollback(self, *arguments):
        super().rollback(*arguments)
        self.check_integrity()


class Shaky(TapeExecutor):
    """Fails one step of sixty."""

    def __init__(self):
        super().__init__(vocab_size=16, memory=3, before_step=self._shake)
        self._random = random.Random(7)
        self.calm = False

    def _shake(self, step):
        if not self.calm and self._random.random() < 1 / 60:
            raise RuntimeError("shaken")


def client(engine, seed, found):
    """Submit, read some of it or all, go away or stay."""
    random_ = random.Random(seed)
    for _ in range(REQUESTS // 3):
        prompt = [random_.randrange(16) for _ in range(random_.choice([1, 5, 30, 80]))]
        params = SamplingParams(
            temperature=0, max_tokens=random_.choice([1, 8, 40, 100]), n=random_.choice([1, 1, 3])
        )
        patience = random_.choice([0, 1, 5, 1000])
        try:
            submission = engine.submit(
                prompt, params, priority=random_.randrange(3), salt=bytes([random_.randrange(2)]), timeout=20
            )
        except CapacityError:
            continue
        with submission:
            for count, delta in enumerate(submission):
                if count >= patience:
                    break
                del delta
        if patience == 1000 and params.n == 1:
            with contextlib.suppress(CapacityError):
                found.append((prompt, params, engine.submit(prompt, params)))


@pytest.mark.parametrize(
    "config", [{"policy": "fcfs"}, {"policy": "priority", "speculation": "ngram"}], ids=str
)
def test_chaos(make_engine, monkeypatch, config):
    monkeypatch.setattr(parts, "Scheduler", Checked)
    executor = Shaky()
    engine = make_engine(
        executor,
        num_blocks=70,
        max_num_seqs=12,
        max_waiting=40,
        max_num_batched_tokens=32,
        watermark=0.0,
        **config,
    )
    found = []
    threads = [threading.Thread(target=client, args=(engine, seed, found)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = [(prompt, params, it.result().completions[0]) for prompt, params, it in found]
    for prompt, params, completion in ends:
        assert completion.finish_reason in ("length", "error")
        if completion.finish_reason == "length":
            assert list(completion.token_ids) == executor.continued(prompt, params.max_tokens)
    until(lambda: engine.stats().blocks_used == engine.stats().running == engine.stats().waiting == 0)
    stats = engine.stats()
    assert stats.failed_steps > 3
    assert dict(stats.requests).keys() >= {"length", "abort", "error"}
    assert sum(it.finish_reason == "length" for *_, it in ends) > 10
    executor.calm = True
    again = engine.submit([1, 2], SamplingParams(temperature=0, max_tokens=20)).result()
    assert list(again.token_ids) == executor.continued([1, 2], 20)
    assert engine.health().ok
    assert engine.drain(timeout=1)
