"""What writes and reads the paged cache: kernels over ``Stored``, or the dialect's bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from optpipe.dialect import OPS

from . import cache
from .attention import Layer, Lists
from .cache import Stored
from .kernel_finder import KernelFinder


class CacheOperations(KernelFinder):
    """Finds what runs an operation over the cache."""

    def kv_write(self) -> Callable[..., None]:
        """``(k, v, k_cache, v_cache, slots)``: this step's keys and values into their slots."""
        kernel, body = self._kernel("rope_kv_write", "kv_write"), OPS["kv_write"].body
        if kernel is None:
            self.on_bodies.add("kv_write")

        def run(k: Any, v: Any, keys: Stored, values: Stored, slots: Any) -> None:
            if kernel is None:
                cache.write(body, k, v, keys, values, slots)
            else:
                kernel(k, v, keys.data, values.data, slots, k_scales=keys.scale, v_scales=values.scale)

        return self._cast(run, (0, 1))

    def rope_kv_write(self) -> Callable[..., torch.Tensor | None]:
        """``(q?, k, v, cos, sin, k_cache, v_cache, slots; interleaved) → the turned q``."""
        kernel, room = (self._kernel("rope_kv_write", name) for name in ("rope_kv_write", "Cache"))
        rope, write = self.dialect("rope"), self.kv_write()

        def apart(
            q: Any, k: Any, v: Any, cos: Any, sin: Any, keys: Any, values: Any, slots: Any, **kwargs: Any
        ) -> torch.Tensor | None:
            write(rope(k, cos, sin, **kwargs), v, keys, values, slots)
            return None if q is None else cast("torch.Tensor", rope(q, cos, sin, **kwargs))

        def run(
            q: Any, k: Any, v: Any, cos: Any, sin: Any, keys: Any, values: Any, slots: Any, **kwargs: Any
        ) -> torch.Tensor | None:
            if q is None or kernel is None or room is None:
                return apart(q, k, v, cos, sin, keys, values, slots, **kwargs)
            into = room(keys.data, values.data, slots, keys.scale, values.scale)
            return cast("torch.Tensor", kernel(q, k, v, cos, sin, into, **kwargs))

        return self._cast(run, (0, 1, 2))

    def paged_attention(self, layer: Layer) -> Callable[..., torch.Tensor]:
        """``(facts, q, …)``: the dialect's operands behind the lists of ``attention``."""
        kernel, dtype = self._kernel("paged_attention", "paged_attention"), self.dtype
        if kernel is None:
            self.on_bodies.add("paged_attention")
            body = OPS["paged_attention"].body

            def by_body(_: Any, q: Any, keys: Stored, values: Stored, *args: Any, **kwargs: Any) -> Any:
                whole = (cache.widened(it, dtype) for it in (keys, values))
                return body(q, *whole, *args, **kwargs)

            return self._cast(by_body, (1,))
        function, invariant = kernel, self.batch_invariant

        def run(facts: Any, q: Any, keys: Stored, values: Stored, *args: Any, **kwargs: Any) -> Any:
            return function(
                q, keys.data, values.data, *args, **kwargs,
                k_scales=keys.scale, v_scales=values.scale, work=facts[layer], batch_invariant=invariant,
            )  # fmt: skip

        return self._cast(run, (1,))

    def lists(self, layers: Iterable[Layer], kv_bytes: int, device: torch.device) -> Lists | None:
        """What makes the lists of attention's kernels; None where attention runs on its body."""
        if self._kernel("paged_attention", "paged_attention") is None:
            return None
        return Lists(layers, kv_bytes, device, batch_invariant=self.batch_invariant)

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """How the cache can store numbers; the first is the default."""
        return cache.kv_dtypes(self.dtype)
