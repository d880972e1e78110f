"""``gated_act`` against the activations written out."""

import math

import pytest
import torch

from optpipe.dialect.activations import ACTIVATIONS
from optpipe.dialect.gated_act import gated_act
from optpipe.errors import KernelError
from optpipe.testing import tolerance

FORMULAS = {
    "silu": lambda g: g / (1 + math.exp(-g)),
    "gelu": lambda g: g * 0.5 * (1 + math.erf(g / math.sqrt(2))),
    "gelu_tanh": lambda g: 0.5 * g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))),
    "relu": lambda g: max(g, 0.0),
    "relu2": lambda g: max(g, 0.0) ** 2,
    "sigmoid": lambda g: 1 / (1 + math.exp(-g)),
    "tanh": math.tanh,
}


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("kind", FORMULAS)
def test_activates_the_gate_and_not_the_other_half(randn, kind):
    gate, up = randn(3, 5) * 2, randn(3, 5)
    expected = [
        FORMULAS[kind](g) * u for g, u in zip(gate.flatten().tolist(), up.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(
        gated_act(gate, up, kind=kind), torch.tensor(expected).view(3, 5), **tolerance("float32")
    )


def test_an_unknown_activation_is_named_with_those_there_are(randn):
    with pytest.raises(KernelError, match=r"activation 'swish' is not one of silu, gelu"):
        gated_act(randn(1, 2), randn(1, 2), kind="swish")
