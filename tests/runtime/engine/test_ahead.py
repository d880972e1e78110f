"""One step ahead of the tokens: the same text, nobody's blocks lost, and really ahead."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_runtime.sampling import RowState, SamplingParams, draws_of

from ..tape import ScriptExecutor, TapeExecutor


def greedy(count, **more):
    return SamplingParams(temperature=0, max_tokens=count, **more)


def tape(**options):
    return TapeExecutor(feeds_tokens=True, **options)


def prompts(count, seed=3):
    random_ = random.Random(seed)
    return [[random_.randrange(64) for _ in range(random_.randint(1, 40))] for _ in range(count)]


def idle(engine):
    stats = engine.stats()
    assert stats.blocks_used == 0
    assert stats.running == stats.waiting == 0


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("blocks", [48, 512], ids=["preempted", "roomy"])
def test_the_text_of_many_is_the_model_s_own(make_engine, prefix_caching, blocks):
    asked = prompts(24)
    executor = tape()
    engine = make_engine(
        executor,
        prefix_caching=prefix_caching,
        num_blocks=blocks,
        max_num_seqs=8,
        max_num_batched_tokens=32,
    )
    outputs = engine.generate(asked, greedy(30))
    assert [list(it.completions[0].token_ids) for it in outputs] == [
        executor.continued(it, 30) for it in asked
    ]
    assert executor.early > 10
    assert (engine.stats().preemptions > 0) == (blocks == 48)
    idle(engine)


def test_a_single_sequence_is_ahead_in_all_but_its_first_and_last_steps(make_engine):
    executor = tape()
    (output,) = make_engine(executor).generate([[1, 2, 3]], greedy(20))
    assert list(output.completions[0].token_ids) == executor.continued([1, 2, 3], 20)
    assert (
        executor.early == 19
    )  # every step but the first was submitted before the tokens before it were known
    assert len(executor.steps) == 20  # the last was not followed: its length was known


def test_an_end_token_discards_what_was_computed_past_it(make_engine):
    answer = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    executor = ScriptExecutor({(1, 2, 3): answer}, end=63, vocab_size=64, feeds_tokens=True)
    engine = make_engine(executor, eos={63})
    (output,) = engine.generate([[1, 2, 3]], greedy(40))
    assert list(output.completions[0].token_ids) == [*answer, 63]
    assert output.completions[0].finish_reason == "stop"
    idle(engine)
    assert len(executor.steps) in (10, 11)  # the eleventh, past the end, is dropped


def test_ends_at_many_places_leave_neighbours_alone(make_engine):
    scripts = {(n, n): [20 + n] * n for n in range(1, 12)}
    executor = ScriptExecutor(scripts, end=63, vocab_size=64, feeds_tokens=True)
    engine = make_engine(executor, eos={63})
    outputs = engine.generate([list(it) for it in scripts], greedy(40))
    for (prompt, answer), output in zip(scripts.items(), outputs, strict=True):
        assert list(output.completions[0].token_ids) == [*answer, 63], prompt
    assert executor.early > 5
    idle(engine)


def test_sampled_and_scored_requests_wait_for_their_tokens(make_engine):
    for params in (
        SamplingParams(temperature=0.8, seed=1, max_tokens=12),
        greedy(12, logprobs=2),
        greedy(12, frequency_penalty=0.5),
        greedy(12, min_tokens=12),
    ):
        plain, fed = TapeExecutor(), tape()
        texts = [
            make_engine(it).generate([[1, 2, 3]], params)[0].completions[0].token_ids for it in (plain, fed)
        ]
        assert texts[0] == texts[1]
        assert fed.early == 0


def test_mixed_batches_have_the_text_of_each_alone(make_engine):
    asked = prompts(12, seed=5)
    params = [
        greedy(16) if i % 3 else SamplingParams(temperature=0.9, seed=i, max_tokens=9) for i in range(12)
    ]
    texts = []
    for executor in (TapeExecutor(), tape()):
        engine = make_engine(executor)
        handles = [engine.submit(it, one) for it, one in zip(asked, params, strict=True)]
        texts.append([it.result().completions[0].token_ids for it in handles])
        idle(engine)
    assert texts[0] == texts[1]
    assert executor.early > 0


def test_speculation_takes_its_turn_instead(make_engine):
    executor = tape(memory=2)
    engine = make_engine(executor, speculation="ngram")
    (output,) = engine.generate([[1, 2, 3, 1, 2, 3]], greedy(40))
    assert list(output.completions[0].token_ids) == executor.continued([1, 2, 3, 1, 2, 3], 40)
    assert executor.early == 0


def test_aborts_in_the_middle_leave_neighbours_alone(make_engine):
    executor = tape(cost=lambda _: 0.001)
    engine = make_engine(executor, max_num_seqs=8)
    asked = prompts(16, seed=7)
    handles = [engine.submit(it, greedy(40)) for it in asked]
    gone = handles[::3]

    def give_up():
        for handle in gone:
            handle.abort()

    thread = threading.Timer(0.03, give_up)
    thread.start()
    for prompt, handle in zip(asked, handles, strict=True):
        output = handle.result()
        tokens = list(output.completions[0].token_ids)
        assert tokens == executor.continued(prompt, 40)[: len(tokens)]
        if handle not in gone:
            assert len(tokens) == 40
    thread.join()
    assert executor.early > 5
    idle(engine)


def test_a_step_that_fails_fails_its_own_and_the_next_requests_are_served(make_engine):
    fail = threading.Event()

    def before(step):
        if fail.is_set():
            fail.clear()
            raise RuntimeError("out of order")

    executor = tape(before_step=before, cost=lambda _: 0.001)
    engine = make_engine(executor)
    handle = engine.submit([1, 2, 3], greedy(200))
    threading.Timer(0.03, fail.set).start()
    completion = handle.result().completions[0]
    assert completion.finish_reason == "error"
    assert "out of order" in str(completion.error)
    tokens = list(completion.token_ids)
    assert 0 < len(tokens) < 200
    assert tokens == executor.continued([1, 2, 3], len(tokens))
    (output,) = engine.generate([[4, 5]], greedy(10))
    assert list(output.completions[0].token_ids) == executor.continued([4, 5], 10)
    idle(engine)


def test_a_step_that_cannot_be_submitted_early_is_submitted_in_its_turn(make_engine, monkeypatch):
    executor = tape()
    submit, refused = executor.submit, []

    def refuse(step, *, logits=True):
        if int(step.token_ids.min()) < 0 and len(refused) < 3:
            refused.append(step)
            raise RuntimeError("not now")
        return submit(step, logits=logits)

    monkeypatch.setattr(executor, "submit", refuse)
    engine = make_engine(executor)
    (output,) = engine.generate([[1, 2, 3]], greedy(20))
    assert list(output.completions[0].token_ids) == executor.continued([1, 2, 3], 20)
    assert len(refused) == 3
    assert executor.early == 19 - 3
    idle(engine)


def test_choices_of_one_request_join_while_steps_are_ahead(make_engine):
    executor = tape()
    engine = make_engine(executor)
    output = engine.submit([1, 2, 3, 4, 5], SamplingParams(temperature=0, max_tokens=15, n=3)).result()
    assert [list(it.token_ids) for it in output.completions] == [executor.continued([1, 2, 3, 4, 5], 15)] * 3
    assert executor.early > 0
    idle(engine)


SAMPLED = (
    SamplingParams(temperature=0.8, seed=1, max_tokens=14),
    SamplingParams(temperature=1.3, top_k=5, seed=2, max_tokens=9),
    SamplingParams(temperature=0.9, top_p=0.7, min_p=0.05, seed=-3, max_tokens=20),
    SamplingParams(temperature=0, max_tokens=12),
)


@pytest.mark.parametrize("blocks", [48, 512], ids=["preempted", "roomy"])
def test_tokens_that_the_executor_draws_are_the_samplers(make_engine, blocks):
    asked = prompts(16, seed=8)
    params = [SAMPLED[i % 4] for i in range(16)]
    texts, executors = [], (TapeExecutor(), tape(draws_tokens=True))
    for executor in executors:
        engine = make_engine(executor, num_blocks=blocks, max_num_seqs=8, max_num_batched_tokens=32)
        handles = [engine.submit(it, one) for it, one in zip(asked, params, strict=True)]
        texts.append([it.result().completions[0].token_ids for it in handles])
        idle(engine)
    assert texts[0] == texts[1]
    assert executors[1].early > 10
    assert executors[1].drawn > 20


def test_a_drawn_sequence_is_ahead_as_a_greedy_one_is(make_engine):
    executor = tape(draws_tokens=True)
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=20)
    (output,) = make_engine(executor).generate([[1, 2, 3]], params)
    (plain,) = make_engine(TapeExecutor()).generate([[1, 2, 3]], params)
    assert output.completions[0].token_ids == plain.completions[0].token_ids
    assert (executor.early, executor.drawn, len(executor.steps)) == (19, 20, 20)


@pytest.mark.parametrize(
    ("more", "ahead"),
    [
        ({"logprobs": 2}, 11),
        ({"logit_bias": {3: 5.0, 9: -2.0}}, 11),
        ({"allowed_token_ids": tuple(range(0, 64, 3))}, 11),
        ({"min_tokens": 6, "stop_token_ids": (1, 2, 3, 4, 5)}, None),
        ({"frequency_penalty": 0.5, "repetition_penalty": 1.2}, 0),  # of the token that is under way
        ({"temperature": 0, "presence_penalty": 2.0, "logprobs": 3}, 0),
    ],
    ids=str,
)
def test_the_rules_of_requests_are_the_executors_too(make_engine, more, ahead):
    params = SamplingParams(**{"temperature": 0.8, "seed": 1, "max_tokens": 12, **more})
    texts, executors = [], (TapeExecutor(), tape(draws_tokens=True))
    for executor in executors:
        (output,) = make_engine(executor).generate([[1, 2, 3]], params)
        texts.append(output.completions[0])
    assert texts[0].token_ids == texts[1].token_ids
    assert texts[0].logprobs == texts[1].logprobs
    assert (texts[1].logprobs is not None) == ("logprobs" in more)
    count = len(texts[1].token_ids)
    assert executors[1].drawn == len(executors[1].steps) >= count
    if ahead is not None:
        assert (executors[1].early, count) == (ahead, 12)


def test_rows_with_rules_and_without_are_in_one_step(make_engine):
    params = [
        SamplingParams(temperature=0.8, seed=1, max_tokens=12),
        SamplingParams(temperature=1.1, seed=2, max_tokens=12, frequency_penalty=0.7, logprobs=1),
        SamplingParams(temperature=0, max_tokens=9, logit_bias={7: 3.0}, min_tokens=3),
        SamplingParams(temperature=0, max_tokens=12),
    ]
    texts, executors = [], (TapeExecutor(), tape(draws_tokens=True))
    for executor in executors:
        engine = make_engine(executor)
        handles = [engine.submit([1, 2, 3 + n], one) for n, one in enumerate(params)]
        texts.append([(it.token_ids, it.logprobs) for h in handles for it in h.result().completions])
    assert texts[0] == texts[1]
    assert executors[1].drawn > 10


def test_bad_words_are_kept_out_wherever_the_tokens_are_drawn(make_engine):
    states = [bad_worded(outputs) for outputs in ((), (5,), (5, 6))]
    edits = [draws_of([it]).edits for it in states]
    assert [() if it is None else tuple(it.tokens) for it in edits] == [(9,), (6, 9), (7, 9)]
    assert draws_of(states[:1], ahead=True) is None


def bad_worded(outputs):
    words = ((9,), (5, 6), (5, 6, 7), (5, 99))  # 99 is past the logits
    state = RowState(SamplingParams(), [1], vocab_size=64, eos=(), seed=0, bad_words=words)
    for token in outputs:
        state.advance(token)
    return state


def test_rows_that_are_not_numbers_fail_their_own_request(make_engine):
    class Broken(TapeExecutor):
        def row(self, tokens):
            values = super().row(tokens)
            return values * np.float32(np.nan) if tokens[0] == 9 and len(tokens) > 6 else values

    executor = Broken(feeds_tokens=True, draws_tokens=True)
    engine = make_engine(executor)
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=12)
    good, bad = engine.submit([1, 2, 3], params), engine.submit([9, 2, 3], params)
    assert len(good.result().completions[0].token_ids) == 12
    failed = bad.result().completions[0]
    assert failed.finish_reason == "error"
    assert isinstance(failed.error, KernelError)
    assert len(failed.token_ids) == 4  # those before the rows broke
    idle(engine)
