"""Kernels on CPU tensors through Triton's interpreter, without ``TRITON_INTERPRET``.

That variable turns every ``triton.jit`` of the process into an interpreted function, so that nothing
compiles any more. Here a kernel and the helpers it calls are rewritten into interpreted twins beside
themselves, and the language is patched for the length of one launch. Helpers must be imported
by name (``from .common import helper``): a helper reached through its module is not found.

The interpreter computes with numpy: float32 dots are exact, bfloat16 is held as bits and only safe
once a kernel has cast it to float32, inline assembly and libdevice raise.

Source: triton/runtime/interpreter.py (``GridExecutor``, ``FunctionRewriter``), of 3.6 and of 3.9.
"""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import triton.compiler.code_generator  # noqa: F401 - before the language is patched: it keeps its functions
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

LOCK = threading.RLock()  # one launch at a time: the patched language and the program ids are global
_TWINS: dict[Callable[..., Any], Callable[..., Any]] = {}
_LIBRARY = (tl, tl.core, tl.standard, tl.math, tl.tensor)


def interpret(
    kernel: JITFunction[Any], grid: tuple[int, int, int], args: tuple[Any, ...], constants: Mapping[str, Any]
) -> None:
    """Run every program of ``grid``, one after the other, on CPU tensors that change in place."""
    with LOCK:
        twin = _twin(kernel)
        scope = interpreter._patch_lang(twin)
        before = knobs.runtime.interpret
        try:
            knobs.runtime.interpret = True
            _patch_library(scope)
            operands = [interpreter._implicit_cvt(arg) for arg in args]
            interpreter.interpreter_builder.set_grid_dim(*grid)
            with np.errstate(all="ignore"):  # as a GPU: inf − inf is NaN, and nobody is told
                for at in itertools.product(*map(range, grid)):
                    interpreter.interpreter_builder.set_grid_idx(*at)
                    twin(*operands, **constants)
        finally:
            knobs.runtime.interpret = before
            scope.restore()


def _twin(kernel: JITFunction[Any]) -> Callable[..., Any]:
    """The kernel as an interpreted Python function, with globals of its own."""
    function = kernel.fn
    if function in _TWINS:
        return _TWINS[function]
    space = dict(function.__globals__)
    space.setdefault("__triton_language", tl)
    space.setdefault("__triton_core", tl.core)  # the patch looks for the modules among the globals
    copy = types.FunctionType(
        function.__code__, space, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    copy.__annotations__ = dict(function.__annotations__)
    twin: Any = interpreter.FunctionRewriter(copy).rewrite_ast()
    twin.fn = twin  # reductions call what they combine with through this attribute
    _TWINS[function] = twin
    for name in function.__code__.co_names:
        if isinstance(space.get(name), JITFunction):
            space[name] = _twin(space[name])
    return _TWINS[function]


def _patch_library(scope: Any) -> None:
    """Put interpreted twins in the place of the language's own functions (``tl.sum``, ``x.sum()``)."""
    for owner in _LIBRARY:
        for name, member in list(vars(owner).items()):
            if isinstance(member, JITFunction):
                scope.set_attr(owner, name, _twin(member))
    # 3.6 asks numpy for the integer of an array of one element, which numpy has deprecated.
    scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
