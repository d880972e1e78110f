"""Chat templates: what they get, how they fail, and what they may not do."""

import re
import sys
from pathlib import Path

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
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
    ],
    ids=["recursion", "syntax", "undefined", "division"],
)
def test_broken_templates_are_refused(template):
    with pytest.raises(RequestError, match="refuses the messages"):
        render(template)


def grown(start, step, rounds=60):
    """A template that replaces a value by what it makes of it, again and again."""
    return (
        f"{{% set n = namespace(a={start}) %}}{{% for i in range({rounds}) %}}"
        f"{{% set n.a = {step} %}}{{% endfor %}}{{{{ n.a | length }}}}"
    )


LONG = "{% set long = 'x,' * 9000000 %}"
HOSTILE = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop(range(100000)) if a < 3 }}{% endfor %}",
    "recursive macro": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(60) }}",
    "product": "{{ 'x' * 1000000000 }}",
    "product of a list": "{{ [0] * 1000000000 }}",
    "power": "{{ 10 ** 100000000 }}",
    "product of numbers": grown("10", "n.a * n.a"),
    "sum": grown("'xxxx'", "n.a + n.a"),
    "sum of lists": grown("['xxxx']", "n.a + n.a"),
    "concatenation": grown("'xxxx'", "n.a ~ n.a"),
    "join": grown("'xxxx'", "[n.a, n.a] | join"),
    "join of characters": grown("'xxxx'", "n.a | join(n.a)"),
    "str.join": grown("'xxxx'", "''.join([n.a, n.a])"),
    "%": grown("'xxxx'", "'%s%s' % (n.a, n.a)"),
    "format": grown("'xxxx'", "'%s%s' | format(n.a, n.a)"),
    "str.format": grown("'xxxx'", "'{0}{0}'.format(n.a)"),
    "replace": grown("'xxxx'", "n.a | replace('x', 'xx')"),
    "replace nothing": grown("'xxxx'", "n.a | replace('', n.a)"),
    "str.replace": grown("'xxxx'", "n.a.replace('x', 'xx')"),
    "tojson": grown("['xxxx']", "[n.a | tojson, n.a | tojson]"),
    "nested lists": grown("['xxxx']", "[n.a, n.a]"),
    "nested dicts": grown("['xxxx']", "dict(a=n.a, b=n.a)") + "{{ n.a }}",
    "nested tuples": grown("('xxxx',)", "(n.a, n.a)"),
    "block": "{% set x %}xxxx{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + grown("'xxxx'", "m(n.a)"),
    "output": "{% for a in range(5000) %}{{ 'x' * 90000 }}{% endfor %}",
    "center": "{{ 'x' | center(1000000000) }}",
    "str.center": "{{ 'x'.center(1000000000) }}",
    "str.zfill": "{{ 'x'.zfill(1000000000) }}",
    "% width": "{{ '%99999999d' % 1 }}",
    "format width": "{{ '{:99999999d}'.format(1) }}",
    "format_map width": "{{ '{a:99999999d}'.format_map({'a': 1}) }}",
    "width of a width": "{{ '{:{}d}'.format(1, 99999999) }}",
    "indent": "{{ ('x\\n' * 1000000) | indent(90000) }}",
    "indent by text": "{{ ('x\\n' * 1000000) | indent('x' * 1000000) }}",
    "tojson indent": "{{ ([1] * 100000) | tojson(indent=10000) }}",
    "tojson separators": "{{ ([1] * 1000) | tojson(separators=('x' * 1000000, '')) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000, 0) | list }}",
    "sum of a list of lists": "{{ ([[1] * 1000] * 10000) | sum(start=[]) }}",
    "list of characters": LONG + "{{ long | list | length }}",
    "split": LONG + "{{ long.split(',') | length }}",
    "escape": "{{ ('<' * 40000000) | escape }}",
    "searching": LONG + "{% for i in range(90000) %}{% if 'zz' in long %}{% endif %}{% endfor %}",
    "slicing": LONG + "{% for i in range(90000) %}{% set y = long[1:] %}{% endfor %}",
    "many": LONG + "{% for c in long | map('upper') %}{% endfor %}",
    "kept": grown("[]", "[n.a, 'x' * 99999]", 9000),
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped(template):
    with pytest.raises(RequestError, match=r"The chat template was stopped: [^.]*\.$"):
        render(template)


RENDER_ALL = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from test_chat import HOSTILE, RequestError, render
slowest = 0
for template in HOSTILE.values() if sys.argv[2] == "hostile" else ["{{ 1 }}"]:
    begun = time.process_time()
    try:
        render(template)
    except RequestError:
        pass
    slowest = max(slowest, time.process_time() - begun)
print(slowest)
"""


def test_hostile_templates_take_little_memory_and_time(run_measured):
    command = [sys.executable, "-c", RENDER_ALL, str(Path(__file__).parent)]
    usual, hostile = (run_measured([*command, which]) for which in ("usual", "hostile"))
    assert hostile.returncode == 0, hostile.stderr
    assert hostile.peak_bytes - usual.peak_bytes < 100e6
    assert float(hostile.stdout) < 3, "a second on an idle machine"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ('\\t' * 1000).expandtabs(10000000) }}",
        "{{ (1).to_bytes(1000000000) }}",
        "{{ 'x'.encode() }}",
        "{{ lipsum(1000000) }}",
        "{{ 'x' | wordwrap(1) }}",
    ],
)
def test_what_no_template_needs_is_not_there(template):
    with pytest.raises(RequestError, match="refuses the messages"):
        render(template)


def test_a_long_conversation_is_no_attack():
    template = (
        "{% set n = namespace(text='') %}{% for m in messages %}{% set n.text = n.text ~ m.content | trim %}"
        "{% if m.role == 'user' and loop.index0 % 2 == 0 %}{{ '<user>' + m['content'] | trim + '\n' }}"
        "{% else %}{{ m.content.strip().split('</think>')[-1] | replace('a', 'b') }}{% endif %}{% endfor %}"
    )
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": f" {i} " + "word " * 1000} for i in range(100)]
    text = render_chat(tokenizer(template), messages)
    assert len(text) > 100 * 5000


def test_an_error_of_the_template_ends_with_one_full_stop():
    with pytest.raises(RequestError) as caught:
        render("{{ raise_exception('Roles must alternate.') }}")
    assert caught.value.message == "The chat template refuses the messages: Roles must alternate."


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
