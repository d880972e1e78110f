"""Runs: ours and a peer's, in turn, cell by cell, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .forms import CELLS, CONTEXT, PROMPT, THREADS, Cell, Peer, Variant
from .models import Shelf
from .watch import Watch

DRIVERS = Path(__file__).parent / "drivers"
SETTLE = 0.1  # seconds between two processes: threads that spin go to sleep
PRODUCTS = 0.4  # seconds a cell and round
RUNS = 15  # steps of a profile
EXPORTED = ("generator", "target")  # what runs optpipe's ONNX export beside ONNX Runtime GenAI's own model
KINDS = ("products", "attention", "other", "step")


class DriverError(Exception):
    """A driver ended; the message is its last words."""


class Driver:
    """A process that answers."""

    def __init__(self, python: Path | str, script: str, given: dict[str, Any]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            [str(python), str(DRIVERS / f"{script}.py"), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.hello = self._read()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin is not None, "stdin is a pipe"
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # then there is no answer either, and the log says why
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None, "stdin is a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "stdout is a pipe"
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise DriverError(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"it ended with {self._process.returncode} and said nothing"


@dataclass(frozen=True)
class Ours:
    """A form of ours that runs beside a peer."""

    form: str
    activations: str

    @property
    def name(self) -> str:
        """Unique within a record."""
        return f"{self.form}, activations {self.activations}"


def beside(form: str) -> list[Ours]:
    """What of ours runs beside a peer's form: the same one with the peers' activations, and the default."""
    same = Ours("int4-8" if form == "bf16" else form, "int8")
    return [same] if form == "int8-8" else [same, Ours("default", "int16")]


def compare(shelf: Shelf, peer: Peer, variant: Variant, python: Path | str, rounds: int) -> dict[str, Any]:
    """Measure a variant of a peer, and ours beside it.

    Returns:
        the record of the results file: rates of the peer and of ours by cell, and what ours could reach.

    Raises:
        DriverError: the peer fails.
    """
    given = {"model": str(shelf.of_kind(peer.kind, variant.form)), "threads": THREADS, **variant.settings}
    watch = Watch()
    drivers = {"peer": Driver(python, peer.driver, given)}
    mine = beside(variant.form)
    try:
        for it in mine:
            drivers[it.name] = our_driver(shelf, it)
        if peer.kind == "onnx":
            drivers |= through_onnx(shelf, variant.form, python)
        bounds = {it.name: Bounds(drivers[it.name]) for it in mine}
        rates = interleave(drivers, rounds, bounds)
        shares = {it.name: profile(drivers[it.name]) for it in mine}
        hello = drivers["peer"].hello
        memory = drivers["peer"].ask("prompt", tokens=8)["peak_mb"]
    finally:
        for driver in drivers.values():
            driver.close()
    exported = {name: rates.pop(name) for name in EXPORTED if name in rates}
    if exported:
        exported["builder"] = rates["peer"]
    return ({"exported": exported} if exported else {}) | {
        "form": variant.form,
        "settings": variant.settings,
        "versions": hello["versions"],
        "load_seconds": round(hello["load_seconds"], 2),
        "peak_mb": memory,
        "others": round(watch.others(), 3),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "peer": rates.pop("peer"),
        "ours": rates,
        "products": {name: it.found() for name, it in bounds.items()},
        "profile": shares,
    }


def our_driver(shelf: Shelf, ours: Ours, how: str = "steps") -> Driver:
    """Ours, in this interpreter."""
    model = str(shelf.optpipe(ours.form))
    given = {"model": model, "threads": THREADS, "activations": ours.activations, "how": how}
    return Driver(sys.executable, "drive_optpipe", given)


def through_onnx(shelf: Shelf, form: str, python: Path | str) -> dict[str, Driver]:
    """Our export, by the peer's own generator and by our ``onnx`` target."""
    ours = {"model": str(shelf.optpipe(form)), "threads": THREADS, "activations": "int8", "how": "onnx"}
    theirs = {"model": str(shelf.exported(form)), "threads": THREADS}
    return {
        EXPORTED[0]: Driver(python, "drive_onnxruntime", theirs),
        EXPORTED[1]: Driver(sys.executable, "drive_optpipe", ours),
    }


class Bounds:
    """What the matrix products alone allow, by cell, measured beside the steps that they bound."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._answers: dict[str, list[dict[str, Any]]] = {}

    def measure(self, cell: Cell) -> None:
        """Once more."""
        tokens = PROMPT if cell.steps == 0 else cell.batch
        answer = self._driver.ask("products", batch=cell.batch, tokens=tokens, seconds=PRODUCTS)
        self._answers.setdefault(cell.name, []).append(answer | {"rate": tokens / answer["seconds"]})

    def found(self) -> dict[str, dict[str, float]]:
        """By cell: the median of tokens a second, and bytes and operations of a step."""
        return {
            name: {
                "rate": round(statistics.median(it["rate"] for it in answers), 2),
                "bytes": answers[0]["bytes"],
                "operations": answers[0]["operations"],
            }
            for name, answers in self._answers.items()
        }


def interleave(
    drivers: dict[str, Driver], rounds: int, bounds: dict[str, Bounds]
) -> dict[str, dict[str, list[float]]]:
    """Tokens a second: driver → cell → a rate a round. One round before them does not count.

    Every second round goes backwards, as what a driver shows depends on who ran before it.

    Args:
        bounds: by the names of drivers, measured after each of their rates.
    """
    found: dict[str, dict[str, list[float]]] = {name: {it.name: [] for it in CELLS} for name in drivers}
    for turn in range(rounds + 1):
        order = list(drivers.items())[:: -1 if turn % 2 else 1]
        for cell in CELLS:
            for name, driver in order:
                if turn == 0 and cell.batch > 1:
                    continue
                value = rate(driver, cell)
                if turn > 0:
                    found[name][cell.name].append(round(value, 2))
                    if name in bounds:
                        bounds[name].measure(cell)
                time.sleep(SETTLE)
    return found


def rate(driver: Driver, cell: Cell) -> float:
    """Tokens a second of one measurement."""
    if cell.steps == 0:
        return PROMPT / float(driver.ask("prompt", tokens=PROMPT)["seconds"])
    seconds = driver.ask("decode", batch=cell.batch, context=CONTEXT, steps=cell.steps)["seconds"]
    return cell.batch * cell.steps / float(seconds)


def profile(driver: Driver) -> dict[str, dict[str, float]]:
    """Milliseconds of a step by what its instructions do, by cell."""
    found = {}
    for cell in CELLS:
        context, tokens = (0, PROMPT) if cell.steps == 0 else (CONTEXT, 1)
        answer = driver.ask("profile", batch=cell.batch, context=context, tokens=tokens, runs=RUNS)
        found[cell.name] = {key: round(answer[key], 4) for key in KINDS}
    return found


def median(values: Iterable[float]) -> float:
    """Of the rounds."""
    return statistics.median(values)
