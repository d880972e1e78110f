"""What is in the wheel, what it takes to import it, and who may import whom."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"optpipe", "optpipe_passes", "optpipe_kernels", "optpipe_runtime"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What git tracks, and what it will: the tree without anything that was built in it."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    return source


def build(source, built, **environment):
    """The path of the wheel, built without the network."""
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(built),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    quick = {"SKBUILD_CMAKE_BUILD_TYPE": "Debug", "CMAKE_ARGS": "-DOPTPIPE_LEVELS="}
    path = build(source, tmp_path_factory.mktemp("wheel"), **quick)
    with zipfile.ZipFile(path) as archive:
        yield path.name, archive


def test_holds_exactly_the_four_packages(wheel):
    _, archive = wheel
    tops = {name.split("/")[0] for name in archive.namelist()}
    assert {it for it in tops if not it.endswith(".dist-info")} == PACKAGES


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_holds_the_native_library_and_none_of_its_sources(wheel):
    name, archive = wheel
    assert re.search(r"-py3-none-linux_\w+\.whl$", name)
    held = archive.namelist()
    assert [it for it in held if it.endswith(".so")] == ["optpipe_kernels/cpu/liboptpipe_cpu.so"]
    assert not [it for it in held if re.search(r"\.(pyc|c|cpp|h|map)$|__pycache__|/test_|/native/", it)]


def test_without_a_compiler_the_wheel_is_pure(source, tmp_path):
    path = build(source, tmp_path, CXX="/bin/false")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        held = archive.namelist()
    assert "optpipe_kernels/cpu/library.py" in held
    assert not [it for it in held if it.endswith((".so", ".cpp", ".h"))]


def test_every_package_is_typed_and_whole(wheel):
    _, archive = wheel
    held = set(archive.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    roots = {"optpipe": ROOT} | {f"optpipe_{it}": ROOT / it for it in ("passes", "kernels", "runtime")}
    sources = {
        str(path.relative_to(root)) for it, root in roots.items() for path in (root / it).rglob("*.py")
    }
    assert sources <= held


def test_carries_the_license_and_the_entry_points(wheel):
    _, archive = wheel
    (license_name,) = [it for it in archive.namelist() if it.endswith("/LICENSE")]
    assert "Apache License" in archive.read(license_name).decode()
    (entries,) = [it for it in archive.namelist() if it.endswith("/entry_points.txt")]
    text = archive.read(entries).decode()
    assert all(group in text for group in ("[console_scripts]", "[optpipe]", "[optpipe.commands]"))
    (metadata,) = [it for it in archive.namelist() if it.endswith("/METADATA")]
    assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()


def test_importing_optpipe_imports_neither_torch_nor_transformers_nor_numpy():
    modules = "optpipe, optpipe.errors, optpipe.plugins, optpipe.cli.main, optpipe.program"
    code = f"import sys, {modules}\nprint(*{{'torch', 'transformers', 'numpy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_runtime_imports_no_transformers():
    for path in (ROOT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [it for it in names if it.split(".")[0] == "transformers"], path
