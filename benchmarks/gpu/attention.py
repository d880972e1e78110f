"""Attention: decode and prefill beside SDPA's backends and flex_attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from optpipe_kernels.triton.attention_operands import Operands
from optpipe_kernels.triton.attention_work import Work, attention_tiles, plan_work
from optpipe_kernels.triton.paged_attention import paged_attention
from optpipe_kernels.triton.tiles import device_key

from .cases import Case, Place, Run, copies, distance

HEADS, KV_HEADS, WIDTH, BLOCK = 32, 8, 128, 16
CHECKED = 64  # the last new tokens of a sequence, which see most
_BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


class _Paged:
    """Sequences of one length in a paged cache, their new tokens at the end."""

    def __init__(
        self, place: Place, sequences: int, length: int, tokens: int, kv: torch.dtype | None
    ) -> None:
        heads, kv_heads = (4, 2) if place.dry else (HEADS, KV_HEADS)
        width = place.size(WIDTH, 32)
        make: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
        pages = -(-length // BLOCK)
        self.q = torch.randn(sequences * tokens, heads, width, **make)
        self.keys, self.values = (
            torch.randn(sequences * pages, BLOCK, kv_heads, width, **make) for _ in range(2)
        )
        order = torch.randperm(sequences * pages, device=place.device)
        self.tables = order.view(sequences, pages).to(torch.int32)
        starts = torch.arange(sequences + 1, device=place.device) * tokens
        self.starts = starts.to(torch.int32)
        self.contexts = torch.full((sequences,), length, dtype=torch.int32, device=place.device)
        self.scales: torch.Tensor | None = None
        if kv is not None:
            self.scales = torch.rand(self.keys.shape[:3], device=place.device) / 64
            self.keys, self.values = ((it * 8).clamp(-127, 127).to(kv) for it in (self.keys, self.values))
        self.sequences, self.length, self.tokens, self.width = sequences, length, tokens, width
        self._work: dict[bool, Work] = {}

    def run(self, *, invariant: bool = True) -> torch.Tensor:
        shape = Operands(
            self.q, self.keys, self.values, self.starts, self.contexts, self.tables, scale=1.0
        ).shape
        tiles = attention_tiles(shape, device_key(self.q.device), batch_invariant=invariant)
        if invariant not in self._work:  # made when the call is first tried, which is not captured
            made = plan_work(self.starts.tolist(), self.contexts.tolist(), shape, tiles)
            self._work[invariant] = made.to(self.q.device)
        return paged_attention(
            self.q, self.keys, self.values, self.starts, self.contexts, self.tables,
            scale=self.width**-0.5, k_scales=self.scales, v_scales=self.scales, work=self._work[invariant],
            batch_invariant=invariant,
        )  # fmt: skip

    def dense(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [B, H, T, D], k and v [B, H_kv, L, D] as other kernels want them."""
        q = self.q.view(self.sequences, self.tokens, *self.q.shape[1:]).transpose(1, 2).contiguous()
        k, v = (
            cache[self.tables.long()].flatten(1, 2)[:, : self.length].transpose(1, 2).contiguous()
            for cache in (self.keys, self.values)
        )
        return q, k, v

    def error(self, *, invariant: bool = True) -> float:
        """Against float64, of the first sequence's last tokens; what an 8-bit cache holds is the truth."""
        count = min(self.tokens, CHECKED)
        q = self.q[self.tokens - count : self.tokens].double().transpose(0, 1)  # [H, count, D]
        k, v = (self._first(cache) for cache in (self.keys, self.values))
        k, v = (it.repeat_interleave(q.shape[0] // it.shape[0], 0) for it in (k, v))
        score = q @ k.transpose(1, 2) * self.width**-0.5
        seen = torch.ones(count, self.length, dtype=torch.bool, device=q.device)
        score.masked_fill_(~seen.tril(self.length - count), -torch.inf)
        exact = (score.softmax(-1) @ v).transpose(0, 1)
        return distance(self.run(invariant=invariant)[self.tokens - count : self.tokens], exact)

    def _first(self, cache: torch.Tensor) -> torch.Tensor:
        """What the first sequence has in a cache, [H_kv, L, D] float64."""
        pages = self.tables[0].long()
        held = cache.view(torch.uint8)[pages].view(cache.dtype).double()
        if self.scales is not None:
            held = held * self.scales[pages].double().unsqueeze(-1)
        return held.flatten(0, 1)[: self.length].transpose(0, 1)


def _others(problem: _Paged) -> dict[str, Sequence[Run]]:
    q, k, v = problem.dense()
    causal = problem.tokens > 1

    def by(backend: SDPBackend) -> Callable[[], object]:
        def run() -> object:
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=causal, enable_gqa=True)

        return run

    found: dict[str, Sequence[Run]] = {name: [by(backend)] for name, backend in _BACKENDS.items()}
    found["flex_attention"] = [_flex(q, k, v, causal=causal)]
    return found


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> Run:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    made: dict[str, object] = {}

    def run() -> object:
        if not made:
            made["call"] = torch.compile(flex_attention, dynamic=False)
            made["mask"] = None
            if causal:
                lengths = (q.shape[2], k.shape[2])
                made["mask"] = create_block_mask(
                    lambda b, h, i, j: i >= j, None, None, *lengths, str(q.device)
                )
        return made["call"](q, k, v, block_mask=made["mask"], enable_gqa=True)  # type: ignore[operator]

    return run


def cases(place: Place) -> Iterator[Case]:
    """Decode at two extremes, in 16 and 8 bits; a prompt."""
    for sequences, length, must, stretch in ((64, 4096, 0.85, 0.92), (1, 32768, 0.70, 0.85)):
        b, at = place.size(sequences, 2), place.size(length, 70)
        for kv in (None, torch.int8, torch.float8_e4m3fn):
            if place.dry and kv is torch.float8_e4m3fn:
                continue
            problem = _Paged(place, b, at, 1, kv)
            moved = 2 * b * at * problem.keys.shape[2] * problem.width * problem.keys.element_size()
            sets = [problem, *(_Paged(place, b, at, 1, kv) for _ in range(copies(moved, place) - 1))]
            kind = str(problem.keys.dtype).removeprefix("torch.")
            yield Case(
                f"paged decode, B={sequences}, L={length}, {kind} cache",
                [it.run for it in sets],
                _others(problem) if kv is None and not place.dry else {},
                bytes=moved,
                must=must if kv is None else None,
                stretch=stretch if kv is None else None,
                check=problem.error,
            )
    tokens = place.size(8192, 40)
    problem = _Paged(place, 1, tokens, tokens, None)
    heads = problem.q.shape[1]
    for invariant in (True, False):
        yield Case(
            "prefill, causal, 8192 tokens" + ("" if invariant else ", not batch invariant"),
            [functools.partial(problem.run, invariant=invariant)],
            _others(problem) if invariant and not place.dry else {},
            operations=2 * heads * tokens**2 * problem.width,
            must=400e12 / place.rate,
            stretch=500e12 / place.rate,
            check=functools.partial(problem.error, invariant=invariant),
        )
