"""``optpipe new-pass``: the package it writes is whole, installs, and passes its own tests."""

import json
import os
import subprocess
import sys

import pytest

from optpipe.cli.main import run
from optpipe.cli.new_pass import write_package
from optpipe.errors import PluginError


def python(*arguments, folder, path=None):
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)} if path else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package, and a folder that it is installed in."""
    folder = tmp_path_factory.mktemp("new") / "optpipe-try-it"
    assert run(["new-pass", "try-it", "-o", str(folder)]) == 0
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    python("-m", "pip", "install", *options, ".", folder=folder)
    return folder, site


def test_its_own_tests_pass_once_it_is_installed(package):
    folder, site = package
    out = python("-m", "pytest", "-q", "-p", "no:cacheprovider", folder=folder, path=site)
    assert "6 passed" in out


def test_optpipe_finds_it_with_nothing_registered_by_hand(package):
    folder, site = package
    found = json.loads(python("-m", "optpipe", "passes", "try-it", "--json", folder=folder, path=site))
    assert found[0]["name"] == "try-it"
    assert found[0]["distribution"] == "optpipe-try-it"
    assert found[0]["stage"] == "FUSE"
    assert found[0]["options"] == [{"name": "smallest", "type": "float", "default": "0.0"}]


def test_what_it_writes_is_lint_free(package):
    python("-m", "ruff", "check", "--isolated", "--line-length", "110", ".", folder=package[0])


@pytest.mark.slow
def test_what_it_writes_is_typed(package):
    folder, site = package
    python("-m", "mypy", "--strict", "src", folder=folder, path=site)


def test_json_lists_the_files(tmp_path, capsys):
    assert run(["new-pass", "b-c", "-o", str(tmp_path / "x"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["files"]
    assert "src/optpipe_b_c/b_c.py" in written
    assert all((tmp_path / "x" / it).is_file() for it in written)


def test_the_name_of_a_pass_that_exists_is_refused(tmp_path, capsys):
    assert run(["new-pass", "paged", "-o", str(tmp_path / "x")]) == 1
    assert "of optpipe" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["", "Fold", "fold_scale", "-a", "a--b", "1a", "../a", "class"])
def test_a_name_that_is_no_pass_name_is_refused(name, tmp_path):
    with pytest.raises(PluginError, match="no name for a pass"):
        write_package(name, tmp_path / "x")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(PluginError, match="left alone"):
        write_package("a", tmp_path)
    assert [it.name for it in tmp_path.iterdir()] == ["mine"]
