"""The dialect's operations on torch's CPU dispatcher, run by the native kernels.

After ``register()``, ``torch.ops.optpipe.rope(…)`` on CPU tensors runs the kernel, and so does an FX graph,
node by node. That is for tests and for looking at one operation; what is fast is a plan. The reference target
calls bodies and is untouched. What no kernel takes (other dtypes, other groups) still runs on the body.

Two differences from a plan: weights are packed at their first use and kept while their tensor lives; and the
cache keeps torch's layout, so ``kv_write`` stays the body and ``paged_attention`` lays it out at every call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from optpipe.dialect import OPS
from optpipe.errors import KernelError

from .cache import cache_bytes
from .library import Pool, library
from .lowering.dialect_rules import ACTIVATIONS, NO_LIMIT
from .lowering.recipe import Experts, Linear, Matrix
from .making import make
from .pack import aligned_zeros, quantized_bytes

Optional = torch.Tensor | None
Grid = tuple[torch.Tensor, Optional, Optional]  # codes or values, scale, minimum

_KEPT: list[torch.library.Library] = []
_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()


def register(where: torch.library.Library | None = None) -> None:
    """Run the dialect's operations on CPU tensors by the native kernels.

    Args:
        where: whose registrations end with it; for the life of the process when None.

    Raises:
        KernelError: there is no native library.
    """
    library()
    if where is None:
        if _KEPT:
            return
        where = torch.library.Library("optpipe", "IMPL")
        _KEPT.append(where)
    for name, run in _RUNS.items():
        where.impl(name, functools.partial(_call, OPS[name].body, run), "CPU")


def _call(body: Callable[..., Any], run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    floats = [it for it in args if isinstance(it, torch.Tensor) and it.is_floating_point()]
    if floats[0].dtype is not torch.float32:
        return body(*args, **kwargs)
    try:
        return run(*args, **kwargs)
    except KernelError:
        return body(*args, **kwargs)  # raises what the dialect raises, or takes what kernels do not


@functools.cache
def _pool() -> Pool:
    return Pool(library(), torch.get_num_threads())


def _run(
    kernel: str,
    reads: Iterable[Optional | NDArray[Any]],
    writes: Iterable[Optional | NDArray[Any]],
    ints: Iterable[int] = (),
    floats: Iterable[float] = (),
) -> None:
    operands = [it.detach().contiguous().numpy() if isinstance(it, torch.Tensor) else it for it in reads]
    operands += [it.numpy() if isinstance(it, torch.Tensor) else it for it in writes]
    library().call(kernel, operands, tuple(ints), tuple(floats), pool=_pool())


def _rms_norm(x: torch.Tensor, weight: Optional, *, eps: float, unit_offset: bool = False) -> torch.Tensor:
    out = torch.empty(x.shape)
    _run("rms_norm", [x, weight], [out, None], [unit_offset], [eps])
    return out


def _add_rms_norm(
    x: torch.Tensor, other: torch.Tensor, weight: Optional, *, eps: float, unit_offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    out, total = torch.empty(x.shape), torch.empty(x.shape)
    _run("add_rms_norm", [x, other, weight], [out, total, None], [unit_offset], [eps])
    return out, total


def _layer_norm(x: torch.Tensor, weight: Optional, bias: Optional, *, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape)
    _run("layer_norm", [x, weight, bias], [out, None], (), [eps])
    return out


def _rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> torch.Tensor:
    out = torch.empty(x.shape)
    _run("rope", [x, cos, sin], [out], [interleaved])
    return out


def _gated_act(gate: torch.Tensor, up: torch.Tensor, *, kind: str) -> torch.Tensor:
    out = torch.empty(gate.shape)
    _run("gated_act", [gate, up], [out], [_kind(kind)])
    return out


def _gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    out = torch.empty((len(rows), *x.shape[1:]))
    _run("index_select", [x, rows], [out], [0])
    return out


def _quant_linear(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor,
    minimum: Optional = None, bias: Optional = None, *, bits: int, group: int,
) -> torch.Tensor:  # fmt: skip
    recipe = _linear((packed, scale, minimum), bits, group)
    rows = x.reshape(-1, recipe.inputs)
    out, q = torch.empty((len(rows), recipe.rows)), _quantized(rows)
    ints = (recipe.rows, recipe.inputs, bits, group, minimum is not None)
    _run("quant_linear", [q, _blob(recipe, (packed, scale, minimum)), bias, None], [out], ints)
    return out.reshape(*x.shape[:-1], recipe.rows)


def _quant_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: Optional = None,
    *,
    bits: int,
    group: int,
) -> torch.Tensor:
    recipe = _linear((packed, scale, minimum), bits, group)
    out = torch.empty((*ids.shape, recipe.inputs))
    ints = (recipe.rows, recipe.inputs, bits, group, minimum is not None)
    _run("embedding", [ids, _blob(recipe, (packed, scale, minimum))], [out], ints)
    return out


def _paged_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, query_start: torch.Tensor,
    context_lens: torch.Tensor, block_tables: torch.Tensor, sinks: Optional = None, alibi: Optional = None,
    *, scale: float, window: int | None = None, chunk: int | None = None, softcap: float | None = None,
) -> torch.Tensor:  # fmt: skip
    out = torch.empty((*q.shape[:2], v_cache.shape[3]))
    caches = [_laid_out(k_cache, keys=True), _laid_out(v_cache, keys=False)]
    slots = torch.arange(k_cache.shape[0] * k_cache.shape[1])
    _run("kv_write", [k_cache.flatten(0, 1), v_cache.flatten(0, 1), slots], caches)
    tables = [it.to(torch.int32) for it in (query_start, context_lens, block_tables)]
    limits = [NO_LIMIT if it is None else it for it in (window, chunk)]
    _run("paged_attention", [q, *caches, *tables, sinks, alibi], [out], limits, [scale, softcap or 0.0])
    return out


def _moe(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    gate_up_bias: Optional = None, down_bias: Optional = None,
    *, transposed: bool = False, **said: Any,
) -> torch.Tensor:  # fmt: skip
    made = [_stack((it, None, None), 32, 0, transposed) for it in (gate_up, down)]
    return _routed(x, experts, weights, made, (gate_up_bias, down_bias), **said)


def _quant_moe(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor,
    gate_up_packed: torch.Tensor, gate_up_scale: torch.Tensor, gate_up_minimum: Optional,
    down_packed: torch.Tensor, down_scale: torch.Tensor, down_minimum: Optional,
    gate_up_bias: Optional = None, down_bias: Optional = None,
    *, bits: int, group: int, **said: Any,
) -> torch.Tensor:  # fmt: skip
    grids = (gate_up_packed, gate_up_scale, gate_up_minimum), (down_packed, down_scale, down_minimum)
    made = [_stack(grid, bits, group, False) for grid in grids]
    return _routed(x, experts, weights, made, (gate_up_bias, down_bias), **said)


def _routed(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor,
    made: list[tuple[Experts, NDArray[Any]]], biases: tuple[Optional, Optional],
    *, kind: str, gated: bool = True, interleaved: bool = False,
    limit: float | None = None, alpha: float | None = None, up_offset: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    (first, gate_up), (second, down) = made
    out = torch.empty((len(x), second.matrix.rows))
    ints = (
        second.experts, first.inputs, second.inputs, second.matrix.rows, first.bits, first.group,
        first.minimum, _kind(kind), gated, interleaved,
    )  # fmt: skip
    floats = (float("inf") if limit is None else limit, alpha or 0.0, up_offset)
    _run("moe", [x, experts, weights, gate_up, down, *biases], [out], ints, floats)
    return out


_RUNS: dict[str, Callable[..., Any]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "gated_act": _gated_act,
    "gather_rows": _gather_rows,
    "quant_linear": _quant_linear,
    "quant_embedding": _quant_embedding,
    "paged_attention": _paged_attention,
    "moe": _moe,
    "quant_moe": _quant_moe,
}


def _kind(kind: str) -> int:
    if kind not in ACTIVATIONS:
        raise KernelError(f"the activation {kind} has no kernel")
    return 1 + ACTIVATIONS.index(kind)


def _quantized(rows: torch.Tensor) -> NDArray[np.uint8]:
    q = np.zeros((len(rows), quantized_bytes(rows.shape[1])), np.uint8)
    _run("quantize", [rows], [q])
    return q


def _names(grid: Grid) -> tuple[str | None, ...]:
    return tuple(None if it is None else str(k) for k, it in enumerate(grid))


def _linear(grid: Grid, bits: int, group: int) -> Linear:
    packed, scale, _ = grid
    assert scale is not None, "quantized weights have scales"
    matrix = Matrix(_names(grid), packed.shape[0])
    return Linear((matrix,), packed.shape[1] * 32 // bits, bits, group, scale.dtype is not torch.float16)


def _stack(grid: Grid, bits: int, group: int, transposed: bool) -> tuple[Experts, NDArray[Any]]:
    weight, scale, _ = grid
    rows, columns = (weight.shape[2], weight.shape[1]) if transposed else weight.shape[1:]
    inputs = columns if scale is None else columns * 32 // bits
    matrix = Matrix(_names(grid) if scale is not None else ("0",), rows, transposed)
    wide = scale is not None and scale.dtype is not torch.float16
    recipe = Experts(matrix, weight.shape[0], inputs, bits, group, wide)
    return recipe, _blob(recipe, grid)


def _blob(recipe: Linear | Experts, grid: Grid) -> NDArray[Any]:
    """The packed weight; kept while its first tensor lives and is not changed in place."""
    recipe.form  # noqa: B018 - refuses what no kernel takes before anything is packed
    state = (recipe, *(None if it is None else (id(it), it._version) for it in grid))
    found = _PACKED.get(grid[0])
    if found is None or found[0] != state:
        arrays = {str(k): it.detach().contiguous().numpy() for k, it in enumerate(grid) if it is not None}
        found = (state, make(recipe, arrays.__getitem__, _pool()))
        _PACKED[grid[0]] = found
    blob: NDArray[Any] = found[1]
    return blob


def _laid_out(cache: torch.Tensor, *, keys: bool) -> NDArray[np.float32]:
    """An empty cache in the kernels' layout, as an operand of the sizes [P, block, H, D]."""
    blocks, block, heads, width = cache.shape
    room = aligned_zeros(blocks * cache_bytes(block, heads, width, "f32", keys=keys)).view(np.float32)
    strides = [4 * it for it in (block * heads * width, heads * width, width, 1)]
    return np.lib.stride_tricks.as_strided(room, tuple(cache.shape), strides)
