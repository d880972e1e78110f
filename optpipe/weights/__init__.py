"""The lazy weight store, and the formats that weights arrive in. Needs torch."""

from optpipe.weights.derived import PermutedRows, ShiftedWeight, TransposedWeight
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import BaseWeight, GridWeight, LazyWeight, TensorWeight, Weights

__all__ = [
    "BaseWeight",
    "GridInfo",
    "GridWeight",
    "LazyWeight",
    "PermutedRows",
    "QuantizedTensor",
    "ShiftedWeight",
    "TensorWeight",
    "TransposedWeight",
    "Weights",
]
