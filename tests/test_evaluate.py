"""The quality figures, against the definitions written out naively."""

from __future__ import annotations

import math

import pytest
import torch

from optpipe import evaluate as ev
from optpipe.errors import ModelError


def logits(seed: int, rows: int = 40, vocabulary: int = 11) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


TOKENS = torch.randint(0, 11, (40,), generator=torch.Generator().manual_seed(9))


def measure(mine: torch.Tensor, theirs: torch.Tensor | None) -> ev.Quality:
    return ev.evaluate(lambda _: [mine], [TOKENS], source=None if theirs is None else lambda _: [theirs])


def test_divergence_is_kl_from_the_source_in_nats() -> None:
    mine, theirs = logits(0), logits(1)
    p, q = theirs.double().softmax(-1), mine.double().softmax(-1)
    kld = (p * (p / q).log()).sum(-1)
    found = measure(mine, theirs)
    assert found.kld == pytest.approx(float(kld.mean()), rel=1e-5)
    assert found.kld_median == pytest.approx(float(kld.median()), rel=1e-5)
    assert found.kld_max == pytest.approx(float(kld.max()), rel=1e-5)
    assert found.kld_p99 == found.kld_max  # of 40 tokens the 99 % point is the largest
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.tokens == 40


def test_perplexity_is_of_the_next_token() -> None:
    mine = logits(0)
    loss = torch.nn.functional.cross_entropy(mine[:-1].double(), TOKENS[1:], reduction="none")
    found = measure(mine, None)
    assert found.perplexity == pytest.approx(math.exp(float(loss.mean())), rel=1e-5)
    assert found.perplexity_error == pytest.approx(
        found.perplexity * float(loss.std()) / math.sqrt(39), rel=1e-5
    )
    assert found.kld is None


def test_a_model_equals_itself() -> None:
    found = measure(logits(0), logits(0))
    assert found.kld == found.kld_max == 0.0
    assert found.top1 == 1.0
    assert found.perplexity == found.source_perplexity


def test_how_logits_are_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = logits(0), logits(1)
    whole = measure(mine, theirs)
    monkeypatch.setattr(ev, "chunk_rows", lambda _: 6)
    meter = ev.Meter()
    meter.update(TOKENS, mine.split(7), theirs.split([1, 2, 30, 7]))
    assert meter.result().to_dict() == pytest.approx(whole.to_dict(), rel=1e-6)


def test_some_rows_give_the_figures_of_those_rows() -> None:
    mine, theirs = logits(0), logits(1)
    rows = torch.tensor([3, 4, 17, 39])
    meter = ev.Meter()
    meter.update(TOKENS, [mine[rows]], [theirs[rows]], rows=rows)
    found = meter.result()
    loss = torch.nn.functional.cross_entropy(mine[rows[:3]].double(), TOKENS[rows[:3] + 1])
    assert found.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-5)
    kld = (theirs[rows].softmax(-1) * (theirs[rows].log_softmax(-1) - mine[rows].log_softmax(-1))).sum(-1)
    assert found.kld == pytest.approx(float(kld.mean()), rel=1e-4)
    assert found.tokens == 4


def test_impossible_tokens_of_the_source_count_nothing() -> None:
    """Padding rows of a vocabulary are minus infinity in some models."""
    mine, theirs = logits(0), logits(1)
    theirs[:, 3] = mine[:, 3] = float("-inf")
    found = ev.Meter()
    found.update(torch.zeros(40, dtype=torch.int64), [mine], [theirs])
    kld = found.result().kld
    assert kld is not None
    assert 0 < kld < math.inf


def test_tokens_the_rewritten_model_forbids_are_infinitely_far() -> None:
    mine, theirs = logits(0), logits(1)
    mine[5, 3] = float("-inf")
    meter = ev.Meter()
    meter.update(torch.zeros(40, dtype=torch.int64), [mine], [theirs])
    assert meter.result().kld_max == math.inf


def test_logits_that_are_not_finite_are_an_error() -> None:
    broken = logits(0)
    broken[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        measure(broken, logits(1))


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ModelError, match="no text"):
        ev.Meter().result()
    with pytest.raises(ModelError, match="at least two"):
        ev.windows(lambda text: [1], "x")


def test_too_few_rows_is_our_own_fault() -> None:
    with pytest.raises(AssertionError, match="39 rows for 40 positions"):
        measure(logits(0)[:39], None)


def test_windows_are_consecutive_and_whole() -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    text = "".join(chr(65 + i % 26) for i in range(103))
    cut = ev.windows(encode, text, length=10)
    assert len(cut) == 10
    assert torch.cat(cut).tolist() == encode(text)[:100]
    spread = ev.windows(encode, text, length=10, count=3)
    assert [int(w[0]) for w in spread] == [encode(text)[i] for i in (0, 30, 60)]
    assert [len(w) for w in ev.windows(encode, "short", length=10)] == [5]


def test_calibration_and_evaluation_share_no_paragraph() -> None:
    def paragraphs(text: str) -> set[str]:
        return {" ".join(part.split()) for part in text.split("\n\n")}

    calibration, evaluation = ev.calibration_text(), ev.evaluation_text()
    assert not paragraphs(calibration) & paragraphs(evaluation)
    assert len(calibration) > 150_000
    assert len(evaluation) > 50_000


def test_scratch_for_a_large_vocabulary_is_bounded() -> None:
    assert ev.chunk_rows(262_144) * 262_144 * 4 * 6 <= 64 << 20
