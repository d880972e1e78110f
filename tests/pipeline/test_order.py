"""From named passes to the pipeline: what is always on, what is required, which comes first."""

from __future__ import annotations

from dataclasses import make_dataclass

import pytest

from optpipe.errors import PipelineError
from optpipe.optimizer import parse_numbers, plan
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.order import expand


def a_pass(name, stage=Stage.FUSE, **facts):
    """A pass class of that name."""
    return make_dataclass(
        name.title(),
        [],
        bases=(Pass,),
        frozen=True,
        namespace={"name": name, "stage": stage, "apply": lambda self, graph, cx: None, **facts},
    )


def order(*classes, named=None, bare=False):
    known = {cls.name: cls for cls in classes}
    chosen = [known[name]() for name in (known if named is None else named)]
    return [p.name for p in expand(chosen, known, bare=bare)]


def test_stages_come_in_their_order():
    stages = [Stage.LOWER, Stage.CACHE, Stage.QUANT, Stage.FUSE, Stage.CLEAN]
    assert order(*(a_pass(stage.name.lower(), stage) for stage in stages)) == [
        "clean",
        "fuse",
        "quant",
        "cache",
        "lower",
    ]


def test_in_one_stage_passes_come_as_written():
    assert order(a_pass("b"), a_pass("a"), a_pass("c"), named=["c", "a", "b"]) == ["c", "a", "b"]


def test_after_and_before_win_over_what_is_written():
    assert order(a_pass("a", after=("b",)), a_pass("b")) == ["b", "a"]
    assert order(a_pass("a"), a_pass("b", before=("a",))) == ["b", "a"]
    assert order(a_pass("a", after=("b",)), a_pass("b", after=("c",)), a_pass("c")) == ["c", "b", "a"]


def test_after_a_pass_that_is_not_there_means_nothing():
    assert order(a_pass("a", after=("nowhere",)), a_pass("b")) == ["a", "b"]


def test_after_a_pass_of_a_later_stage_cannot_turn_stages_round():
    assert order(a_pass("a", Stage.CLEAN, after=("b",)), a_pass("b", Stage.LOWER)) == ["a", "b"]


@pytest.mark.parametrize(
    "circle",
    [
        [a_pass("a", after=("b",)), a_pass("b", after=("a",))],
        [a_pass("a", before=("b",)), a_pass("b", before=("a",))],
        [a_pass("a", after=("c",)), a_pass("b", after=("a",)), a_pass("c", after=("b",))],
    ],
)
def test_a_circle_is_an_error_that_names_it(circle):
    names = ", ".join(cls.name for cls in circle)
    with pytest.raises(PipelineError, match=f"The passes {names} each ask to run after another of them"):
        order(*circle)


def test_always_on_passes_are_part_of_every_pipeline_but_a_bare_one():
    classes = [a_pass("tidy", Stage.CLEAN, always=True), a_pass("mine")]
    assert order(*classes, named=["mine"]) == ["tidy", "mine"]
    assert order(*classes, named=["mine"], bare=True) == ["mine"]
    assert order(*classes, named=["tidy"], bare=True) == ["tidy"]


def test_required_passes_are_pulled_in_with_theirs():
    classes = [
        a_pass("a", Stage.LOWER, requires=("b",)),
        a_pass("b", Stage.CACHE, requires=("c",)),
        a_pass("c"),
    ]
    assert order(*classes, named=["a"], bare=True) == ["c", "b", "a"]


def test_a_required_pass_that_was_named_keeps_its_options():
    assert next(p for p in plan("paged{block=8}", bare=True) if p.name == "cache").block == 8
    both = {p.name: p for p in plan("paged{block=8},cache{block=32}", bare=True)}
    assert both["cache"].block == 32


def test_a_required_pass_that_is_not_installed_is_an_error_with_the_nearest():
    needs = a_pass("a", requires=("cahce",))
    with pytest.raises(PipelineError, match="'cahce', which is not installed") as caught:
        expand([needs()], {"a": needs, "cache": a_pass("cache")})
    assert caught.value.hint == "did you mean 'cache'?"


def test_without_passes_the_pipeline_is_paged_and_what_is_always_on():
    names = [p.name for p in plan(None)]
    assert names[-2:] == ["cache", "paged"]
    assert names[:3] == ["clean", "fold-constants", "drop-batch"]
    assert [p.name for p in plan(None, bare=True)] == ["cache", "paged"]


def test_norms_are_fused_before_their_sums_and_gathered_last():
    names = [p.name for p in plan("quant")]
    assert names.index("fuse-layer-norm") < names.index("fuse-rms-norm") < names.index("fuse-add-rms-norm")
    assert names.index("fuse-add-rms-norm") < names.index("gather-logits") < names.index("quant")


def test_the_expanded_pipeline_expands_to_itself():
    from optpipe.pipeline.text import print_pipeline

    text = print_pipeline(plan("quant{bits=8},paged{block=32}"))
    assert print_pipeline(plan(text)) == text
    assert print_pipeline(plan(text, bare=True)) == text


def test_passes_may_be_given_as_objects():
    assert plan((a_pass("mine")(),), bare=True)[0].name == "mine"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", [1]), ("1-3", [1, 2, 3]), ("1-2,5", [1, 2, 5]), (" 4 , 7-7 ", [4, 7])],
)
def test_numbers_of_rewrites_are_read(text, numbers):
    assert [n for span in parse_numbers(text) for n in span] == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3", "1.5", "5-3"])
def test_other_texts_are_no_numbers(text):
    with pytest.raises(PipelineError, match="is not a rewrite's number") as caught:
        parse_numbers(text)
    assert caught.value.hint == "they are written like 1-40,44"


def test_the_summary_is_the_first_sentence():
    from optpipe_passes.paged import Paged

    assert (
        Paged.summary()
        == "Attend over a block table: prefill, chunks, decoding and verification in one operation."
    )
