"""The coverage table is whole, above its floor, honest about the hostile cases, and what the docs show."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import transformers

from optpipe.testing import mapping_names

ROOT = Path(__file__).resolve().parents[2]
FLOOR = 110
TABLE = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())
ENTRIES = {row["name"]: row for row in TABLE["entries"]}


def test_every_entry_of_the_mapping_is_there_and_enough_are_verified():
    """Another transformers may bring model types or drop refused ones; never one that the table verifies."""
    verified = {name for name, row in ENTRIES.items() if row["verified"]}
    if transformers.__version__ == TABLE["transformers"]:
        assert set(ENTRIES) == set(mapping_names())
    else:
        assert verified <= set(mapping_names())
    assert TABLE["verified"] == len(verified) >= FLOOR


def test_every_refusal_is_one_line_for_people():
    for row in ENTRIES.values():
        assert bool(row["reason"]) != row["verified"], row["name"]
        for word in ("guard", "Constraints", "TORCH", "torch.export", "Traceback", "Error", "failed", "("):
            assert word not in row["reason"] and "\n" not in row["reason"], row


@pytest.mark.parametrize("name", ["lfm2", "mamba", "mamba2", "qwen3_next", "rwkv", "jamba", "nemotron_h"])
def test_what_would_be_served_wrong_is_refused(name):
    assert not ENTRIES[name]["traced"]
    assert "recurrent or convolutional state" in ENTRIES[name]["reason"]


def test_the_page_is_the_tables():
    path = ROOT / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
        assert (ROOT / "docs" / "coverage.md").read_text() == module.page(TABLE)
    finally:
        del sys.modules[spec.name]
