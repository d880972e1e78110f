"""A third-party plugin that is really installed, and what optpipe makes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optpipe.testing import save_tiny

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def install(source, site, scratch):
    """Build and install a package into a folder, without the network; its source stays as it is."""
    subprocess.run(["cp", "-r", str(source), str(scratch)], check=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, str(scratch / source.name)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with both distributions installed: the one of the tests and the one of the examples."""
    folder = tmp_path_factory.mktemp("site")
    for source in (HERE / "acme", ROOT / "examples" / "balance_channels"):
        install(source, folder, tmp_path_factory.mktemp("source"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def optpipe(site):
    """Run the program where the plugins are installed."""

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "optpipe", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(site), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_plugins_lists_everything_it_provides_and_the_broken_one(optpipe):
    found = optpipe("plugins", "--json")
    assert found.returncode == 0
    report = json.loads(found.stdout)
    acme = next(it for it in report["plugins"] if it["name"] == "acme")
    assert (acme["distribution"], acme["version"]) == ("acme-optpipe", "2.5")
    assert acme["provides"] == {
        "passes": ["acme-count"],
        "model sources": ["acme"],
        "kernels": ["acme-kernels"],
        "targets": ["acme"],
        "watches": ["after_pass", "before_pass"],
    }
    (broken,) = report["broken"]
    assert broken["name"] == "acme-broken"
    assert "no_such_module" in broken["error"]


def test_passes_says_where_each_is_from(optpipe):
    found = {it["name"]: it["distribution"] for it in json.loads(optpipe("passes", "--json").stdout)}
    assert found["acme-count"] == "acme-optpipe"
    assert found["balance-channels"] == "optpipe-balance-channels"
    assert found["quant"] == "optpipe"


def test_help_names_its_commands_without_importing_it(optpipe):
    found = optpipe("--help")
    assert "acme-hello" in found.stdout
    assert "(from acme-optpipe)" in found.stdout
    assert "was imported" not in found.stderr


def test_its_command_runs(optpipe):
    assert optpipe("acme-hello", "--name", "you").stdout == "hello you\n"


def test_a_broken_command_is_named_and_the_others_work(optpipe):
    found = optpipe("acme-broken-command")
    assert found.returncode == 1
    assert "'acme-broken-command'" in found.stderr
    assert "acme-optpipe" in found.stderr
    assert optpipe("--version").returncode == 0


def test_a_command_that_is_promised_and_absent_is_named(optpipe):
    found = optpipe("acme-absent")
    assert found.returncode == 1
    assert "promises a command 'acme-absent'" in found.stderr


def test_the_variable_leaves_it_out(optpipe):
    report = json.loads(optpipe("plugins", "--json", OPTPIPE_PLUGINS="").stdout)
    assert {it["distribution"] for it in report["plugins"]} == {"optpipe"}
    assert report["left_out"] == [
        "acme-optpipe:acme",
        "acme-optpipe:acme-broken",
        "optpipe-balance-channels:balance-channels",
    ]
    assert report["broken"] == []
    assert optpipe("acme-hello", OPTPIPE_PLUGINS="").returncode == 2


def test_the_variable_chooses_one(optpipe):
    report = json.loads(optpipe("plugins", "--json", OPTPIPE_PLUGINS="balance-channels").stdout)
    assert {it["distribution"] for it in report["plugins"]} == {"optpipe", "optpipe-balance-channels"}


def test_the_variable_naming_nothing_is_an_error(optpipe):
    found = optpipe("passes", OPTPIPE_PLUGINS="acne")
    assert found.returncode == 1
    assert "'acne'" in found.stderr


def test_doctor_says_why_its_kernels_cannot_run(optpipe):
    report = json.loads(optpipe("doctor", "--json").stdout)
    (family,) = [it for it in report["kernels"] if "acme" in it["from"]]
    assert family["problem"] == "this machine has no such device"
    assert any("acme-broken" in it for it in report["plugins"]["broken"])


def test_its_source_pass_watchers_and_target_work_together(optpipe, model, tmp_path):
    made = optpipe(
        "optimize", f"acme:{model}", "--passes", "acme-count,paged", "-o", tmp_path / "out", "--explain"
    )
    assert made.returncode == 0, made.stderr
    assert "acme-count: missed" in made.stdout
    assert "counted" in made.stdout
    assert "before acme-count" in made.stderr
    assert "after paged" in made.stderr
    assert "warning: The plugin 'acme-broken'" in made.stderr
    text = optpipe(
        "generate", tmp_path / "out", "hello", "--raw", "--max-tokens", "2", "--target", "acme", "--json"
    )
    assert json.loads(text.stdout)["finish_reason"] in ("length", "stop")


def test_the_example_pass_runs_before_quant_and_loses_nothing(optpipe, model, tmp_path):
    passes = "quant{zero=none algorithm=rtn},balance-channels,paged"
    made = optpipe("optimize", model, "--passes", passes, "--max-kld", "9", "-o", tmp_path / "out", "--json")
    assert made.returncode == 0, made.stderr
    rows = json.loads(made.stdout)["passes"]
    names = [row["pass"].split("{")[0] for row in rows]
    assert names.index("balance-channels") < names.index("quant")
    row = rows[names.index("balance-channels")]
    assert row["rewrites"] >= 1
    assert row["findings"][0]["value"] == 0.0


def test_the_tests_of_the_example_pass(site, tmp_path):
    """They are written for those who copy the package, and run where it is installed."""
    tests = ROOT / "examples" / "balance_channels" / "tests"
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tests),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "OPTPIPE_PLUGINS": "balance-channels"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "11 passed" in found.stdout, found.stdout


def test_a_contract_that_is_not_kept_writes_nothing(optpipe, model, tmp_path):
    made = optpipe("optimize", model, "--passes", "quant,paged", "--max-kld", "1e-9", "-o", tmp_path / "out")
    assert made.returncode == 1
    assert "'quant' broke its contract" in made.stderr
    assert not (tmp_path / "out").exists()
