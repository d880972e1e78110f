"""What ``quant`` promises: KL from the source, nats.

About twice what the worse of two models measures, SmolLM2-135M (Q4_1) and Gemma-3-270M (Q4_K_M, most of it
5 bits and more). Larger models lose less.
"""

from __future__ import annotations

from optpipe.weights.grid import GridInfo

EIGHT_BITS = 0.02  # 0.003, 0.009
ROUNDED = (
    0.5  # float minimum g32: 0, 0.40; coarser ones and symmetric: 0.27, 0.7 and more, which need --max-kld
)
COMPENSATED = {
    # (minimum, group): budget    measured
    (True, 32): 0.25,  # 0, 0.115
    (True, 64): 0.35,  # 0.063, 0.163
    (True, 128): 0.45,  # 0.063, 0.217
    (True, -1): 0.5,
    (False, 32): 0.35,  # 0.076, 0.172; with a 4-bit head 0.189
    (False, 64): 0.4,  # 0.101, 0.202
    (False, 128): 0.5,  # 0.101, 0.229
    (False, -1): 0.5,
}
ROW_WISE = {
    # KL of the two models: 0.029, 0.091; and 0.029, 0.099
    "fp8": 0.2,
    "w8a8": 0.2,
}


def budget(scheme: str, grid: GridInfo, *, calibrated: bool, head: int | None) -> float:
    """The promised divergence.

    Args:
        scheme: "weights", or what activations are rounded to as well.
        grid: of weights that bring none.
        calibrated: whether errors are compensated with calibration text.
        head: bits of the LM head.
    """
    four = grid.bits == 4 or head == 4
    low = ROUNDED if not calibrated else COMPENSATED[grid.has_minimum, grid.group if grid.bits == 4 else 32]
    if scheme in ROW_WISE:
        return max(ROW_WISE[scheme], low if four else 0.0)
    return low if four else EIGHT_BITS
