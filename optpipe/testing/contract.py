"""Does a pass keep its contract on a whole model? The same checks as in ``optpipe optimize``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .architectures import ARCHITECTURES
from .tiny import save_tiny

if TYPE_CHECKING:
    from ..pipeline import Pass
    from ..pipeline.manager import PassRecord


def assert_contract(
    model: str | Path, passes: str | Pass | Sequence[Pass], *, max_kld: float | None = None
) -> PassRecord:
    """Optimize a model with a pass, checking everything that can be checked, and return what it did.

        result = assert_contract("granite", "fold-scale")
        assert result.rewrites >= 4

    The always-on passes and what the pass requires run too, as they will for its users.

    Args:
        model: the name of a tiny model (``tiny_names()``), a model type of transformers, or a folder.
        passes: the pass: its text (``"fold-scale{smallest=0.5}"``, then it must be installed), or itself.
            Of several the first is reported.
        max_kld: the budget of a lossy pass in nats, instead of its own.

    Raises:
        ContractError: the pass changed the numbers more than it promises.
        PassError, TraceError, PipelineError: as ``optpipe.optimize``.
    """
    from ..optimizer import optimize, plan
    from ..pipeline import Pass

    given = passes if isinstance(passes, str) else ((passes,) if isinstance(passes, Pass) else tuple(passes))
    name = _first(given) if isinstance(given, str) else given[0].name
    assert name in {p.name for p in plan(given)}, f"{name = } must be one of the pipeline's passes"
    with tempfile.TemporaryDirectory(prefix="optpipe-contract-") as scratch:
        folder = Path(model)
        if model in ARCHITECTURES or not folder.is_dir():
            folder = save_tiny(str(model), Path(scratch) / "model")
        report = optimize(str(folder), passes=given, output=Path(scratch) / "artifact", max_kld=max_kld)
    return next(row for row in report.rows if row.name == name)


def _first(text: str) -> str:
    """The name of the first pass in a pipeline's text.

    >>> _first("quant{bits=4},paged")
    'quant'
    """
    return text.split(",")[0].split("{")[0].strip()
