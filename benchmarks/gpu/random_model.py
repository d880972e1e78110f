"""A Llama of any size with random weights that are made on the device and never on a disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from optpipe.program.parser import parse_program
from optpipe.program.program import Program
from optpipe.weights.store import BaseWeight, LazyWeight


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama; the defaults are Llama 3.1 8B's."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    inner: int = 14336
    vocab: int = 128256
    block: int = 16


TINY = Size(2, 256, 4, 2, 64, 384, 512)
GROUPS = {4: 128, 8: -1}  # inputs a scale


def program(size: Size, bits: int) -> Program:
    """Its paged graph, as the passes leave it: weights in 16, 8 or 4 bits."""
    return parse_program("\n".join(_lines(size, bits)) + "\n")


def _lines(size: Size, bits: int) -> Iterator[str]:
    s, heads = size, f"{size.block}, {size.kv_heads}, {size.width}"
    yield "optpipe.program 1"
    for name, kind in (("input_ids", "i64[T]"), ("position_ids", "i64[T]"), ("logit_rows", "i64[R]")):
        yield f"input %{name}: {kind}"
    yield "input %slot_mapping: i64[T]"
    for layer in range(s.layers):
        yield f"cache %k_cache.{layer}: f32[P, {heads}]"
        yield f"cache %v_cache.{layer}: f32[P, {heads}]"
    yield "input %query_start: i32[B + 1]"
    yield "input %context_lens: i32[B]"
    yield "input %block_tables: i32[B, M]"
    yield f"weight @embed: f32[{s.vocab}, {s.hidden}] stored bf16"
    yield f"weight @inv_freq: f32[{s.width // 2}] stored f32"
    yield f"weight @norm: f32[{s.hidden}] stored bf16"
    for layer in range(s.layers):
        for name in ("input_norm", "post_norm"):
            yield f"weight @layers.{layer}.{name}: f32[{s.hidden}] stored bf16"
        for name, (rows, columns) in _linears(s).items():
            yield from _declared(f"layers.{layer}.{name}", rows, columns, bits)
    yield from _declared("lm_head", s.vocab, s.hidden, 8 if bits == 4 else bits)
    yield from _tables(s)
    x, residual = "h", "%e"
    for layer in range(s.layers):
        yield from _layer(s, layer, x, residual, bits)
        x, residual = f"h{layer}", f"%r{layer}"
    yield f"%g: f32[R, {s.hidden}] = optpipe.gather_rows(%{x}, %logit_rows)"
    yield _call("logits", "R", s.vocab, "%g", "lm_head", 8 if bits == 4 else bits)
    yield "return %logits"


def _linears(s: Size) -> dict[str, tuple[int, int]]:
    return {
        "q": (s.heads * s.width, s.hidden),
        "k": (s.kv_heads * s.width, s.hidden),
        "v": (s.kv_heads * s.width, s.hidden),
        "o": (s.hidden, s.heads * s.width),
        "gate": (s.inner, s.hidden),
        "up": (s.inner, s.hidden),
        "down": (s.hidden, s.inner),
    }


def _declared(name: str, rows: int, columns: int, bits: int) -> Iterator[str]:
    if bits == 16:
        yield f"weight @{name}: f32[{rows}, {columns}] stored bf16"
        return
    group = columns if GROUPS[bits] == -1 else GROUPS[bits]
    yield f"weight @{name}.packed: i32[{rows}, {columns * bits // 32}] stored i32"
    yield f"weight @{name}.scale: f32[{rows}, {columns // group}] stored f16"


def _call(result: str, count: str, rows: int, x: str, name: str, bits: int) -> str:
    if bits == 16:
        return f"%{result}: f32[{count}, {rows}] = aten.linear({x}, @{name})"
    operands = f"{x}, @{name}.packed, @{name}.scale, None, None, bits={bits}, group={GROUPS[bits]}"
    return f"%{result}: f32[{count}, {rows}] = optpipe.quant_linear({operands})"


def _tables(s: Size) -> Iterator[str]:
    half = s.width // 2
    yield f"%e: f32[T, {s.hidden}] = aten.embedding(@embed, %input_ids)"
    yield "%p: i64[T, 1] = aten.reshape(%position_ids, [T, 1])"
    yield "%pf: f32[T, 1] = aten.to.dtype(%p, f32)"
    yield f"%angle: f32[T, {half}] = aten.mul.Tensor(%pf, @inv_freq)"
    yield f"%angles: f32[T, {s.width}] = aten.cat([%angle, %angle], 1)"
    yield f"%cos: f32[T, {s.width}] = aten.cos(%angles)"
    yield f"%sin: f32[T, {s.width}] = aten.sin(%angles)"
    yield f"%h: f32[T, {s.hidden}] = optpipe.rms_norm(%e, @layers.0.input_norm, eps=1e-05, unit_offset=false)"


def _layer(s: Size, layer: int, x: str, residual: str, bits: int) -> Iterator[str]:
    n, at = layer, f"layers.{layer}"
    q, kv = s.heads * s.width, s.kv_heads * s.width
    for name, rows, heads in (("q", q, s.heads), ("k", kv, s.kv_heads), ("v", kv, s.kv_heads)):
        yield _call(f"{name}{n}", "T", rows, f"%{x}", f"{at}.{name}", bits)
        shape = f"[T, {heads}, {s.width}]"
        yield f"%{name}h{n}: f32{shape} = aten.reshape(%{name}{n}, {shape})"
    for name, heads in (("q", s.heads), ("k", s.kv_heads)):
        shape = f"f32[T, {heads}, {s.width}]"
        yield f"%{name}r{n}: {shape} = optpipe.rope(%{name}h{n}, %cos, %sin, interleaved=false)"
    yield f"optpipe.kv_write(%kr{n}, %vh{n}, %k_cache.{n}, %v_cache.{n}, %slot_mapping)"
    yield (
        f"%a{n}: f32[T, {s.heads}, {s.width}] = optpipe.paged_attention(%qr{n}, %k_cache.{n}, %v_cache.{n},"
        f" %query_start, %context_lens, %block_tables, scale={s.width**-0.5})"
    )
    yield f"%af{n}: f32[T, {q}] = aten.reshape(%a{n}, [T, {q}])"
    yield _call(f"o{n}", "T", s.hidden, f"%af{n}", f"{at}.o", bits)
    kind = f"f32[T, {s.hidden}]"
    added = f"%o{n}, {residual}, @{at}.post_norm"
    yield f"%m{n}: {kind}, %s{n}: {kind} = optpipe.add_rms_norm({added}, eps=1e-05)"
    for name in ("gate", "up"):
        yield _call(f"{name}{n}", "T", s.inner, f"%m{n}", f"{at}.{name}", bits)
    yield f'%act{n}: f32[T, {s.inner}] = optpipe.gated_act(%gate{n}, %up{n}, kind="silu")'
    yield _call(f"d{n}", "T", s.hidden, f"%act{n}", f"{at}.down", bits)
    norm = "norm" if n == s.layers - 1 else f"layers.{n + 1}.input_norm"
    yield f"%h{n}: {kind}, %r{n}: {kind} = optpipe.add_rms_norm(%d{n}, %s{n}, @{norm}, eps=1e-05)"


class _Random(BaseWeight):
    """A weight that is drawn when it is read, on the device that reads it."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, math.prod(shape) * dtype.itemsize)
        self._name, self._device = name, device

    def load(self) -> torch.Tensor:
        generator = torch.Generator(self._device).manual_seed(sum(map(ord, self._name)))
        make: dict[str, Any] = {"device": self._device, "generator": generator}
        if self._name == "inv_freq":
            at = torch.arange(self.shape[0], device=self._device, dtype=torch.float32)
            return torch.pow(500000.0, -at / self.shape[0])
        if self.dtype is torch.int32:
            return torch.randint(-(1 << 31), 1 << 31, self.shape, dtype=torch.int64, **make).to(torch.int32)
        if self.dtype is torch.float16:  # of a grid: codes are ± 8 or ± 128
            bits = 4 if self.shape[1] > 1 else 8
            return torch.rand(self.shape, **make).mul_(0.02 / (1 << bits - 2)).to(torch.float16)
        values = torch.randn(self.shape, dtype=torch.float32, **make)
        return (1 + 0.1 * values if "norm" in self._name else 0.02 * values).to(self.dtype)


def weights(made: Program, device: torch.device) -> dict[str, LazyWeight]:
    """Its weights; each is drawn anew, and the same, whenever it is read."""
    from optpipe.program.ops import DTYPES

    return {
        name: _Random(name, tuple(int(dim) for dim in weight.type.shape), DTYPES[weight.stored], device)
        for name, weight in made.weights.items()
    }
