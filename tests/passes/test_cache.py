"""``cache``: keys and values into blocks; layers that share them share a cache."""

import pytest
import torch

from optpipe.graph.interpreter import Interpreter
from optpipe.program import from_fx
from optpipe_passes.cache import Cache

HEAD = """
    input %input_ids: i64[T]
    input %position_ids: i64[T]
    input %q: f32[T, 4, 6]
    input %k: f32[T, 2, 6]
    input %v: f32[T, 2, 5]
"""
ONE = HEAD + "%1: f32[T, 4, 5] = optpipe.attention(%q, %k, %v, scale=0.4, window=3)\nreturn %1"
TWO = (
    HEAD
    + """
    %1: f32[T, 4, 5] = optpipe.attention(%q, %k, %v, scale=0.4)
    %2: f32[T, 2, 6] = aten.tanh(%k)
    %3: f32[T, 4, 5] = optpipe.attention(%q, %2, %v, scale=0.4)
    %4: f32[T, 4, 5] = aten.add.Tensor(%1, %3)
    return %4
"""
)


def test_writes_before_it_attends(rewrite):
    made = rewrite(Cache(block=8), ONE)
    made.check("""
        CHECK: input %slot_mapping: i64[T]
        CHECK-NEXT: cache %k_cache.0: f32[P, 8, 2, 6]
        CHECK-NEXT: cache %v_cache.0: f32[P, 8, 2, 5]
        CHECK: optpipe.kv_write(%k, %v, %k_cache.0, %v_cache.0, %slot_mapping)
        CHECK-NEXT: optpipe.attention(%q, %k, %v, scale=0.4, window=3)
    """)
    assert made.rewrites == 1


@pytest.mark.parametrize("tokens", [1, 9])
def test_the_numbers_stay_and_the_cache_holds_keys_and_values(rewrite, tokens):
    made = rewrite(Cache(block=4), ONE)
    given = {"q": torch.randn(tokens, 4, 6), "k": torch.randn(tokens, 2, 6), "v": torch.randn(tokens, 2, 5)}
    given |= {"input_ids": torch.zeros(tokens).long(), "position_ids": torch.arange(tokens)}
    caches = {"k_cache.0": torch.zeros(4, 4, 2, 6), "v_cache.0": torch.zeros(4, 4, 2, 5)}
    slots = torch.arange(tokens) + 3
    old = Interpreter(made.before, made.given).run(given)
    new = Interpreter(made.after, made.weights).run({**given, **caches, "slot_mapping": slots})
    assert new.equal(old)
    assert caches["k_cache.0"].view(-1, 2, 6)[3 : 3 + tokens].equal(given["k"])
    assert caches["v_cache.0"].view(-1, 2, 5)[3 : 3 + tokens].equal(given["v"])


def test_every_layer_has_a_cache_of_its_own(rewrite):
    made = rewrite(Cache(), TWO)
    assert made.rewrites == 2
    caches = [given.value.name for given in from_fx(made.after).inputs if given.kind == "cache"]
    assert caches == ["k_cache.0", "v_cache.0", "k_cache.1", "v_cache.1"]


def test_layers_that_attend_with_the_same_keys_share_a_cache(rewrite):
    made = rewrite(Cache(), TWO.replace("%q, %2, %v", "%q, %k, %v"))
    assert made.rewrites == 1
    assert made.missed == ["its keys and values are in the cache of an earlier layer"]
    made.check("CHECK: cache %k_cache.0\nCHECK-NOT: cache %k_cache.1\nCHECK: kv_write\nCHECK-NOT: kv_write")


def test_the_same_keys_with_other_values_do_not_share(rewrite):
    text = TWO.replace("%2: f32[T, 2, 6] = aten.tanh(%k)", "%2: f32[T, 2, 5] = aten.tanh(%v)")
    assert rewrite(Cache(), text.replace("%q, %2, %v", "%q, %k, %2")).rewrites == 2


def test_a_second_run_writes_nothing_twice(rewrite):
    assert rewrite(Cache(), TWO).again() == 0


def test_a_graph_without_attention_is_left(rewrite):
    made = rewrite(Cache(), HEAD + "return %q")
    assert made.rewrites == 0
    made.check("CHECK-NOT: slot_mapping\nCHECK: return")


def test_a_batch_dimension_is_in_the_way_and_said_so(rewrite):
    text = ONE.replace("input_ids: i64[T]", "input_ids: i64[1, T]").replace(
        "position_ids: i64[T]", "position_ids: i64[1, T]"
    )
    made = rewrite(Cache(), text)
    assert made.rewrites == 0
    assert made.missed == ["the graph still has a batch dimension; run drop-batch first"]


@pytest.mark.parametrize("block", [0, -1])
def test_a_block_holds_a_token_at_least(block):
    with pytest.raises(ValueError, match=f"a block has from 1 to 1024 tokens, got {block}"):
        Cache(block=block)
