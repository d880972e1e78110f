"""The docs say what the code is: every operation, pass, hook and command, and every link leads somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_pages_are_up_to_date(name):
    stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert stored == generate.PAGES[name](), "run `make docs`"


def test_every_operation_says_its_operands_and_result():
    from optpipe.dialect import OPS

    for name, op in OPS.items():
        assert "Args:" in op.doc, f"{name} has no Args"
        assert re.search(r"^Source:", op.doc, re.M), f"{name} has no Source"


def test_every_hook_says_when_it_is_called():
    from optpipe.plugins import hookspecs

    for name in hookspecs.hook_names():
        assert len((getattr(hookspecs, name).__doc__ or "").splitlines()) > 2, name


def test_every_built_in_pass_says_what_it_does():
    from optpipe.plugins.loader import GROUP, installed_entries, load_plugins

    found = load_plugins(installed_entries(GROUP), "").passes()
    assert found
    for name, it in found.items():
        assert it.value.summary(), name


def pages():
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_reaches_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text, page.name


EXAMPLES = {"fold-scale", "balance-channels"}  # what the tutorial makes and what examples/ holds


def test_commands_and_pipelines_in_the_docs_are_right():
    """Every ``optpipe NAME`` of a line of its own, and the pipeline behind its ``--passes``."""
    from optpipe.cli.lazy import OWN
    from optpipe.pipeline.text import parse_pipeline
    from optpipe.plugins.loader import GROUP, installed_entries, load_plugins

    known = {name: it.value for name, it in load_plugins(installed_entries(GROUP), "").passes().items()}
    found = 0
    for page in pages():
        for name, rest in re.findall(
            r"^ *optpipe ([a-z][a-z-]*)(.*)$", page.read_text(encoding="utf-8"), re.M
        ):
            assert name in {*OWN, "generate", "serve", "bench"}, f"{page.name}: optpipe {name}"
            pipeline = re.search(r"--passes (?:\"([^\"]*)\"|(\S+))", rest)
            text = (pipeline[1] or pipeline[2]) if pipeline else ""
            if pipeline and not any(it in text for it in EXAMPLES):
                parse_pipeline(text, known)
                found += 1
    assert found >= 3
