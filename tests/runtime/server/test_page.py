"""The page: it loads nothing from elsewhere; in a browser it runs a prompt, shows errors, and watches."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .browser import Page, find_chromium, open_page
from .kit import ScriptExecutor, Served, serve, wait_until

SCRIPTS = {"user: hi\nassistant: ": "Hello <b>there</b>!", "user: long\nassistant: ": "a" * 200}


@pytest.fixture(scope="module")
def shown() -> Iterator[Served]:
    with serve(ScriptExecutor(SCRIPTS, cost=lambda step: 0.005)) as it:
        yield it


@pytest.fixture
def page(shown: Served, tmp_path: Path) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: `python tests/runtime/server/browser.py` fetches one")
    with open_page(program, tmp_path) as it:
        it.send("Page.navigate", url=shown.url)
        it.wait_for("document.readyState === 'complete' && document.getElementById('model').textContent")
        yield it


def run(page: Page, prompt: str) -> None:
    page.run(f"document.getElementById('prompt').value = {prompt!r}")
    page.run("document.getElementById('temperature').value = 0")
    page.run("document.getElementById('go').click()")


def text(name: str) -> str:
    return f"document.getElementById('{name}').textContent"


def test_it_is_complete_in_itself(shown: Served) -> None:
    answer = shown.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"\bsrc=|https?://|@import|\burl\(", answer.text)
    assert re.findall(r'href="(.*?)"', answer.text) == ["data:,"]


def test_only_its_own_script_may_run(shown: Served) -> None:
    answer = shown.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_runs_a_prompt_and_measures(page: Page) -> None:
    assert page.run(text("model")) == "tiny"
    run(page, "hi")
    page.wait_for(f"/[0-9]/.test({text('tokens')})")
    assert page.run(text("text")) == "Hello <b>there</b>!"  # as text, not as a document
    assert re.fullmatch(r"\d+ ms", page.run(text("ttft")))
    assert float(page.run(text("speed"))) > 0
    assert page.run(text("tokens")).endswith(" + 20")
    assert page.run("document.getElementById('go').disabled") is False
    assert page.console == []


def test_it_watches_the_server(page: Page, shown: Served) -> None:
    shown.executor.cost = lambda step: 0.02
    run(page, "long")
    page.wait_for(f"{text('running')} === '1'")
    page.wait_for(f"Number({text('rate')}) > 0")
    assert page.run(text("cache")).endswith(" %")
    page.wait_for(f"/[0-9]/.test({text('tokens')})")
    page.wait_for(f"{text('running')} === '0'")
    assert page.console == []


def test_stop_ends_the_request(page: Page, shown: Served) -> None:
    run(page, "long")
    page.wait_for(f"{text('text')}.length > 3")
    page.run("document.getElementById('stop').click()")
    wait_until(lambda: shown.idle)
    assert len(page.run(text("text"))) < 200


def test_it_shows_what_was_wrong(page: Page) -> None:
    page.run("document.getElementById('max').value = 100000")
    run(page, "hi")
    page.wait_for("document.getElementById('text').className === 'error'")
    assert "max_tokens" in page.run(text("text"))
