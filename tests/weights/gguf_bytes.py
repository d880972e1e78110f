"""GGUF files made by hand, so that they can also be wrong."""

import struct
from collections.abc import Sequence
from pathlib import Path

STRING, ARRAY, U32 = 8, 9, 4


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """``shape`` in torch's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))


def gguf(
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    keys: Sequence[bytes] = (ARCHITECTURE,),
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors, pairs = counts or (len(infos), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(keys) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + data


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path
