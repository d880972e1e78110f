from __future__ import annotations

import pytest
import torch

from optpipe.dialect import moe as plain
from optpipe.dialect import quant_moe as quantized
from optpipe_kernels.triton import routing
from optpipe_kernels.triton.expert_weights import pack
from optpipe_kernels.triton.experts import moe, packed_moe, quant_moe


def near(found, expected, share):
    """Sums whose factors were rounded to the activations' type: the error is a part of the spread."""
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < share, f"{error = }"


SHARE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def operands(tokens, slots, count, width, inner, place, *, halves=2, bias=False):
    x = torch.randn(tokens, width, **place)
    experts = torch.stack([torch.randperm(count)[:slots] for _ in range(tokens)]).to(x.device)
    weights = torch.rand(tokens, slots, device=x.device)
    gate_up = torch.randn(count, halves * inner, width, **place) / width**0.5
    down = torch.randn(count, width, inner, **place) / inner**0.5
    biases = (None, None)
    if bias:
        biases = (torch.randn(count, halves * inner, **place), torch.randn(count, width, **place))
    return x, experts, weights, gate_up, down, *biases


@pytest.mark.parametrize(
    ("tokens", "slots", "count", "width", "inner"),
    [(1, 2, 4, 24, 70), (37, 3, 5, 72, 20), (70, 1, 1, 16, 16)],
)
def test_equals_the_dialect(place, tokens, slots, count, width, inner):
    given = operands(tokens, slots, count, width, inner, place)
    near(moe(*given, kind="silu"), plain.moe(*given, kind="silu"), SHARE[given[0].dtype])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_clamps_biases_and_layouts(place, interleaved, transposed):
    x, experts, weights, gate_up, down, *biases = operands(9, 2, 4, 40, 24, place, bias=True)
    if transposed:
        gate_up, down = gate_up.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
    how = {"kind": "silu", "interleaved": interleaved, "transposed": transposed}
    how |= {"limit": 0.7, "alpha": 1.702, "up_offset": 1.0}
    given = (x, experts, weights, gate_up, down, *biases)
    expected = plain.moe(*given, **how)
    near(moe(*given, **how), expected, SHARE[x.dtype])


def test_experts_without_a_gate(place):
    given = operands(9, 2, 4, 40, 24, place, halves=1)
    how = {"kind": "relu2", "gated": False}
    near(moe(*given, **how), plain.moe(*given, **how), SHARE[given[0].dtype])


def test_experts_that_are_not_there_contribute_nothing(device):
    x, experts, weights, gate_up, down, *_ = operands(
        6, 3, 4, 24, 16, {"device": device, "dtype": torch.float32}
    )
    experts[0, 1], experts[2], experts[5, 2] = 4, -1, 1 << 40
    found = moe(x, experts, weights, gate_up, down, kind="gelu")
    near(found, plain.moe(x, experts, weights, gate_up, down, kind="gelu"), 1e-5)
    assert not found[2].any()


def test_a_token_has_the_same_bits_alone(place):
    tokens = 20 if place["device"] == "cpu" else 200  # the interpreter's dot has an order for every tile size
    x, experts, weights, gate_up, down, *_ = operands(tokens, 2, 3, 32, 24, place)
    together = moe(x, experts, weights, gate_up, down, kind="silu")
    for t in (0, 7, tokens - 1):
        alone = moe(x[t : t + 1], experts[t : t + 1], weights[t : t + 1], gate_up, down, kind="silu")
        assert torch.equal(alone[0], together[t])


def test_no_tokens(device):
    given = operands(1, 2, 4, 24, 16, {"device": device, "dtype": torch.float32})
    assert moe(*(it[:0] for it in given[:3]), *given[3:], kind="silu").shape == (0, 24)


@pytest.mark.parametrize(
    ("bits", "group", "minimum", "interleaved"),
    [(4, 32, False, False), (4, 64, True, True), (8, -1, False, True)],
)
def test_packed_experts(device, bits, group, minimum, interleaved):
    count, width, inner = 3, 192, 64
    torch.manual_seed(1)

    def grid(rows, columns):
        packed = torch.randint(-(2**31), 2**31, (count, rows, columns * bits // 32), dtype=torch.int64).int()
        groups = 1 if group == -1 else columns // group
        scale = (torch.rand(count, rows, groups) + 0.5).half() / (8 if bits == 4 else 128) / columns**0.5
        low = -scale * 6 if minimum else None
        return tuple(None if it is None else it.to(device) for it in (packed, scale, low))

    first, second = grid(2 * inner, width), grid(width, inner)
    biases = (torch.randn(count, 2 * inner).half().to(device), torch.randn(count, width).half().to(device))
    x = torch.randn(9, width).half().to(device)
    experts = torch.randint(0, count + 1, (9, 2), device=device)
    weights = torch.rand(9, 2, device=device)
    how = {"kind": "silu", "limit": 2.0, "up_offset": 0.5}
    sizes = {"bits": bits, "group": group}
    expected = quantized.quant_moe(
        x, experts, weights, *first, *second, *biases, **sizes, **how, interleaved=interleaved
    )
    stored = pack(*first, biases[0], **sizes, dtype=x.dtype, interleaved=interleaved)
    found = packed_moe(x, experts, weights, stored, pack(*second, biases[1], **sizes, dtype=x.dtype), **how)
    near(found, expected, 3e-3)
    if interleaved:
        again = quant_moe(x, experts, weights, *first, *second, *biases, **sizes, **how, interleaved=True)
        assert torch.equal(again, found)


@pytest.mark.parametrize(("pairs", "count", "block_m"), [(1, 3, 16), (100, 7, 16), (1300, 40, 32)])
def test_the_order_has_every_pair_once_in_blocks_of_one_expert(device, pairs, count, block_m):
    experts = torch.randint(-1, count + 1, (pairs, 1), device=device)
    order, launches = routing.launches(experts, count, block_m)
    for launch in launches:
        launch.run()
    assert len(launches) == (1 if pairs <= routing.CHUNK else 2)
    used = int(order.used)
    assert used <= order.blocks
    seen = []
    for block in range(used):
        places = range(block * block_m, min((block + 1) * block_m, int(order.limits[block])))
        pairs_here = [int(order.order[at]) for at in places]
        assert pairs_here
        assert all(int(experts[pair]) == int(order.of_block[block]) for pair in pairs_here)
        seen += pairs_here
    flat = experts.flatten()
    expected = [p for e in range(count) for p in (flat == e).nonzero().flatten().tolist()]
    assert seen == expected
