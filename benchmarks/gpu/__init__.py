"""Everything about a GPU in one command: see ``__main__``.

It also runs from a checkout that nobody installed, on a machine without a network.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("optpipe_kernels") is None:
    _root = Path(__file__).parents[2]
    _sources = [str(_root / name) for name in (".", "passes", "kernels", "runtime")]
    sys.path[:0] = _sources
    os.environ["PYTHONPATH"] = os.pathsep.join([*_sources, os.environ.get("PYTHONPATH", "")])
