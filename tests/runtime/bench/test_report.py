"""What makes numbers less than they seem is said; memory is the kernel's word."""

import subprocess
import sys

import pytest

from optpipe_runtime.bench.load import Load
from optpipe_runtime.bench.memory import peak_rss_mb
from optpipe_runtime.bench.record import Record
from optpipe_runtime.bench.report import result, warnings
from optpipe_runtime.bench.slo import Slo


def found(record=None, *, processor=0.1, settings=None, generator=True):
    record = record or answer()
    load = Load([record], 1.0, processor)
    return result(
        "serve", load, Slo(), settings=settings or {}, warmup=0, peak_rss_mb=None, generator=generator
    )


def answer(sent=0.0, **fields):
    return Record(0.0, sent, [0.5], output_tokens=1, **({"asked": 1, "counted_by": "usage"} | fields))


def test_a_good_run_needs_no_words():
    assert warnings(found()) == []
    assert found()["generator_share"] == 0.1
    assert found(generator=False)["generator_share"] is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"record": Record(0.0, error="HTTP 429: full")}, "1 requests failed: HTTP 429: full"),
        ({"record": answer(asked=9)}, "answers were shorter than asked: 1 of 9 tokens"),
        ({"record": answer(counted_by="chunks")}, "counted by chunks"),
        ({"record": answer(sent=0.02)}, "late, by 20.0 ms at p99"),
        ({"processor": 0.75}, "took 75% of a core"),
    ],
)
def test_what_is_worth_a_word(facts, said):
    [text] = warnings(found(**facts))
    assert said in text


def test_with_a_limit_of_requests_at_a_time_late_ones_are_meant():
    assert warnings(found(answer(sent=0.02), settings={"concurrency": 4})) == []


HOLD = "import sys; held = bytearray({size}); print(flush=True); sys.stdin.read()"
PARENT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


@pytest.mark.parametrize("children", [False, True])
def test_the_peak_of_a_process_and_its_children(children):
    size = 60_000_000
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, HOLD.format(size=size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"\n"
        peak = peak_rss_mb(process.pid, children=children)
        process.stdin.close()
    assert (peak >= size / 1e6) == children
    assert 1 < peak < 150


def test_a_process_that_is_gone_has_no_peak():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert peak_rss_mb(process.pid) is None
    assert peak_rss_mb() > 10
