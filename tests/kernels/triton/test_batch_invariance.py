"""One row's bits in any batch, over the tiles that ship; and the fastest way where bits may change.

Dots are chains of instructions here, as a GPU's are (``chained_dots``): what then moves a bit is the order in
which a kernel adds. That the instructions themselves keep the promise, the tests marked ``gpu`` say.
"""

from __future__ import annotations

import pytest
import torch

from optpipe_kernels.triton import quant_linear as quantized
from optpipe_kernels.triton.attention_work import Shape, attention_tiles
from optpipe_kernels.triton.dense_linear import dense_linear
from optpipe_kernels.triton.experts import moe
from optpipe_kernels.triton.greedy_head import greedy_head
from optpipe_kernels.triton.quant_gemv import gemv_kernel
from optpipe_kernels.triton.quant_linear import launches, meta_weight, quant_gate_up, quant_linear
from optpipe_kernels.triton.quant_tile import splits, tile_kernel
from optpipe_kernels.triton.row_wise import quantize, row_wise_linear
from optpipe_kernels.triton.tiles import CAPABILITIES, tile

from .quant_cases import case

KEYS = [f"sm_{capability}" for capability in CAPABILITIES]
COUNTS = (1, 17, 33, 65)  # a row of every tile but the largest, which the whole batch takes
WHOLE = 130
ROWS, COLUMNS = 40, 1024  # of a weight whose sums are cut into runs


def the_same_in_any_batch(function, x):
    whole = function(x)
    for count in COUNTS:
        assert torch.equal(function(x[:count]), whole[:count]), count


@pytest.mark.usefixtures("chained_dots")
class TestRows:
    def test_of_a_dense_layer(self):
        x, weight = torch.randn(WHOLE, COLUMNS), torch.randn(ROWS, COLUMNS)
        assert splits(ROWS, COLUMNS) > 1
        the_same_in_any_batch(lambda rows: dense_linear(rows, weight), x)

    @pytest.mark.parametrize("grid", [(4, 32, True), (8, -1, False)], ids=str)
    @pytest.mark.parametrize("kind", ["", "silu"])
    def test_of_a_quantized_layer(self, grid, kind):
        weight = case(ROWS, COLUMNS, *grid, torch.float16).weight
        x = torch.randn(WHOLE, COLUMNS).half()
        if kind:
            the_same_in_any_batch(lambda rows: quant_gate_up(rows, weight, kind=kind), x)
        else:
            the_same_in_any_batch(lambda rows: quant_linear(rows, weight), x)

    @pytest.mark.parametrize("kind", ["int8", "fp8"])
    def test_of_a_layer_of_8_bits(self, kind):
        weight = quantize(torch.randn(ROWS, 256), kind)
        x = torch.randn(WHOLE, 256)
        the_same_in_any_batch(
            lambda rows: row_wise_linear(*quantize(rows, kind), *weight, dtype=torch.float32), x
        )

    def test_of_routed_experts(self):
        x, gate_up, down = torch.randn(70, 160), torch.randn(2, 80, 160), torch.randn(2, 160, 40)
        ids, weights = torch.randint(0, 2, (70, 1)), torch.rand(70, 1)
        whole = moe(x, ids, weights, gate_up, down, kind="silu")
        for count in (1, 20):
            part = moe(x[:count], ids[:count], weights[:count], gate_up, down, kind="silu")
            assert torch.equal(part, whole[:count]), count

    def test_of_a_head_whose_tokens_are_the_argmax_of_the_logits(self):
        x, head = torch.randn(WHOLE, COLUMNS), torch.randn(ROWS, COLUMNS)
        head[1::2] = head[::2] * (1 + 2**-23)  # so near that another order of sums would choose another
        tokens = greedy_head(x, head)
        assert torch.equal(tokens, dense_linear(x, head, dtype=torch.float32).argmax(1))
        the_same_in_any_batch(lambda rows: greedy_head(rows, head), x)


@pytest.mark.parametrize("key", KEYS)
def test_runs_are_cut_at_the_same_inputs_on_every_row_of_a_table(key):
    counts = (1, 17, 33, 65, 129, 5000)
    dense = {tile("dense_linear", key, rows=it).constants["BLOCK_K"] for it in counts}
    heads = {tile("greedy_head", key, quantized=0, rows=it).constants["BLOCK_K"] for it in counts}
    assert len(dense) == 1
    assert heads == dense  # the head's sums are the layer's
    assert len({tile("row_wise", key, rows=it).constants["BLOCK_K"] for it in counts}) == 1


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["", "silu"])
def test_the_way_of_each_number_of_rows_where_bits_may_change(key, kind):
    weight = meta_weight(4096, 4096, 4, 32, True)

    def taken(count, invariant):
        x = torch.empty(count, 4096, dtype=torch.bfloat16, device="meta")
        out = x.new_empty(count, 2048 if kind else 4096)
        made = launches(x, weight, out, kind=kind, batch_invariant=invariant, key=key)
        return made[0].kernel, made[0].constants.get("SPLITS", 1), len(made)

    runs = splits(4096, 4096)
    assert runs > 1
    assert [taken(count, True) for count in (1, 16, 64, 128, 512)] == (
        [(tile_kernel, runs, 2)] * 3 + [(tile_kernel, runs, 1)] * 2
    )
    assert [taken(count, False) for count in (1, 16, 64, 128, 512)] == [
        (gemv_kernel, 1, 2),  # no tensor cores for one row
        (tile_kernel, runs, 2),  # few tiles: runs fill the chip
        (tile_kernel, runs, 2),
        (tile_kernel, 1, 1),  # many: one chain
        (tile_kernel, 1, 1),
    ]


def test_many_rows_are_multiplied_by_torch_where_bits_may_change(monkeypatch):
    seen = []
    monkeypatch.setattr(quantized, "_through_scratch", lambda x, *_: seen.append(len(x)))
    monkeypatch.setattr(quantized, "launches", lambda *_, **__: ())
    weight = case(16, 128, 4, 32, True, torch.float16).weight
    for count in (1, quantized.SCRATCH_ROWS - 1, quantized.SCRATCH_ROWS):
        for invariant in (True, False):
            quant_linear(torch.zeros(count, 128).half(), weight, batch_invariant=invariant)
    assert seen == [quantized.SCRATCH_ROWS]


@pytest.mark.parametrize("key", KEYS)
def test_attention_takes_tiles_of_its_own_where_bits_may_change(key):
    shape = Shape(32, 8, 128, 128)
    fast, same = (attention_tiles(shape, key, batch_invariant=it) for it in (False, True))
    assert fast.decode.constants["BLOCK_M"] == 16 < same.decode.constants["BLOCK_M"]
