"""A Llama's decoding in plain torch: a static cache, compiled layers, one CUDA graph. What to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .cases import Place, timed
from .random_model import Size


class Layer(nn.Module):
    """One layer, its keys and values in a cache [1, H_kv, L, D] of fixed length.

    The heads of a KV head are rows of one query: all see the same keys, and SDPA need not repeat those.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, size: Size, length: int) -> None:
        super().__init__()
        self.size = size
        both = (size.heads + 2 * size.kv_heads) * size.width
        self.qkv = nn.Linear(size.hidden, both, bias=False)
        self.o = nn.Linear(size.heads * size.width, size.hidden, bias=False)
        self.gate_up = nn.Linear(size.hidden, 2 * size.inner, bias=False)
        self.down = nn.Linear(size.inner, size.hidden, bias=False)
        self.before, self.after = nn.RMSNorm(size.hidden), nn.RMSNorm(size.hidden)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, size.kv_heads, length, size.width))

    def forward(
        self, x: torch.Tensor, at: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        s = self.size
        q, k, v = (
            self.qkv(self.before(x)).view(1, -1, 1, s.width).split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        )
        q, k = (_turned(it, cos, sin) for it in (q, k))
        self.keys[:, :, at], self.values[:, :, at] = k, v
        grouped = q.reshape(1, s.kv_heads, -1, s.width)
        y = F.scaled_dot_product_attention(grouped, self.keys, self.values, attn_mask=seen)
        x = x + self.o(y.reshape(1, 1, -1))
        gate, up = self.gate_up(self.after(x)).chunk(2, -1)
        added: torch.Tensor = x + self.down(F.silu(gate) * up)
        return added


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Model(nn.Module):
    """Embedding, layers, head."""

    angle: torch.Tensor
    places: torch.Tensor

    def __init__(self, size: Size, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocab, size.hidden)
        self.layers = nn.ModuleList(Layer(size, length) for _ in range(size.layers))
        self.norm, self.head = nn.RMSNorm(size.hidden), nn.Linear(size.hidden, size.vocab, bias=False)
        self.register_buffer("angle", torch.rand(size.width))
        self.register_buffer("places", torch.arange(length))

    def forward(self, token: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        x = self.embed(token)
        angles = (at * self.angle)[None, None, None]
        seen = (self.places <= at)[None, None, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, at, cos, sin, seen)
        likeliest: torch.Tensor = self.head(self.norm(x)).argmax(-1)
        return likeliest


@torch.inference_mode()
def seconds_a_token(place: Place, size: Size, context: int) -> float:
    """Seconds of one step at B = 1."""
    with torch.device(place.device):
        torch.set_default_dtype(place.dtype)
        try:
            model = Model(size, context + 64)
        finally:
            torch.set_default_dtype(torch.float32)
    for layer in model.layers:  # one compilation serves all of them: their weights are its inputs
        layer.compile(fullgraph=True, dynamic=False, backend="eager" if place.dry else "inductor")

    def step(token: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(token, at)
        return found

    token = torch.zeros(1, 1, dtype=torch.int64, device=place.device)
    at = torch.tensor([context], device=place.device)
    found = timed([lambda: step(token, at)], place)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found
