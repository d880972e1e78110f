"""Passes and the manager that runs them: order, contracts, remarks, reproducers."""

from .base import Pass, auto
from .contract import Contract, Lossless, Lossy
from .stage import Stage

__all__ = ["Contract", "Lossless", "Lossy", "Pass", "Stage", "auto"]
