"""From the text of a graph to the native plan, without torch.

convert   Program → instructions over strided views; what no kernel does is a segment for torch
fuse      neighbouring instructions become one
arena     buffers get places: liveness, a multiple of T, R or B bytes
emit      the arrays that the C ABI takes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optpipe.errors import ArtifactError
from optpipe.program.program import Program
from optpipe.targets.protocol import CacheSpec

from .arena import place_buffers
from .convert import convert
from .emit import Emitted, emit
from .extent import Extent, Unit
from .fuse import fuse, greedy
from .instruction import Lowered, Segment
from .recipe import Recipe
from .view import External, new_buffer

__all__ = ["Emitted", "Lowered", "Plans", "Recipe", "Segment", "lower"]


@dataclass(frozen=True)
class Plans:
    """A paged Program, lowered.

    Attributes:
        logits: the plan that gives logits [R, V].
        greedy: the plan that gives the likeliest tokens [R] instead.
        lowered: what ``logits`` was written from.
        weights: what each weight external is made of.
        inputs: the dtype of each input external.
        cache_spec: the cache it needs.
        vocab_size: V.
    """

    logits: Emitted
    greedy: Emitted
    lowered: Lowered
    weights: dict[External, Recipe]
    inputs: dict[External, str]
    cache_spec: CacheSpec
    vocab_size: int


def lower(
    program: Program, quantized_bytes: Callable[[int], int], kv_dtype: str = "f32", *, planes: int = 1
) -> Plans:
    """Lower a Program.

    Args:
        program: of a paged artifact.
        quantized_bytes: bytes of one token's quantized activations of width K, as the kernels lay them out.
        kv_dtype: what the cache stores.
        planes: 2 rounds activations to 15 bits instead of 8: native/src/ops/quantize.h.

    Raises:
        ArtifactError: the Program is not paged.
    """
    spec = _cache_spec(program)
    lowered = fuse(convert(program, quantized_bytes, kv_dtype, planes=planes))
    ids, best = (new_buffer(dtype, (Extent(1, Unit.R),)) for dtype in ("i64", "f32"))
    assert ids is not None and best is not None, "a list of R is a buffer"
    likeliest = greedy(lowered, ids, best)
    vocab = lowered.output.size[-1].fixed
    assert vocab is not None, f"{lowered.output.size = } has a fixed width"
    inputs = {view.place: view.dtype for view in lowered.inputs if isinstance(view.place, External)}
    return Plans(
        emit(lowered, place_buffers(lowered)),
        emit(likeliest, place_buffers(likeliest)),
        lowered,
        lowered.weights,
        {place: dtype for place, dtype in inputs.items() if place.kind == "input"},
        spec,
        vocab,
    )


def _cache_spec(program: Program) -> CacheSpec:
    shapes = {each.value.name: each.value.type.shape for each in program.inputs if each.kind == "cache"}
    keys = [name for name in shapes if name.startswith("k_cache.")]
    if not keys or all(each.value.name != "block_tables" for each in program.inputs):
        raise ArtifactError(
            "The cpu target runs paged artifacts, and this one is not.",
            hint="optimize it with --passes paged",
        )
    layers = []
    for name in keys:
        values = shapes[name.replace("k_cache", "v_cache")]
        layers.append((int(shapes[name][2]), int(shapes[name][3]), int(values[3])))
    return CacheSpec(int(shapes[keys[0]][1]), tuple(layers))
