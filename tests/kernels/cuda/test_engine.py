"""The engine over the cuda target: one step ahead, captured, preempted, the text of each request alone."""

from __future__ import annotations

import numpy as np

from optpipe_kernels.cuda.target import CudaTarget
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams


def test_many_requests_have_the_text_that_each_has_alone(tiny, recorder):
    executor = CudaTarget().load_artifact(
        tiny("llama"), device="cpu", kernels="bodies", recorder=recorder, dtype="f32"
    )
    random = np.random.default_rng(1)
    asked = [random.integers(0, 250, length).tolist() for length in (3, 17, 40, 5, 33, 9)]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)

    def text(prompt):
        tokens = list(prompt)
        for _ in range(24):
            tokens.append(int(executor.logits(np.asarray(tokens))[-1].argmax()))
        return tokens[len(prompt) :]

    alone = [text(it) for it in asked]
    submitted, early = executor.submit, []

    def submit(step, *, logits=True):
        early.append(int(step.token_ids.min()) < 0)
        return submitted(step, logits=logits)

    executor.submit = submit
    config = EngineConfig(num_blocks=8, max_num_seqs=4, max_num_batched_tokens=32, seed=1)
    with Engine.over(executor, None, config=config, eos=()) as engine:
        found = [list(it.completions[0].token_ids) for it in engine.generate(asked, greedy)]
        stats = engine.stats()
    assert found == alone
    assert stats.preemptions > 0
    assert sum(early) > 10
    assert recorder.replayed > 20
    assert stats.blocks_used == 0
