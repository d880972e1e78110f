"""Which scale each channel gets: found by trying, on a grid and on what flows through the channels.

K channels. For a candidate strength a, the scale of channel k is the power of two next to m[k]^a, where m[k]
is the mean absolute value that flows through k. The best a makes

    Σ_n Σ_k  x²[k] · (Q(w·s)[n, k] / s[k] − w[n, k])²

smallest: the error of the outputs if channels were independent, with x²[k] the mean square.

Source: Lin et al. 2023, "AWQ", section 3.2; powers of two and the diagonal error are ours.
"""

from __future__ import annotations

import torch

from optpipe.quantize.rtn import round_to_nearest
from optpipe.weights.grid import GridInfo

STRENGTHS = tuple(step / 10 for step in range(11))
MAX_EXPONENT = 8  # a factor of 256 either way stays inside float16
TINY = 1e-5  # a channel through which nothing flows


def best_scale(inputs: torch.Tensor, weights: torch.Tensor, grid: GridInfo) -> torch.Tensor:
    """The scale of each channel.

    Args:
        inputs: [T, K], what flows through the channels.
        weights: [N, K], all weights that read them.
        grid: what the weights will be rounded to.

    Returns:
        [K] powers of two; all ones when nothing is better.
    """
    magnitude = inputs.abs().mean(0).clamp_min(TINY)
    importance = inputs.square().mean(0)
    candidates = [power_of_two(magnitude**strength) for strength in STRENGTHS]
    return min(candidates, key=lambda scale: output_error(weights, scale, importance, grid))


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The powers of two next to ``scale``, centred on one: a product with one rounds nothing.

    >>> power_of_two(torch.tensor([0.5, 1.1, 8.0])).tolist()
    [0.5, 0.5, 4.0]
    """
    exponent = scale.log2()
    centre = (exponent.max() + exponent.min()) / 2
    return torch.exp2((exponent - centre).round().clamp(-MAX_EXPONENT, MAX_EXPONENT))


def output_error(
    weights: torch.Tensor, scale: torch.Tensor, importance: torch.Tensor, grid: GridInfo
) -> float:
    """What rounding ``weights · scale`` to a grid does to the outputs."""
    rounded = round_to_nearest(weights * scale, grid).dequantize() / scale
    return float(((rounded - weights).square() @ importance).sum())
