"""Programs and FX graphs, both ways. The part of this package that needs torch."""

from __future__ import annotations

from .fx_reader import from_fx
from .fx_writer import to_fx

__all__ = ["from_fx", "to_fx"]
