"""A pipeline's text: what prints parses back equal, and every mistake is named with the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpipe.errors import PipelineError
from optpipe.pipeline import Pass, Stage, auto
from optpipe.pipeline.text import parse_pipeline, print_pass, print_pipeline
from optpipe.plugins import installed_plugins


@dataclass(frozen=True)
class Rich(Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "rich"
    stage: ClassVar[Stage] = Stage.FUSE

    count: int = 3
    share: float = 0.5
    on: bool = False
    word: str = "word"
    kind: Literal["none", "float"] = "none"
    bits: Literal[4, 16] | None = 16
    limit: int | None = 7
    note: str | None = "x"
    names: tuple[str, ...] = ()
    way: Literal["none", "short"] | None = auto()
    must_be_small: int = 0

    def __post_init__(self):
        if self.must_be_small > 10**6:
            raise ValueError(f"must_be_small is {self.must_be_small}")

    def apply(self, graph, cx):
        pass


@dataclass(frozen=True)
class Plain(Pass):
    """A pass without options."""

    name: ClassVar[str] = "plain"
    stage: ClassVar[Stage] = Stage.FUSE

    def apply(self, graph, cx):
        pass


KNOWN = {"rich": Rich, "plain": Plain}
WORDS = st.text(st.characters(blacklist_characters='"', blacklist_categories=("Cs", "Cc")), max_size=12)
NAMES = st.text(
    st.characters(blacklist_characters='"|', blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8
)
UNHURRIED = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)  # a busy machine
RICH = st.builds(
    Rich,
    count=st.integers(),
    share=st.floats(allow_nan=False),
    on=st.booleans(),
    word=WORDS,
    kind=st.sampled_from(["none", "float"]),
    bits=st.sampled_from([4, 16, None]),
    limit=st.none() | st.integers(),
    note=st.none() | WORDS.filter(lambda text: text.lower() != "none"),
    names=st.lists(NAMES, max_size=3).map(tuple),
    way=st.sampled_from(["none", "short", None]),
    must_be_small=st.integers(max_value=10**6),
)


@UNHURRIED
@given(RICH, st.booleans())
def test_what_prints_parses_back_equal(rich, first):
    passes = (rich, Plain()) if first else (Plain(), rich)
    assert parse_pipeline(print_pipeline(passes), KNOWN) == passes


@UNHURRIED
@given(RICH)
def test_a_text_that_was_printed_prints_the_same_again(rich):
    text = print_pipeline((rich,))
    assert print_pipeline(parse_pipeline(text, KNOWN)) == text


def test_only_what_differs_from_its_default_is_printed():
    assert print_pass(Rich()) == "rich"
    assert print_pass(Rich(count=4, on=True, bits=None)) == "rich{count=4 on=true bits=none}"
    assert print_pass(Rich(names=("a", "b.*"), word="two words")) == 'rich{word="two words" names=a|b.*}'


@pytest.mark.parametrize(
    "text",
    ["rich{count=4 on=true},plain", " rich{ count=4   on=true } , plain ", "rich{on=True count=4},plain"],
)
def test_spaces_and_order_of_options_do_not_matter(text):
    assert parse_pipeline(text, KNOWN) == (Rich(count=4, on=True), Plain())


def test_an_option_that_works_itself_out_is_written_auto():
    for text, way in (("auto", None), ("none", "none"), ("short", "short")):
        (found,) = parse_pipeline(f"rich{{way={text}}}", KNOWN)
        assert found.way == way
    assert print_pipeline(parse_pipeline("rich{way=auto}", KNOWN)) == "rich"


def test_a_dash_in_an_option_is_an_underscore():
    assert parse_pipeline("rich{must-be-small=4}", KNOWN) == (Rich(must_be_small=4),)


def test_the_built_in_passes_print_and_parse():
    known = {name: provided.value for name, provided in installed_plugins().passes().items()}
    for text in (
        "quant{bits=8 head=4 skip=*.mlp|lm_head},paged{block=32}",
        "quant{group=-1 zero=none algorithm=gptq}",
    ):
        passes = parse_pipeline(text, known)
        assert parse_pipeline(print_pipeline(passes), known) == passes
    default = tuple(cls() for cls in known.values())
    assert parse_pipeline(print_pipeline(default), known) == default


MISTAKES = {
    "rihc": ("There is no pass named 'rihc'.", "did you mean 'rich'?"),
    "zzz": ("There is no pass named 'zzz'.", "known: plain, rich"),
    "rich{cuont=4}": ("The pass 'rich' has no option 'cuont'.", "did you mean 'count'?"),
    "rich{zzz=4}": ("The pass 'rich' has no option 'zzz'.", "its options are known: bits, count,"),
    "plain{a=1}": ("The pass 'plain' has no option 'a'.", "it has no options"),
    "rich{count=four}": ("The option 'count' of 'rich' must be an integer, got 'four'.", None),
    "rich{count=1.5}": ("The option 'count' of 'rich' must be an integer, got '1.5'.", None),
    "rich{share=x}": ("The option 'share' of 'rich' must be a number, got 'x'.", None),
    "rich{on=1}": ("The option 'on' of 'rich' must be true or false, got '1'.", None),
    "rich{kind=int}": ("The option 'kind' of 'rich' must be none or float, got 'int'.", None),
    "rich{bits=5}": ("The option 'bits' of 'rich' must be 4 or 16 or none, got '5'.", None),
    "rich{limit=x}": ("The option 'limit' of 'rich' must be an integer or none, got 'x'.", None),
    "rich{must_be_small=9999999}": ("The pass 'rich' refuses its options: must_be_small is 9999999.", None),
    "rich{count}": ("The options of 'rich' cannot be read at 'count'.", "key=value"),
    "rich{count=1,on=true}": ("The option 'count' of 'rich' must be an integer, got '1,on=true'.", None),
    "rich{count=1 count=2}": ("The option 'count' of 'rich' is given twice.", None),
    "rich,plain,rich": ("The pass 'rich' is named twice.", None),
    "rich,,plain": ("The pipeline cannot be read at ',plain'.", "quant{bits=4 group=32},paged"),
    "rich,": ("The pipeline cannot be read at 'rich,'.", "quant{bits=4 group=32},paged"),
    "rich{count=1": ("The pipeline cannot be read at 'rich{count=1'.", "quant{bits=4 group=32},paged"),
    "rich plain": ("The pipeline cannot be read at 'rich plain'.", "quant{bits=4 group=32},paged"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_the_way_out(text):
    message, hint = MISTAKES[text]
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, KNOWN)
    assert caught.value.message == message
    assert (caught.value.hint is None) if hint is None else (hint in str(caught.value.hint))


def test_nothing_is_a_pipeline():
    assert parse_pipeline("  ", KNOWN) == ()
