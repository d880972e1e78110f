"""Choosing tokens: greedy fused over the head, and a draw from logits, beside torch's own operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from optpipe.targets.protocol import PENALIZED
from optpipe_kernels.triton.draws import Draw, settings
from optpipe_kernels.triton.greedy_head import greedy_head
from optpipe_kernels.triton.logit_edits import Edits, edited
from optpipe_kernels.triton.logprobs import logprobs
from optpipe_kernels.triton.packing import QuantWeight, repack
from optpipe_kernels.triton.sampling import sample

from .cases import Case, Place, copies, over

VOCABULARY, WIDTH = 128256, 4096
PENALTIES = 1000  # tokens a row
DRAWS = {
    "temperature": Draw(0.8),
    "top-k 50, top-p 0.9": Draw(0.8, 50, 0.9),
    "top-p 0.9": Draw(0.8, 0, 0.9),
    "min-p 0.05": Draw(0.8, min_p=0.05),
    "greedy": Draw(0.0),
}


def cases(place: Place) -> Iterator[Case]:
    """A Llama's vocabulary for one row and for a batch."""
    for rows in (1, 64) if not place.dry else (3,):
        yield from _heads(place, rows)
        yield from _draws(place, rows)


def _heads(place: Place, rows: int) -> Iterator[Case]:
    size, width = place.size(VOCABULARY, 300), place.size(WIDTH, 128)
    x = torch.randn(rows, width, device=place.device, dtype=place.dtype)
    dense = [
        torch.randn(size, width, device=place.device, dtype=place.dtype)
        for _ in range(copies(2.0 * size * width, place))
    ]
    yield Case(
        f"greedy head {size}x{width}, {rows} rows",
        over(lambda it: greedy_head(x, it), dense),
        {"cuBLAS and argmax": over(lambda it: F.linear(x, it).argmax(-1), dense)},
        bytes=2.0 * size * width,
        operations=2.0 * rows * size * width,
        check=lambda: _missed(x, dense[0], greedy_head(x, dense[0])),
    )
    for bits in (8, 4):
        packed = [_packed(place, size, width, bits) for _ in range(len(dense))]
        yield Case(
            f"greedy head {size}x{width} in {bits} bits, {rows} rows",
            [functools.partial(greedy_head, x, it) for it in packed],
            bytes=packed[0].nbytes,
            operations=2.0 * rows * size * width,
        )


def _missed(x: torch.Tensor, head: torch.Tensor, tokens: torch.Tensor) -> float:
    """How far the chosen logits are under the largest, in float64, as a part of the spread."""
    logits = x.double() @ head.double().T
    chosen = logits.gather(1, tokens[:, None]).squeeze(1)
    return float((logits.amax(1) - chosen).max() / logits.std())


def _packed(place: Place, size: int, width: int, bits: int) -> QuantWeight:
    shape = (size, width * bits // 32)
    packed = torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=torch.int32, device=place.device)
    groups = 1 if bits == 8 else width // 128
    scale = torch.full((size, groups), 0.01, device=place.device)
    return repack(packed, scale, bits=bits, group=-1 if bits == 8 else 128, dtype=place.dtype)


def _draws(place: Place, rows: int) -> Iterator[Case]:
    size = place.size(VOCABULARY, 300)
    logits = [
        torch.randn(rows, size, device=place.device) * 3 for _ in range(copies(4.0 * rows * size, place))
    ]
    for name, draw in DRAWS.items():
        drawn = [Draw(draw.temperature, draw.top_k, draw.top_p, draw.min_p, seed) for seed in range(rows)]
        chosen = settings(drawn, place.device)
        yield Case(
            f"sample {name}, {rows} rows",
            [functools.partial(sample, it, chosen) for it in logits],
            {"torch softmax, sort, cumsum": over(_sorted, logits)},
            bytes=4.0 * rows * size,
        )
    yield Case(
        f"1,000 penalties a row and a mask, {rows} rows",
        over(functools.partial(edited, rules=_rules(place, rows, size)), logits),
        {"torch gather, where, scatter, masked_fill": over(_edited(place, rows, size), logits)},
        bytes=(8.0 + 1 / 8) * rows * size,
    )
    tokens = torch.zeros(rows, dtype=torch.int64, device=place.device)
    yield Case(
        f"logprobs, 20 likeliest, {rows} rows",
        over(lambda it: logprobs(it, tokens, 20), logits),
        {"torch log_softmax, topk": over(lambda it: it.log_softmax(-1).topk(20), logits)},
        bytes=4.0 * rows * size,
    )


def _rules(place: Place, rows: int, size: int) -> Edits:
    """Penalties of as many different tokens a row, and a mask that lets half of the vocabulary through."""
    each = min(PENALTIES, size)
    tokens = torch.stack([torch.randperm(size, device=place.device)[:each] for _ in range(rows)])
    count = rows * each
    words = torch.randint(-(1 << 31), (1 << 31) - 1, (rows, -(-size // 32)), device=place.device)
    return Edits(
        starts=torch.arange(rows + 1, dtype=torch.int32, device=place.device) * each,
        tokens=tokens.flatten().int(),
        biases=torch.zeros(count, device=place.device),
        counts=torch.ones(count, device=place.device),
        flags=torch.full((count,), PENALIZED, dtype=torch.int32, device=place.device),
        penalties=torch.tensor([[1.1, 0.5, 0.5]], device=place.device).repeat(rows, 1),
        masked=torch.arange(rows, dtype=torch.int32, device=place.device),
        masks=words.int(),
    )


def _edited(place: Place, rows: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same by torch, with the mask as booleans that need no unpacking."""
    rules = _rules(place, rows, size)
    at, mask = rules.tokens.view(rows, -1).long(), torch.rand(rows, size, device=place.device) < 0.5

    def run(logits: torch.Tensor) -> torch.Tensor:
        values = logits.gather(1, at)
        lowered = torch.where(values > 0, values / 1.1, values * 1.1) - 1.0
        return logits.scatter(1, at, lowered).masked_fill(mask, -torch.inf)

    return run


def _sorted(logits: torch.Tensor) -> torch.Tensor:
    """Top-p as it is written without a kernel: the work of a sort, whose draw is left out."""
    return logits.softmax(-1).sort(-1, descending=True).values.cumsum(-1)
