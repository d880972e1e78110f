"""The interpreter: bodies, lazy weights, several inputs side by side, float64, caches in place."""

from __future__ import annotations

import gc
import textwrap
import weakref

import pytest
import torch

from optpipe.dialect.quant_linear import dequantize
from optpipe.graph import streamed
from optpipe.graph.interpreter import Interpreter
from optpipe.program import parse_program, to_fx
from optpipe.testing import tolerance
from optpipe.weights.cache import WeightCache
from optpipe.weights.store import BaseWeight, TensorWeight, Weights

TEXT = """
    optpipe.program 1
    input %ids: i64[T]
    weight @table: f32[11, 8] stored bf16
    weight @w: f32[5, 8] stored bf16
    weight @b: f32[5] stored f32
    %0: f32[T, 8] = aten.embedding(@table, %ids)
    %1: f32[T, 8] = optpipe.rms_norm(%0, None, eps=1e-05)
    %2: f32[T, 5] = aten.linear(%1, @w, @b)
    %3: f32[T, 5] = aten.to.dtype(%2, f32)
    return %3
"""


def graph(text=TEXT):
    return to_fx(parse_program(textwrap.dedent(text).strip() + "\n"))


class Counted(BaseWeight):
    """A weight that counts how often it is read, and remembers what it gave without keeping it."""

    def __init__(self, tensor):
        super().__init__(tensor.shape, tensor.dtype, tensor.numel() * tensor.element_size())
        self.tensor, self.loads, self.row_reads, self.given = tensor, 0, 0, []

    def load(self):
        self.loads += 1
        found = self.tensor.clone()
        self.given.append(weakref.ref(found))
        return found

    def rows(self, index):
        self.row_reads += 1
        return self.tensor[index]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Weights(
        {"table": Counted(make(11, 8).bfloat16()), "w": Counted(make(5, 8).bfloat16()), "b": Counted(make(5))}
    )


def expected(weights, ids, dtype=torch.float32):
    table, w, b = (weights[name].tensor.to(dtype) for name in ("table", "w", "b"))
    return torch.nn.functional.rms_norm(table[ids], (8,), None, 1e-5) @ w.T + b


@pytest.mark.parametrize("tokens", [1, 6])
def test_runs_on_values_widened_to_float32(weights, tokens):
    ids = torch.arange(tokens)
    found = Interpreter(graph(), weights).run({"ids": ids})
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected(weights, ids), **tolerance("float32"))


def test_float64_is_what_float32_stands_for_casts_included(weights):
    ids = torch.arange(6)
    found = Interpreter(graph(), weights, torch.float64).run({"ids": ids})
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected(weights, ids, torch.float64), **tolerance("float64"))


def test_a_table_is_only_read_by_rows(weights):
    Interpreter(graph(), weights).run({"ids": torch.arange(6)})
    assert weights["table"].loads == 0
    assert weights["table"].row_reads == 1


def test_several_inputs_read_every_weight_once_and_give_what_each_gives_alone(weights):
    interpreter = Interpreter(graph(), weights)
    inputs = [{"ids": torch.arange(4)}, {"ids": torch.tensor([9])}]
    together = interpreter.run_many(inputs)
    assert weights["w"].loads == 1
    assert all(one.equal(interpreter.run(given)) for one, given in zip(together, inputs, strict=True))


def test_a_cache_keeps_weights_between_runs(weights):
    interpreter = Interpreter(graph(), weights, cache=WeightCache(1 << 20))
    first, again = interpreter.run({"ids": torch.arange(4)}), interpreter.run({"ids": torch.arange(4)})
    assert first.equal(again)
    assert weights["w"].loads == 1


def test_weights_are_let_go_after_their_last_use(weights):
    alive = []

    class Watched(Interpreter):
        def _call(self, node, lane):
            if node.target is torch.ops.aten.to.dtype:
                gc.collect()
                alive.extend(ref() for ref in weights["b"].given)
            return super()._call(node, lane)

    Watched(graph(), weights).run({"ids": torch.arange(4)})
    assert alive == [None]


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_weight_is_streamed_and_gives_the_same(weights, monkeypatch, bias):
    text = TEXT if bias else TEXT.replace(", @b)", ")").replace("    weight @b: f32[5] stored f32\n", "")
    ids = torch.arange(6)
    whole = Interpreter(graph(text), weights).run({"ids": ids})
    monkeypatch.setattr(streamed, "STREAM_BYTES", 100)
    monkeypatch.setattr(streamed, "SLAB_BYTES", 2 * 8 * 4)  # two rows a slab: five rows make an uneven end
    loads = weights["w"].loads
    found = Interpreter(graph(text), weights).run({"ids": ids})
    torch.testing.assert_close(found, whole, **tolerance("float32"))
    assert weights["w"].loads == loads
    assert weights["w"].row_reads == 3


def test_caches_are_changed_in_place_and_not_cast():
    gm = graph("""
        optpipe.program 1
        input %k: f32[T, 2, 3]
        input %slots: i64[T]
        cache %k_cache.0: f32[P, 4, 2, 3]
        cache %v_cache.0: f32[P, 4, 2, 3]
        optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %slots)
        return %k
    """)
    caches = {name: torch.zeros(2, 4, 2, 3, dtype=torch.bfloat16) for name in ("k_cache.0", "v_cache.0")}
    k = torch.randn(2, 2, 3)
    Interpreter(gm, Weights()).run({"k": k, "slots": torch.tensor([5, 1]), **caches})
    assert caches["k_cache.0"].view(8, 2, 3)[[5, 1]].equal(k.bfloat16())


def test_tied_names_may_share_one_weight():
    gm = graph("""
        optpipe.program 1
        input %x: f32[T, 8]
        weight @a: f32[8] stored f32
        weight @b: f32[8] stored f32
        %0: f32[T, 8] = aten.mul.Tensor(%x, @a)
        %1: f32[T, 8] = aten.mul.Tensor(%0, @b)
        return %1
    """)
    one = TensorWeight(torch.full((8,), 3.0))
    found = Interpreter(gm, Weights({"a": one, "b": one})).run({"x": torch.ones(2, 8)})
    assert found.eq(9).all()


PACKED = """
    optpipe.program 1
    input %x: f32[T, 8]
    weight @packed: i32[9, 1] stored i32
    weight @scale: f32[9, 2] stored f32
    weight @minimum: f32[9, 2] stored f32
    weight @b: f32[9] stored f32
    %0: f32[T, 9] = optpipe.quant_linear(%x, @packed, @scale, MINIMUM, @b, bits=4, group=4)
    return %0
"""


@pytest.mark.parametrize("minimum", ["@minimum", "None"])
def test_a_large_packed_matrix_is_widened_by_rows_and_gives_the_same_bits_when_it_is_kept(
    minimum, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (9, 1), generator=generator, dtype=torch.int64).to(torch.int32)
    rest = {"scale": (9, 2), "minimum": (9, 2), "b": (9,)}
    stored = {name: TensorWeight(torch.randn(*size, generator=generator)) for name, size in rest.items()}
    weights = Weights({"packed": TensorWeight(words), **stored})
    x = torch.randn(5, 8, generator=generator)
    gm = graph(PACKED.replace("MINIMUM", minimum))
    whole = Interpreter(gm, weights).run({"x": x})
    widened = []
    monkeypatch.setattr(streamed, "STREAM_BYTES", 100)
    monkeypatch.setattr(streamed, "SLAB_BYTES", 64)
    monkeypatch.setattr(
        streamed, "dequantize", lambda *given: widened.append(len(given[0])) or dequantize(*given)
    )
    by_rows = Interpreter(gm, weights, cache=WeightCache(200)).run({"x": x})
    assert widened == [2, 2, 2, 2, 1], "the nine rows have 288 bytes, more than the cache takes"
    torch.testing.assert_close(by_rows, whole, **tolerance("float32"))
    kept = Interpreter(gm, weights, cache=WeightCache(1000)).run({"x": x})
    assert len(widened) == 5
    assert torch.equal(kept, by_rows)
