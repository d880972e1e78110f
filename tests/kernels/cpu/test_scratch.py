"""Folders to pack in: of processes that live, of one that was killed, and of several that pack at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.scratch import scratch_folder

HOLD = """
import sys
from pathlib import Path
from optpipe_kernels.cpu.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "weights.bin").write_bytes(bytes(100))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has a folder, and that folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())


def test_a_folder_is_its_processs_until_that_is_killed(holder, tmp_path):
    process, theirs = holder
    with scratch_folder(tmp_path) as ours:
        assert theirs.is_dir() and ours.is_dir()
    assert list(tmp_path.iterdir()) == [theirs]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (theirs / "weights.bin").is_file()
    with scratch_folder(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_an_error(tmp_path):
    def fail():
        with scratch_folder(tmp_path / "new") as folder:
            (folder / "index.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []


LOAD = """
import sys, numpy as np
from optpipe.artifact import load_artifact
from optpipe_kernels.cpu.target import CpuTarget
executor = CpuTarget().load_artifact(load_artifact(sys.argv[1]), threads=1)
np.save(sys.argv[2], executor.logits(np.arange(5, 25)))
"""


def test_processes_that_pack_at_once_give_the_same_and_leave_one_folder(tiny, tmp_path):
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    cache, outs = tmp_path / "cache", [tmp_path / f"{n}.npy" for n in range(4)]
    environment = os.environ | {"OPTPIPE_CACHE": str(cache)}
    commands = [[sys.executable, "-W", "error", "-c", LOAD, tiny("llama"), out] for out in outs]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    assert [it.wait(60) for it in processes] == [0] * 4
    for out in outs[1:]:
        np.testing.assert_array_equal(np.load(out), np.load(outs[0]))
    assert len(list((cache / "cpu").iterdir())) == 1
