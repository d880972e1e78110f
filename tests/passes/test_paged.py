"""``paged``: attention over block tables, with every option it had."""

import pytest
import torch

from optpipe.errors import PassError
from optpipe.graph.interpreter import Interpreter
from optpipe.testing import tolerance
from optpipe_passes.cache import Cache
from optpipe_passes.paged import Paged

HEAD = """
    input %input_ids: i64[T]
    input %position_ids: i64[T]
    input %q: f32[T, 4, 6]
    input %k: f32[T, 2, 6]
    input %v: f32[T, 2, 5]
    input %slot_mapping: i64[T]
    cache %k_cache.0: f32[P, 4, 2, 6]
    cache %v_cache.0: f32[P, 4, 2, 5]
    weight @sinks: f32[4] stored f32
    weight @slopes: f32[4] stored f32
"""
WRITE = "optpipe.kv_write(%k, %v, %k_cache.0, %v_cache.0, %slot_mapping)\n"
TABLES = "%query_start, %context_lens, %block_tables"
PAGED = Paged(block=4)


def text(call):
    used = "".join(
        line + "\n"
        for line in HEAD.split("\n")
        if "weight" not in line or line.split("@")[1].split(":")[0] in call
    )
    return used + WRITE + f"%1: f32[T, 4, 5] = optpipe.attention({call})\nreturn %1"


OPTIONS = {
    "plain": ("%q, %k, %v, scale=0.4", "scale=0.4)"),
    "window": ("%q, %k, %v, scale=0.4, window=3", "scale=0.4, window=3)"),
    "chunk and softcap": ("%q, %k, %v, scale=0.4, chunk=4, softcap=2.0", "scale=0.4, chunk=4, softcap=2.0)"),
    "sinks": ("%q, %k, %v, None, @sinks, scale=0.4", "scale=0.4)"),
    "sinks by name": ("%q, %k, %v, sinks=@sinks, scale=0.4", "scale=0.4)"),
    "slopes": ("%q, %k, %v, None, None, @slopes, scale=0.4", "scale=0.4)"),
    "both": ("%q, %k, %v, None, @sinks, @slopes, scale=0.4, window=5", "scale=0.4, window=5)"),
}


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(("call", "options"), OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_carried_and_the_numbers_stay(rewrite, call, options, tokens):
    made = rewrite(PAGED, text(call))
    made.check(
        f"CHECK: optpipe.kv_write\nCHECK-NEXT: optpipe.paged_attention(%q, %k_cache.0, %v_cache.0, {TABLES}"
    )
    assert options in made.text
    assert made.rewrites == 1
    assert made.again() == 0
    given = {"q": torch.randn(tokens, 4, 6), "k": torch.randn(tokens, 2, 6), "v": torch.randn(tokens, 2, 5)}
    given |= {"input_ids": torch.zeros(tokens).long(), "position_ids": torch.arange(tokens)}
    caches = {
        "k_cache.0": torch.full((5, 4, 2, 6), torch.nan),
        "v_cache.0": torch.full((5, 4, 2, 5), torch.nan),
    }
    blocks = torch.tensor([[4, 0, 2]], dtype=torch.int32)
    at = torch.arange(tokens)
    step = {
        "slot_mapping": blocks[0, at // 4].long() * 4 + at % 4,
        "query_start": torch.tensor([0, tokens], dtype=torch.int32),
        "context_lens": torch.tensor([tokens], dtype=torch.int32),
        "block_tables": blocks,
    }
    old = Interpreter(made.before, made.given).run({**given, **caches, **step})
    new = Interpreter(made.after, made.weights).run({**given, **caches, **step})
    torch.testing.assert_close(new, old, **tolerance("float32"))


def test_the_new_inputs_say_what_they_are(rewrite):
    made = rewrite(PAGED, text(OPTIONS["plain"][0]))
    made.check("""
        CHECK: input %query_start: i32[B + 1]
        CHECK-NEXT: input %context_lens: i32[B]
        CHECK-NEXT: input %block_tables: i32[B, M]
    """)


def test_layers_that_share_a_cache_both_read_it(rewrite):
    both = text("%q, %k, %v, scale=0.4").replace(
        "return %1", "%2: f32[T, 4, 5] = optpipe.attention(%q, %k, %v, scale=0.5)\n"
    )
    made = rewrite(PAGED, both + "%3: f32[T, 4, 5] = aten.add.Tensor(%1, %2)\nreturn %3")
    assert made.rewrites == 2
    assert made.text.count("paged_attention(%q, %k_cache.0, %v_cache.0") == 2


def test_attention_whose_keys_no_cache_holds_is_an_error(rewrite):
    with pytest.raises(PassError, match=r"keys and values of .* that no cache holds"):
        rewrite(PAGED, text("%q, %k, %v, scale=0.4").replace(WRITE, ""))


def test_blocks_of_another_size_are_an_error(rewrite):
    with pytest.raises(PassError, match=r"paged\{block=16\} meets a cache with blocks of 4 tokens"):
        rewrite(Paged(), text("%q, %k, %v, scale=0.4"))


def test_a_graph_without_attention_is_left(rewrite):
    made = rewrite(PAGED, "input %x: f32[T]\n%1: f32[T] = aten.tanh(%x)\nreturn %1")
    assert made.rewrites == 0


def test_requires_a_cache_of_its_own_block_size():
    assert Paged(block=32).required() == (Cache(block=32),)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"num_hidden_layers": 30}, 30),
        ({"n_layer": 2}, 2),
        ({"text_config": {"num_hidden_layers": 4}, "num_hidden_layers": 9}, 4),
        ({}, None),
    ],
    ids=str,
)
def test_promises_one_attention_a_layer(config, layers):
    assert Paged().expected(config) == layers
