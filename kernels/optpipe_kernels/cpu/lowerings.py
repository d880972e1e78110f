"""The lowerings of one Program: the whole of it or its first layers, a dtype of the cache each, made once."""

from __future__ import annotations

from collections.abc import Mapping

from optpipe.program.early_exit import early_exit, num_layers
from optpipe.program.program import Program

from .cache import CACHE_DTYPES
from .lowering import Plans, lower
from .lowering.recipe import Recipe
from .lowering.view import External
from .pack import quantized_bytes


class Lowerings:
    """Lowers when asked.

    A layer of a part is lowered as that of the whole, and head and embedding are the same, so all of a
    part's weights are weights of the whole.

    Args:
        program: of a paged artifact.
        planes: of 8 bits that activations are rounded to.
    """

    def __init__(self, program: Program, planes: int) -> None:
        self._program, self._planes = program, planes
        self._made: dict[tuple[str, int | None], Plans] = {}
        self.num_layers = num_layers(program)

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """What the cache may store, the default first: as exact as the activations are.

        Rounding SmolLM2's cache to bfloat16 costs 3e-5 nats, a hundredth of what activations of 8 bits cost.
        """
        exact, half, *others = CACHE_DTYPES
        return (half, exact, *others) if self._planes == 1 else CACHE_DTYPES

    @property
    def weights(self) -> Mapping[External, Recipe]:
        """How every weight is packed, whatever the cache stores."""
        return self.plans(self.kv_dtypes[0]).weights

    def plans(self, kv_dtype: str, layers: int | None = None) -> Plans:
        """The lowering for a cache of that dtype.

        Args:
            kv_dtype: of the cache.
            layers: None for all of them.

        Raises:
            ArtifactError: the Program is not paged, or cannot be left after that layer.
            RequestError: there are not so many layers.
        """
        key = (kv_dtype, layers)
        if key not in self._made:
            part = self._program if layers is None else early_exit(self._program, layers)
            self._made[key] = lower(part, quantized_bytes, kv_dtype, planes=self._planes)
        return self._made[key]
