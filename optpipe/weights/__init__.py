"""The lazy weight store, and the formats that weights arrive in. Needs torch."""

from optpipe.weights.derived import PermutedRows, ShiftedWeight, TransposedWeight
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import GridWeight, LazyWeight, TensorWeight, Weights

__all__ = [
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
