"""Chat templates: what they get, how they fail, and what they may not do."""

import re

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from optpipe.errors import RequestError
from optpipe_runtime.chat import render_chat
from optpipe_runtime.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]


def tokenizer(template: str | None) -> Tokenizer:
    backend = Backend(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, template)


def render(template: str, **variables: object) -> str:
    return render_chat(tokenizer(template), HELLO, **variables)


def test_gives_messages_special_tokens_and_the_generation_prompt():
    template = (
        "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message['content'] }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert render(template) == "<s><user>hello</s><assistant>"


def test_trims_blocks_as_transformers_does():
    assert render("{% if true %}\n  x\n{% endif %}\n") == "  x\n"


def test_loop_variables_survive_the_bound():
    template = "{% for m in 'abc' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}"
    assert render(template) == "1/3,2/3,3/3"


def test_break_and_generation_tags():
    template = "{% generation %}{% for m in [1, 2, 3] %}{{ m }}{% break %}{% endfor %}{% endgeneration %}"
    assert render(template) == "1"


def test_tojson_keeps_letters_and_makes_no_html():
    assert render("{{ {'a': 'é<b>'} | tojson }}") == '{"a": "é<b>"}'


def test_strftime_now():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


def test_more_variables_reach_the_template():
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"


def test_raise_exception_is_a_request_error_with_its_message():
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_no_template_is_a_request_error_that_says_raw():
    with pytest.raises(RequestError) as caught:
        render_chat(tokenizer(None), HELLO)
    assert "--raw" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 10 ** 100000000 }}",
        "{{ '%99999999d' % 1 }}",
        "{% for a in range(5000) %}{{ 'x' * 9000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
    ],
    ids=["loops", "text", "list", "power", "width", "output", "recursion", "syntax", "undefined", "division"],
)
def test_hostile_and_broken_templates_are_stopped(template):
    with pytest.raises(RequestError):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_holds(template):
    messages = [dict(HELLO[0])]
    try:
        text = render_chat(tokenizer(template), messages)
    except RequestError:
        text = ""
    assert text == ""
    assert messages == HELLO
