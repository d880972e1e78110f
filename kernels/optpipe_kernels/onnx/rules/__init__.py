"""The table of mappings: which function writes an operation of a Program as ONNX. One theme a file."""

from __future__ import annotations

from . import arithmetic, attention, dialect, experts, indexing, quantized, shapes  # noqa: F401 - they fill it
from .table import RULES, Rule, maps

__all__ = ["RULES", "Rule", "maps"]
