"""The table of mappings: which function writes an operation of a Program as ONNX. One theme a file."""

from __future__ import annotations

from . import (  # noqa: F401 - they fill it
    arithmetic,
    attention,
    dialect,
    experts,
    filling,
    indexing,
    quantized,
    reductions,
    shapes,
)
from .table import RULES, Rule, maps

__all__ = ["RULES", "Rule", "maps"]
