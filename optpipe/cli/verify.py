"""``optpipe verify``: is an artifact whole, does its graph hold together, do a target's numbers agree?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import Command, finite, json_option
from .eval import encoder
from .output import print_json, print_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..targets.protocol import Executor

# Of the largest logit. Two splits of one sequence differ in float32 by up to 1e-3 in logits of about 30.
STEP_TOLERANCE = 1e-4
TOKENS = 128
CHUNKS = (50, 1, 1, 60, 1)  # tokens a step: uneven, and single ones as in decoding


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what it was.
        holds: whether it is as it should be.
        detail: the figures.
    """

    name: str
    holds: bool
    detail: str


@click.command(cls=Command, name="verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--target", default="reference", help="The target whose numbers are compared with the reference's."
)
@click.option(
    "--device", default=None, help="Where the target runs, as torch names devices.  [default: the target's]"
)
@click.option(
    "--max-kld",
    default=0.01,
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    help="The mean KL divergence from the reference that a target may have, in nats.",
)
@json_option
def command(artifact: Path, target: str, device: str | None, max_kld: float, as_json: bool) -> int:
    """Check an artifact: hashes, graph, and a target's numbers.

    Exits with 1 when a check fails. A damaged folder is an error at once.
    """
    checks = list(run_checks(artifact, target, device, max_kld))
    if as_json:
        print_json({"holds": all(it.holds for it in checks), "checks": [asdict(it) for it in checks]})
    else:
        rows = [(it.name, "ok" if it.holds else "FAILED", it.detail) for it in checks]
        print_table(["check", "result", "detail"], rows)
    return int(not all(it.holds for it in checks))


def run_checks(folder: Path, target: str, device: str | None, max_kld: float) -> Iterator[Check]:
    """Every check, in order; what would make later ones meaningless raises.

    Raises:
        ArtifactError: the folder is damaged or its graph cannot be read.
        PassError: the graph does not hold together.
    """
    from .. import load
    from ..artifact import load_artifact
    from ..targets.reference import ReferenceExecutor
    from ..verifier import verify

    opened = load_artifact(folder)
    yield Check("files", True, f"{len(opened.manifest.files)} files have the hashes in the manifest")
    yield Check("weights", True, f"{len(opened.weights)} tensors are what the graph says")
    verify(opened.graph())
    yield Check("graph", True, f"{len(opened.program.nodes)} nodes hold together")
    ids = _probe(folder)
    reference: Executor = load(folder)
    wholes = [reference.logits(ids)]
    if any(node.op == "optpipe.row_wise_linear" for node in opened.program.nodes):
        # Noise turns codes of activations over: steps are compared without that rounding, targets with both.
        reference = ReferenceExecutor(opened.graph(), opened.weights, rounds=False)
        wholes.append(reference.logits(ids))
    if reference.cache_spec is not None:
        yield _steps(reference, ids, wholes[-1])
    if target != "reference":
        options = {} if device is None else {"device": device}
        yield _target(load(folder, target=target, **options), target, ids, wholes, max_kld)


def _probe(folder: Path) -> NDArray[np.int64]:
    import numpy as np

    from ..evaluate import evaluation_text

    return np.asarray(encoder(folder)(evaluation_text()[: 16 * TOKENS])[:TOKENS], dtype=np.int64)


def _steps(executor: Executor, ids: NDArray[np.int64], whole: NDArray[np.float32]) -> Check:
    """The sequence in uneven steps through the cache against the sequence at once."""
    import numpy as np

    from ..targets.steps import one_sequence

    assert executor.cache_spec is not None, "only a paged artifact takes steps"
    block = executor.cache_spec.block_size
    executor.allocate(-(-len(ids) // block))
    rows: list[Any] = []
    at = turn = 0
    while at < len(ids):
        end = min(at + CHUNKS[turn % len(CHUNKS)], len(ids))
        rows.append(executor.submit(one_sequence(ids[at:end], block, at)).result().logits)
        at, turn = end, turn + 1
    worst = float(np.abs(np.concatenate(rows) - whole).max())
    bound = STEP_TOLERANCE * float(np.abs(whole).max())
    detail = f"{turn} steps differ from one by {worst:.2g} in a logit; allowed {bound:.2g}"
    return Check("steps", worst <= bound, detail)


def _target(
    executor: Executor, name: str, ids: NDArray[np.int64], wholes: list[NDArray[np.float32]], max_kld: float
) -> Check:
    """A target's logits against the reference's.

    Args:
        wholes: the reference's; and those without the rounding of activations, where it rounds them. A target
            may be as near to either as the bound says, and as far from the second as the first is besides.
    """
    mine = executor.logits(ids)
    found = [_quality(ids, mine, whole) for whole in wholes]
    rounding = _quality(ids, *wholes)[0] if len(wholes) > 1 else 0.0
    kld, top1 = min(found)
    detail = f"KL {kld:.2g} from the reference, allowed {max_kld:g}; same first choice {top1:.1%}"
    if rounding:
        detail += f"; rounding activations is {rounding:.2g}, allowed besides"
    return Check(f"target {name}", kld <= max_kld + rounding, detail)


def _quality(
    ids: NDArray[np.int64], mine: NDArray[np.float32], theirs: NDArray[np.float32]
) -> tuple[float, float]:
    """KL of one's logits [T, V] from the other's, and the share of tokens with the same first choice."""
    import torch

    from ..evaluate import Meter

    meter = Meter()
    meter.update(torch.from_numpy(ids), [torch.from_numpy(mine)], [torch.from_numpy(theirs)])
    quality = meter.result()
    assert quality.kld is not None and quality.top1 is not None, "there was a source"
    return quality.kld, quality.top1
