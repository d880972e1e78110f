import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from optpipe.errors import KernelError
from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.library import Pool


@pytest.fixture
def loaded():
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    return native.library()


def largest(library, pool, rows=7):
    x = np.random.default_rng(rows).normal(size=(rows, 33)).astype(np.float32)
    ids = np.zeros(rows, np.int64)
    library.call("argmax", [x, ids], pool=pool)
    return (ids == x.argmax(1)).all()


def run(code, **environment):
    """Run a script with the library loaded as ``L``; what it printed."""
    head = "import os, numpy as np\nfrom optpipe_kernels.cpu.library import Pool, library\n"
    command = [sys.executable, "-c", head + code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_on_any_number_of_processors(loaded, threads):
    with Pool(loaded, threads, [0] * threads if threads == 2 else None) as pool:
        assert all(largest(loaded, pool, rows) for rows in (1, 2, 100))


def test_an_idle_pool_sleeps(loaded):
    with Pool(loaded, 3) as pool:
        assert largest(loaded, pool)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.03
        assert largest(loaded, pool)  # and wakes


def test_two_callers_take_turns(loaded):
    fine = []
    with Pool(loaded, 2) as pool:
        callers = [
            threading.Thread(target=lambda: fine.extend(largest(loaded, pool, 50) for _ in range(100)))
            for _ in range(2)
        ]
        for it in callers:
            it.start()
        for it in callers:
            it.join()
    assert fine == [True] * 200


def test_refuses_no_threads_and_pins_that_do_not_match(loaded):
    with pytest.raises(KernelError, match="1 to 1024 threads, got 0"):
        Pool(loaded, 0)
    with pytest.raises(KernelError, match="2 threads was given 1 processors"):
        Pool(loaded, 2, [0])


def test_a_forked_child_has_threads_of_its_own(loaded):
    done = run("""
pool, x, ids = Pool(library(), 2), np.eye(4, dtype=np.float32), np.zeros(4, np.int64)
library().call("argmax", [x, ids], pool=pool)
child = os.fork()
ids[:] = 0
library().call("argmax", [x, ids], pool=pool)
if child == 0:
    os._exit(0 if ids.tolist() == [0, 1, 2, 3] else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ids.tolist())
""")
    assert done.stdout == "0 [0, 1, 2, 3]\n", done.stderr


def test_a_process_ends_though_its_pool_lives(loaded):
    done = run("""
pool, x, ids = Pool(library(), 3), np.ones((1, 1), np.float32), np.zeros(1, np.int64)
library().call("argmax", [x, ids], pool=pool)
""")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("isa", ["avx2", "scalar"])
def test_the_environment_forces_an_instruction_set(loaded, isa):
    if isa not in loaded.isas:
        pytest.skip(f"this processor does not run {isa}")
    assert run("print(library().isa)", OPTPIPE_CPU_ISA=isa).stdout == f"{isa}\n"


def test_an_unknown_instruction_set_is_refused(loaded):
    code = """
try:
    library()
except Exception as error:
    print(type(error).__name__, error)
"""
    words = "KernelError OPTPIPE_CPU_ISA is 'sse9': 'sse9' is not an instruction set that this library"
    assert run(code, OPTPIPE_CPU_ISA="sse9").stdout.startswith(words)


def test_a_library_that_is_not_there_is_refused(loaded):
    done = run("library()", OPTPIPE_CPU_LIBRARY="/nowhere.so")
    assert "OPTPIPE_CPU_LIBRARY names '/nowhere.so', where there is no file" in done.stderr


def test_every_level_has_the_same_kernels_in_the_same_order(library):
    assert library.kernels == native.library().kernels
    assert len(set(library.kernels)) == len(library.kernels)


def test_a_mistyped_kernel_is_refused_with_the_nearest(loaded):
    with pytest.raises(KernelError, match="no CPU kernel 'argmxa'") as caught:
        loaded.call("argmxa", [])
    assert caught.value.hint == "did you mean 'argmax'?"
