"""For every test: one thread, so that suites can run beside each other and sums have one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; subprocesses inherit it
