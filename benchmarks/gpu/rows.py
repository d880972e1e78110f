"""Norms, rotary embedding and gated activations: as many bytes as they must move, and few launches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from optpipe.dialect import OPS
from optpipe_kernels.triton import layer_norm as layers
from optpipe_kernels.triton import rms_norm as norms
from optpipe_kernels.triton.gated_act import gated_act
from optpipe_kernels.triton.rope import rope
from optpipe_kernels.triton.rows import Quantization

from .cases import Case, Place, copies, distance, over

TOKENS = (1, 64, 4096)
KINDS: tuple[Quantization, ...] = ("int8", "fp8")


def cases(place: Place) -> Iterator[Case]:
    """A Llama's rows, at a decode step's size and at a prompt's."""
    for tokens in TOKENS if not place.dry else (1, 5):
        yield from _norms(place, tokens, place.size(4096, 96))
        yield _heads(place, tokens)
        yield _rope(place, tokens)
        yield _gated(place, tokens, place.size(14336, 96))


def _random(place: Place, count: float, *shape: int) -> list[torch.Tensor]:
    """Tensors of one shape, so many that no cache keeps ``count`` bytes of each."""
    sets = range(copies(count, place))
    return [torch.randn(shape, device=place.device, dtype=place.dtype) for _ in sets]


def _norms(place: Place, tokens: int, width: int) -> Iterator[Case]:
    moved = 8.0 * tokens * width
    xs, residuals = _random(place, moved, tokens, width), _random(place, moved, tokens, width)
    weight = torch.randn(width, device=place.device, dtype=place.dtype)
    yield Case(
        f"add_rms_norm {width}, {tokens} rows",
        over(lambda x, r: norms.add_rms_norm(x, r, weight, eps=1e-5), xs, residuals),
        {"torch": over(lambda x, r: F.rms_norm(x + r, (width,), weight, 1e-5), xs, residuals)},
        bytes=moved,
        check=lambda: distance(
            norms.add_rms_norm(xs[0], residuals[0], weight, eps=1e-5)[0],
            OPS["rms_norm"].body((xs[0] + residuals[0]).double(), weight.double(), eps=1e-5),
        ),
    )
    for kind in KINDS:
        yield Case(
            f"add_rms_norm to {kind} {width}, {tokens} rows",
            over(functools.partial(_to_8_bits, weight, kind), xs, residuals),
            bytes=7.0 * tokens * width,
        )
    yield Case(
        f"layer_norm {width}, {tokens} rows",
        over(lambda x: layers.layer_norm(x, weight, None, eps=1e-5), xs),
        {"torch": over(lambda x: F.layer_norm(x, (width,), weight, None, 1e-5), xs)},
        bytes=4.0 * tokens * width,
        check=lambda: distance(
            layers.layer_norm(xs[0], weight, None, eps=1e-5),
            OPS["layer_norm"].body(xs[0].double(), weight.double(), None, eps=1e-5),
        ),
    )


def _to_8_bits(
    weight: torch.Tensor, kind: Quantization, x: torch.Tensor, residual: torch.Tensor
) -> norms.Normed:
    return norms.norm(x, weight, eps=1e-5, residual=residual, quantize=kind, write=False)


def _heads(place: Place, tokens: int) -> Case:
    heads, width = place.size(32, 3), place.size(128, 20)
    moved = 4.0 * tokens * heads * width
    fused = _random(place, 1.5 * moved, tokens, (heads + 16) * width)
    queries = [it[:, : heads * width].view(tokens, heads, width) for it in fused]
    weight = torch.randn(width, device=place.device, dtype=place.dtype)
    return Case(
        f"rms_norm of {heads} heads of {width}, {tokens} rows",
        over(lambda q: norms.rms_norm(q, weight, eps=1e-6), queries),
        {"torch": over(lambda q: F.rms_norm(q, (width,), weight, 1e-6), queries)},
        bytes=moved,
    )


def _rope(place: Place, tokens: int) -> Case:
    heads, width = place.size(32, 3), place.size(128, 20)
    moved = 4.0 * tokens * heads * width
    queries = _random(place, moved, tokens, heads, width)
    angles = torch.rand(tokens, width, device=place.device) * 6
    cos, sin = angles.cos(), angles.sin()
    return Case(
        f"rope {heads} heads of {width}, {tokens} rows",
        over(lambda q: rope(q, cos, sin), queries),
        {"dialect body": over(lambda q: OPS["rope"].body(q, cos, sin), queries)},
        bytes=moved + 8.0 * tokens * width,
        check=lambda: distance(
            rope(queries[0], cos, sin), OPS["rope"].body(queries[0].double(), cos.double(), sin.double())
        ),
    )


def _gated(place: Place, tokens: int, width: int) -> Case:
    moved = 6.0 * tokens * width
    both = _random(place, moved, tokens, 2 * width)
    gates, ups = [it[:, :width] for it in both], [it[:, width:] for it in both]
    return Case(
        f"gated_act silu {width}, {tokens} rows",
        over(lambda g, u: gated_act(g, u, kind="silu"), gates, ups),
        {"torch": over(lambda g, u: F.silu(g) * u, gates, ups)},
        bytes=moved,
        check=lambda: distance(
            gated_act(gates[0], ups[0], kind="silu"), F.silu(gates[0].double()) * ups[0].double()
        ),
    )
