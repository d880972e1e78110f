"""Log-probabilities as the model gave them."""

from __future__ import annotations

import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_runtime.sampling import Group, Sampler, SamplingParams

from .reference import ordered
from .test_sampler import rows


@pytest.mark.parametrize("size", [1, 7, 3000, 49_152])
@pytest.mark.parametrize("top", [0, 3, 20])
def test_equals_log_softmax_in_float64(size: int, top: int) -> None:
    logits = np.round(rows(3, size), 1 if size == 7 else 6)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) + exact.max(
        1, keepdims=True
    )
    chosen = [0, size // 2, size - 1]
    for row, found in enumerate(Sampler(size).prompt_logprobs(logits, chosen, top)):
        order = ordered(logits[row])[:top]
        assert found.token == chosen[row]
        assert found.logprob == pytest.approx(exact[row, chosen[row]], abs=2e-6)
        assert [token for token, _ in found.top] == order.tolist()
        assert [value for _, value in found.top] == pytest.approx(exact[row, order].tolist(), abs=2e-6)


def test_tokens_that_cannot_come_have_minus_infinity_and_are_not_listed() -> None:
    logits = np.full((1, 5), -np.inf, dtype=np.float32)
    logits[0, 3] = 2.0
    (found,) = Sampler(5).prompt_logprobs(logits, [1], 4)
    assert found.logprob == -np.inf and found.top == ((3, 0.0),)


def test_come_before_temperature_penalties_and_masks() -> None:
    logits, sampler = rows(1, 50), Sampler(50)
    plain = sampler.prompt_logprobs(logits, [7], 5)
    params = SamplingParams(
        temperature=0.2, logprobs=5, allowed_token_ids=(7,), repetition_penalty=2.0, logit_bias={7: 9.0}
    )
    (found,) = sampler.sample(logits, [Group(sampler.state(params, [7], eos=[], seed=0))])
    assert found.logprobs == tuple(plain)


def test_do_not_depend_on_other_rows_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optpipe_runtime.sampling.sampler.INLINE", 0)
    logits = rows(9, 40_009)
    ids = list(range(9))
    alone = [Sampler(40_009).prompt_logprobs(logits[i : i + 1], [i], 3)[0] for i in ids]
    with Sampler(40_009, threads=3) as several:
        assert several.prompt_logprobs(logits, ids, 3) == alone


def test_rows_that_are_not_numbers_are_refused() -> None:
    logits = rows(1, 50)
    logits[0, 3] = np.nan
    with pytest.raises(KernelError, match="not numbers"):
        Sampler(50).prompt_logprobs(logits, [0], 1)
