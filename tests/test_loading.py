"""Which target runs an artifact."""

import dataclasses
from types import SimpleNamespace

import pytest

import optpipe.loading as loading
from optpipe.artifact import Artifact
from optpipe.errors import OptpipeError, PluginError
from optpipe.program import parse_program


class Entry:
    def __init__(self, rank=None, reason=None):
        if rank is not None:
            self.rank, self.why_not = rank, lambda: reason

    def load(self, program, weights, **options):
        return (self, program, weights, options)


class Light(Entry):
    def load_artifact(self, artifact, *, threads=1):
        return (self, artifact, threads)


PAGED = parse_program("optpipe.program 1\ninput %block_tables: i32[B, M]\nreturn %block_tables\n")
UNPAGED = parse_program("optpipe.program 1\ninput %input_ids: i64[T]\nreturn %input_ids\n")


@pytest.fixture
def artifact():
    found = Artifact(path=None, manifest=None, program=PAGED, config={})
    found.__dict__["weights"] = "weights"
    return found


@pytest.fixture
def targets(monkeypatch):
    entries = {
        "reference": Entry(0),
        "fast": Light(10),
        "absent": Entry(20, "there is no such device"),
        "private": Entry(),
    }
    provided = {name: SimpleNamespace(value=entry) for name, entry in entries.items()}
    monkeypatch.setattr(loading, "installed_plugins", lambda: SimpleNamespace(targets=lambda: provided))
    return entries


def test_auto_takes_the_highest_that_can_run(targets, artifact):
    assert loading.load(artifact, target="auto")[0] is targets["fast"]
    targets["fast"].why_not = lambda: "no compiler was there"
    assert loading.load(artifact, target="auto")[0] is targets["reference"]


def test_auto_leaves_to_the_reference_what_it_alone_takes(targets, artifact):
    assert loading.load(artifact, target="auto", device="cpu")[0] is targets["reference"]
    unpaged = dataclasses.replace(artifact, program=UNPAGED)
    unpaged.__dict__["weights"] = "weights"
    assert loading.load(unpaged, target="auto")[0] is targets["reference"]


def test_auto_with_a_device_takes_the_fastest_that_has_it(targets, artifact):
    targets["absent"].devices = ("cuda",)
    assert loading.load(artifact, target="auto", device="cuda:1")[0] is targets["reference"]
    targets["absent"].why_not = lambda: None
    assert loading.load(artifact, target="auto", device="cuda:1")[0] is targets["absent"]
    assert loading.load(artifact, target="auto", device="cpu")[0] is targets["reference"]


def test_by_name_any_of_them(targets, artifact):
    assert loading.load(artifact, target="private", x=1) == (
        targets["private"],
        PAGED,
        "weights",
        {"x": 1},
    )


def test_a_target_that_reads_the_artifact_itself_gets_it(targets):
    artifact = Artifact(
        path=None, manifest=None, program="program", config={}
    )  # whose weights cannot be read
    assert loading.load(artifact, target="fast", threads=2) == (targets["fast"], artifact, 2)


def test_what_is_wrong_is_said(targets, artifact):
    with pytest.raises(PluginError) as caught:
        loading.load(artifact, target="fsat")
    assert caught.value.hint == "did you mean 'fast'?"
    with pytest.raises(PluginError) as caught:
        loading.load(artifact, target="zzz")
    assert caught.value.hint == "known: auto, reference, fast, absent, private"
    with pytest.raises(OptpipeError, match=r"The target 'fast' has no option 'device'\."):
        loading.load(artifact, target="fast", device="cuda")


def test_a_defect_of_a_target_is_not_said_to_be_an_option(targets, artifact):
    def load_artifact(artifact):
        return len(3)

    targets["fast"].load_artifact = load_artifact
    with pytest.raises(TypeError, match="has no len"):
        loading.load(artifact, target="fast")
