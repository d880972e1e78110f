"""What contracts are measured on: logits in files, and what is left of them."""

from pathlib import Path

import pytest
import torch

from optpipe.pipeline.probes import Probes


@pytest.fixture
def probes():
    with Probes(vocabulary=50, encode=None) as made:
        yield made


def test_logits_come_back_a_few_rows_at_a_time_in_any_order(probes):
    given = [torch.randn(7, 50), torch.randn(3, 50).to(torch.bfloat16)]
    kept = [probes.keep(it) for it in given]
    first, second = (it.chunks(3) for it in kept)
    begin = next(first)  # two readers at once
    assert torch.equal(torch.cat(list(second)), given[1].float())
    assert torch.equal(torch.cat([begin, *first]), given[0])
    assert kept[0].difference(given[0] + torch.eye(7, 50) / 4) == pytest.approx(0.25, abs=1e-6)


def test_logits_lie_in_files_without_names_while_the_probes_live(reproducers):
    """A process that is killed leaves nothing; one that goes on keeps no descriptor."""
    with Probes(vocabulary=50, encode=None) as made:
        made.keep(torch.randn(7, 50))
        assert list(reproducers.iterdir()) == []
        assert opened(reproducers) == 1
    assert opened(reproducers) == 0


def opened(folder):
    """How many files of a folder this process has open, those without a name among them."""
    found = (link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sum(it.is_relative_to(folder) for it in found)
