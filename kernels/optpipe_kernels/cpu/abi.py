"""The structures and functions of ``native/include/optpipe_cpu.h``, which says what they mean, for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p

ABI = 2
MAX_RANK = 6
DTYPES = {
    "float32": 0,
    "bf16": 1,
    "float16": 2,
    "int64": 3,
    "int32": 4,
    "int8": 5,
    "uint8": 6,
    "bool": 7,
}
ONE, T, R, B, M, P = range(6)
ARENAS = 4  # units that have one
UNITS = 6
ABSENT, ARENA, EXTERNAL = range(3)


class Tensor(ctypes.Structure):
    """``optpipe_tensor``."""

    _fields_ = (
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("size", c_int64 * MAX_RANK),
        ("stride", c_int64 * MAX_RANK),
    )


class Extent(ctypes.Structure):
    """``optpipe_extent``: factor × a count of the step."""

    _fields_ = (("factor", c_int64), ("unit", c_int64))


class Operand(ctypes.Structure):
    """``optpipe_operand``."""

    _fields_ = (
        ("place", c_int32),
        ("dtype", c_int32),
        ("unit", c_int32),
        ("index", c_int32),
        ("offset", c_int64),
        ("start", Extent),
        ("rank", c_int32),
        ("reserved", c_int32),
        ("size", Extent * MAX_RANK),
        ("stride", Extent * MAX_RANK),
    )


class Instruction(ctypes.Structure):
    """``optpipe_instruction``."""

    _fields_ = (
        ("kernel", c_int32),
        ("operands", c_int32),
        ("first_operand", c_int32),
        ("ints", c_int32),
        ("first_int", c_int32),
        ("floats", c_int32),
        ("first_float", c_int32),
    )


_FUNCTIONS = {
    "abi": (c_int, ()),
    "error": (c_char_p, ()),
    "isa": (c_char_p, ()),
    "isas": (c_char_p, ()),
    "use_isa": (c_int, (c_char_p,)),
    "kernel": (c_int, (c_char_p,)),
    "kernels": (c_char_p, ()),
    "pool_new": (c_void_p, (c_int, POINTER(c_int))),
    "pool_free": (None, (c_void_p,)),
    "pool_threads": (c_int, (c_void_p,)),
    "call": (
        c_int,
        (c_void_p, c_int, POINTER(Tensor), c_int, POINTER(c_int64), c_int, POINTER(c_double), c_int),
    ),
    "plan_new": (
        c_void_p,
        (
            POINTER(Instruction),
            c_int,
            POINTER(Operand),
            c_int,
            POINTER(c_int64),
            c_int,
            POINTER(c_double),
            c_int,
            c_int,
            c_int64 * ARENAS,
        ),
    ),
    "plan_free": (None, (c_void_p,)),
    "run": (c_int, (c_void_p, c_void_p, POINTER(c_void_p), c_int64 * UNITS, c_int, c_int, POINTER(c_int64))),
    "locate": (c_int, (c_void_p, c_int, POINTER(Tensor))),
}


def declare(native: ctypes.CDLL) -> ctypes.CDLL:
    """Give every function its types.

    Raises:
        AttributeError: the library lacks one.
    """
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(native, f"optpipe_cpu_{name}")
        function.restype = result
        function.argtypes = arguments
    return native
