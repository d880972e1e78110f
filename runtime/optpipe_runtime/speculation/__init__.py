"""Speculation: several tokens a step, the same text."""

from .controller import Controller
from .proposer import Ask, Proposer
from .speculator import SpeculationStats, Speculator

__all__ = ["Ask", "Controller", "Proposer", "SpeculationStats", "Speculator"]
