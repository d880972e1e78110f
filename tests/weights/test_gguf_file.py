import struct

import pytest

from optpipe.errors import ModelError
from optpipe.weights.gguf_file import read_gguf

from .gguf_bytes import ARCHITECTURE, ARRAY, STRING, U32, gguf, info, key, text, write

F32, Q4_0 = 0, 2


def test_reads_keys_and_places(tmp_path):
    keys = [
        ARCHITECTURE,
        key("llama.block_count", U32, struct.pack("<I", 7)),
        key("names", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("é")),
        key("numbers", ARRAY, struct.pack("<IQ", 6, 3) + struct.pack("<3f", 1, 2, 3)),
    ]
    content = gguf([info("x", (2, 32), Q4_0, 0), info("y", (5,), F32, 64)], bytes(84), keys=keys)
    file = read_gguf(write(tmp_path, content))
    assert file.architecture == "llama"
    assert file.metadata["llama.block_count"] == 7
    assert file.metadata["names"] == ["a", "é"]
    assert file.metadata["numbers"] == [1.0, 2.0, 3.0]
    assert file.tensors["x"].nbytes == 36
    assert file.tensors["y"].offset == len(content) - 20


def test_reads_a_file_of_version_two(tmp_path):
    assert read_gguf(write(tmp_path, gguf(version=2))).tensors == {}


BAD = {
    "empty": (b"", "too short"),
    "other magic": (b"GGML" + bytes(40), "not a GGUF file"),
    "version 1": (gguf(version=1), "is of version 1"),
    "big endian": (gguf(version=3 << 24), "is of version"),
    "absurd number of keys": (gguf(counts=(0, 1 << 60)), "ends at byte"),
    "absurd number of tensors": (gguf(counts=(1 << 60, 1)), "ends at byte"),
    "absurd string": (gguf(keys=[struct.pack("<Q", 1 << 62) + b"x" * 40]), "ends at byte"),
    "absurd array": (
        gguf(keys=[ARCHITECTURE, key("a", ARRAY, struct.pack("<IQ", 6, 1 << 61))]),
        "ends at byte",
    ),
    "absurd strings": (
        gguf(keys=[ARCHITECTURE, key("a", ARRAY, struct.pack("<IQ", 8, 1 << 40))]),
        "ends at byte",
    ),
    "array in array": (
        gguf(keys=[ARCHITECTURE, key("a", ARRAY, struct.pack("<IQ", 9, 1) + bytes(40))]),
        "array of type 9",
    ),
    "unknown value": (gguf(keys=[ARCHITECTURE, key("a", 77, bytes(8))]), "unknown type 77"),
    "not UTF-8": (gguf(keys=[key("general.architecture", STRING, text(b"\xff\xfe"))]), "not UTF-8"),
    "key twice": (gguf(keys=[ARCHITECTURE, ARCHITECTURE]), "key 'general.architecture' twice"),
    "no architecture": (gguf(keys=[key("a", U32, bytes(4))]), "does not say its architecture"),
    "architecture is a number": (gguf(keys=[key("general.architecture", U32, bytes(4))]), "does not say"),
    "tensor twice": (gguf([info("x", (1,), F32, 0)] * 2, bytes(8)), "tensor 'x' twice"),
    "no dimensions": (gguf([info("x", (), F32, 0)], bytes(8)), "0 dimensions"),
    "nine dimensions": (gguf([info("x", (1,) * 9, F32, 0)], bytes(8)), "9 dimensions"),
    "an empty dimension": (gguf([info("x", (0, 4), F32, 0)], bytes(8)), "not whole blocks"),
    "half a block": (gguf([info("x", (16,), Q4_0, 0)], bytes(18)), "not whole blocks"),
    "absurd shape": (gguf([info("x", (1 << 62, 1 << 62), F32, 0)], bytes(8)), "before the end of tensor 'x'"),
    "absurd offset": (gguf([info("x", (1,), F32, (1 << 64) - 8)], bytes(8)), "before the end of tensor 'x'"),
    "unknown ggml type": (gguf([info("x", (1,), 9999, 0)], bytes(8)), "unknown ggml type 9999"),
    "data cut short": (gguf([info("x", (8,), F32, 0)], bytes(31)), "before the end of tensor 'x'"),
    "odd alignment": (
        gguf(keys=[ARCHITECTURE, key("general.alignment", U32, struct.pack("<I", 24))]),
        "not a power of two",
    ),
    "alignment zero": (
        gguf(keys=[ARCHITECTURE, key("general.alignment", U32, bytes(4))]),
        "not a power of two",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(tmp_path, case):
    content, message = BAD[case]
    with pytest.raises(ModelError, match=message):
        read_gguf(write(tmp_path, content))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    keys = [ARCHITECTURE, key("names", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b"))]
    content = gguf([info("x", (2, 32), Q4_0, 0)], bytes(36), keys=keys)
    read_gguf(write(tmp_path, content))
    for length in range(len(content)):
        with pytest.raises(ModelError):
            read_gguf(write(tmp_path, content[:length]))


def test_a_long_hostile_name_is_cut_in_the_message(tmp_path):
    name = "../" * 10_000
    with pytest.raises(ModelError) as caught:
        read_gguf(write(tmp_path, gguf([info(name, (1,), 9999, 0)], bytes(8))))
    assert len(caught.value.message) < 300
