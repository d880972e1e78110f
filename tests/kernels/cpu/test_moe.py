import numpy as np
import pytest
import torch

from optpipe.dialect.moe import moe
from optpipe.errors import KernelError
from optpipe.testing import tolerance
from optpipe_kernels.cpu.lowering.dialect_rules import ACTIVATIONS
from optpipe_kernels.cpu.pack import Matrix, pack

E, K, I, N, SLOTS = 5, 64, 96, 64, 2  # noqa: E741 - the glossary's names

OPTIONS = [
    {},
    {"interleaved": True},
    {"gated": False, "kind": "relu2"},
    {"kind": "gelu_tanh", "biases": True},
    {"interleaved": True, "biases": True, "limit": 0.7, "alpha": 1.702, "up_offset": 1.0},
]


class Layer:
    """Routed experts and their tokens. bits 32 for float weights, 4 and 8 for codes."""

    def __init__(
        self,
        library,
        randn,
        grid,
        rng,
        tokens,
        bits=32,
        kind="silu",
        gated=True,
        interleaved=False,
        biases=False,
        **more,
    ):
        self.library, self.bits = library, bits
        hidden = 2 * I if gated else I
        self.x = randn(tokens, K)
        self.experts = rng.integers(0, E, (tokens, SLOTS))
        self.weights = np.abs(randn(tokens, SLOTS))
        stacks = [self._stack(randn, grid, rows, inputs) for rows, inputs in ((hidden, K), (N, I))]
        self.blobs, self.values = zip(*stacks, strict=True)
        self.biases = [randn(E, hidden), randn(E, N)] if biases else [None, None]
        limit, alpha, offset = more.get("limit"), more.get("alpha"), more.get("up_offset", 0.0)
        self.said = {"kind": kind, "gated": gated, "interleaved": interleaved}
        self.said |= {"limit": limit, "alpha": alpha, "up_offset": offset}
        group = 0 if bits == 32 else 32
        number = 1 + ACTIVATIONS.index(kind)
        self.ints = (E, K, I, N, bits, group, 0, number, int(gated), int(interleaved))
        self.floats = (float("inf") if limit is None else limit, alpha or 0.0, offset)

    def _stack(self, randn, grid, rows, inputs):
        if self.bits == 32:
            values = randn(E, rows, inputs) / 8
            blobs = [pack([Matrix(each)], inputs, 32, 0) for each in values]
        else:
            made = [grid(rows, inputs, self.bits, 32, False) for _ in range(E)]
            blobs, values = (
                [pack([each], inputs, self.bits, 32) for each, _ in made],
                np.stack([v for _, v in made]),
            )
        joined = np.zeros(sum(map(len, blobs)) + 64, np.uint8)
        joined = joined[-joined.ctypes.data % 64 :][: sum(map(len, blobs))]
        joined[:] = np.concatenate(blobs)
        return joined, values

    def run(self, pool=None, rows=slice(None)):
        out = np.full((len(self.x[rows]), N), np.nan, np.float32)
        reads = [self.x[rows], self.experts[rows], self.weights[rows], *self.blobs, *self.biases]
        self.library.call("moe", [*reads, out], self.ints, self.floats, pool=pool)
        return out

    def expected(self):
        given = (self.x, self.experts, self.weights, *self.values, *self.biases)
        tensors = [None if it is None else torch.from_numpy(it) for it in given]
        tensors = [it.double() if it is not None and it.is_floating_point() else it for it in tensors]
        return moe(*tensors, **self.said).numpy()


@pytest.fixture
def layer(library, randn, grid, rng):
    return lambda tokens, **options: Layer(library, randn, grid, rng, tokens, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda given: " ".join(given) or "plain")
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_equals_the_dialect(layer, pools, options, tokens):
    made = layer(tokens, **options)
    np.testing.assert_allclose(made.run(pools[2]), made.expected(), **tolerance("float32 sum"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("options", OPTIONS[:2], ids=lambda given: " ".join(given) or "plain")
def test_quantized_experts_within_the_rounding_of_activations(layer, pools, bits, options):
    made = layer(40, bits=bits, **options)
    found, expected = made.run(pools[2]), made.expected()
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error < 0.02  # 8 bits a group of 32: 0.3 % a rounding, two products and a product of two halves


@pytest.mark.parametrize("bits", [4, 32])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_any_threads(layer, pools, bits):
    made = layer(270, bits=bits, biases=True)  # more than one round of 256 tokens
    together = made.run()
    for pool in pools.values():
        np.testing.assert_array_equal(made.run(pool), together)
    for t in (0, 1, 100, 255, 256, 269):
        np.testing.assert_array_equal(made.run(pools[3], slice(t, t + 1)), together[t : t + 1])


def test_an_expert_outside_adds_nothing(layer):
    made = layer(6)
    made.experts[:3] = [[-1, E], [E + 7, -1], [2, E]]
    found = made.run()
    assert not found[:2].any()
    made.weights[2, 1], made.experts[2, 1] = 0, 2
    np.testing.assert_array_equal(made.run()[2], found[2])


def test_an_expert_that_nobody_chose_may_hold_anything(layer):
    made = layer(6)
    made.experts[made.experts == 3] = 2
    before = made.run()
    for blob in made.blobs:
        each = len(blob) // E
        blob[3 * each + 64 : 4 * each] = 255  # NaN, behind the head
    np.testing.assert_array_equal(made.run(), before)


def test_refuses_fewer_experts_than_it_is_told_of(layer):
    made = layer(3)
    made.ints = (E + 1, *made.ints[1:])
    with pytest.raises(KernelError, match="moe: operand 3 has fewer experts"):
        made.run()
