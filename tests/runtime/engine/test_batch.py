"""A plan as arrays, against the same arrays made the slow way."""

import random

import numpy as np

from optpipe_runtime.core import Scheduler, SchedulerConfig, Sequence
from optpipe_runtime.core.step_plan import Outcome
from optpipe_runtime.engine.batch import Batch


def slow(plan, size):
    tokens, positions, slots, starts, lens, rows = [], [], [], [0], [], []
    for step in plan.steps:
        for offset, token in enumerate(step.tokens):
            place = step.begin + offset
            tokens.append(token)
            positions.append(place)
            slots.append(step.sequence.blocks[place // size] * size + place % size)
        starts.append(len(tokens))
        lens.append(step.begin + len(step.tokens))
        rows += range(len(tokens) - step.rows, len(tokens))
    return tokens, positions, slots, starts, lens, rows


def test_every_step_of_a_busy_scheduler():
    """Drafts that come and go, preemptions, prefix hits, chunks, ends."""
    random_ = random.Random(0)
    size, most = 4, 6
    config = SchedulerConfig(num_blocks=40, block_size=size, max_num_seqs=most, max_num_batched_tokens=24)
    scheduler, batch = Scheduler(config), Batch(size, most, 40)
    added = steps = drafted = preempted = 0
    alive = {}
    while steps < 1500:
        if len(alive) < 9:
            prompt = [random_.randrange(9) for _ in range(random_.randint(1, 60))]
            alive[added] = Sequence(
                added, prompt, max_len=len(prompt) + random_.randint(1, 50), arrival=added
            )
            scheduler.add(alive[added])
            added += 1
        drafts = {it.id: [1] * random_.randint(0, 6) for it in scheduler.decoding()}
        plan = scheduler.plan(drafts)
        inputs = batch.build(plan)
        tokens, positions, slots, starts, lens, rows = slow(plan, size)
        for name, expected in {
            "token_ids": tokens,
            "positions": positions,
            "slot_mapping": slots,
            "query_start": starts,
            "context_lens": lens,
            "logit_rows": rows,
        }.items():
            assert getattr(inputs, name).tolist() == expected, name
        for table, step in zip(inputs.block_tables.tolist(), plan.steps, strict=True):
            assert table[: len(step.sequence.blocks)] == step.sequence.blocks
        outcomes = []
        for step in plan.steps:
            kept = step.tokens[len(step.tokens) - step.drafts :][: random_.randint(0, step.drafts)]
            finished = random_.random() < 0.02
            outcomes.append(Outcome((*kept, 5) if step.samples else (), finished and step.samples))
        scheduler.commit(plan, outcomes)
        steps += 1
        drafted += sum(step.drafts for step in plan.steps)
        preempted += len(plan.preempted)
        for sequence in [it for it in alive.values() if it.status.value == "finished"]:
            batch.forget(sequence.id)
            del alive[sequence.id]
    assert drafted > 100 and preempted > 10


def test_dtypes_are_the_protocol_s():
    scheduler = Scheduler(SchedulerConfig(num_blocks=8, block_size=4))
    scheduler.add(Sequence(0, [1, 2, 3, 4, 5], max_len=8))
    inputs = Batch(4, 2, 8).build(scheduler.plan())
    found = {name: getattr(inputs, name).dtype for name in inputs.__dataclass_fields__}
    wide = {"token_ids", "positions", "slot_mapping", "logit_rows"}
    assert found == {name: np.dtype(np.int64 if name in wide else np.int32) for name in found}
    assert inputs.block_tables.shape == (1, 2)
