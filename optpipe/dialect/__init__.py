"""The ``optpipe::`` operations: semantic, device free, one file each.

Importing this package declares every op on torch's dispatcher, so that graphs can hold them.
"""

from . import (
    add_rms_norm,
    attention,
    gated_act,
    gather_rows,
    kv_write,
    layer_norm,
    mask,
    moe,
    paged_attention,
    quant_embedding,
    quant_linear,
    quant_moe,
    rms_norm,
    rope,
    row_wise_linear,
)
from .op import OPS, Op, body_of, define

__all__ = [
    "OPS",
    "Op",
    "add_rms_norm",
    "attention",
    "body_of",
    "define",
    "gated_act",
    "gather_rows",
    "kv_write",
    "layer_norm",
    "mask",
    "moe",
    "paged_attention",
    "quant_embedding",
    "quant_linear",
    "quant_moe",
    "rms_norm",
    "rope",
    "row_wise_linear",
]
