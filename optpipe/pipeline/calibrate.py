"""What calibrated algorithms are given: text that no contract is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .probes import Probes


@dataclass(frozen=True)
class Calibration:
    """Windows of calibration text.

    Attributes:
        probes: where the text comes from; its own windows are never among those given here.
    """

    probes: Probes

    def windows(self, count: int) -> list[torch.Tensor]:
        """``count`` windows of token ids [T]."""
        return self.probes.calibration(count)
