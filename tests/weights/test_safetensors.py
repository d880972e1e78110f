import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from optpipe.errors import ModelError
from optpipe.weights.safetensors import safetensors_weights


def write(folder, header, data: bytes = b"", length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path):
    tensors = {
        "f": torch.randn(3, 5),
        "b": torch.randn(7, 2).to(torch.bfloat16),
        "h": torch.randn(4).to(torch.float16),
        "i": torch.arange(6),
        "flag": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    weights = safetensors_weights(tmp_path / "m.safetensors")
    assert weights.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert weights[name].dtype == tensor.dtype
        assert weights[name].shape == tuple(tensor.shape)
        assert torch.equal(weights[name].load(), tensor)
    assert torch.equal(weights["b"].rows(torch.tensor([6, 0])), tensors["b"][[6, 0]])


def test_data_at_an_odd_offset_is_read(tmp_path):
    raw = json.dumps({"x": entry()}).encode()
    raw += b" " * (1 - (8 + len(raw)) % 2)  # an odd place for the data
    path = write(tmp_path, raw, struct.pack("<2f", 1.5, -2))
    assert safetensors_weights(path)["x"].load().tolist() == [1.5, -2.0]


def test_writing_into_a_loaded_tensor_leaves_the_file_alone(tmp_path):
    path = write(tmp_path, {"x": entry()}, struct.pack("<2f", 1, 2))
    safetensors_weights(path)["x"].load().zero_()
    assert safetensors_weights(path)["x"].load().tolist() == [1.0, 2.0]


BAD = {
    "header longer than allowed": (({}, b"", 1 << 40), "100000000 are allowed"),
    "header longer than the file": (({}, b"", 5000), "cut short"),
    "not JSON": ((b"{nonsense}", b""), "not valid JSON"),
    "not UTF-8": ((b'{"\xff": 1}', b""), "not valid JSON"),
    "nested too deep": ((b"[" * 200_000, b""), "not valid JSON"),
    "a list": (([1, 2, 3], b""), "not an object"),
    "no offsets": (({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "does not say"),
    "entry is a number": (({"x": 3}, bytes(8)), "does not say"),
    "three offsets": (({"x": entry() | {"data_offsets": [0, 8, 9]}}, bytes(8)), "does not say"),
    "negative shape": (({"x": entry(shape=[-2])}, bytes(8)), "not whole numbers"),
    "boolean shape": (({"x": entry(shape=[True, 2])}, bytes(8)), "not whole numbers"),
    "negative offset": (({"x": entry(begin=-8, end=0)}, bytes(8)), "not whole numbers"),
    "absurd shape": (({"x": entry(shape=[1 << 62, 1 << 62])}, bytes(8)), "which takes"),
    "wrong size": (({"x": entry(end=4)}, bytes(8)), "gives 4 bytes"),
    "past the end": (({"x": entry(begin=8, end=16)}, bytes(8)), "ends 8 bytes after the file"),
    "cut short": (({"x": entry()}, bytes(7)), "cut short"),
    "overlap": (({"x": entry(), "y": entry(begin=4, end=12)}, bytes(12)), "overlap"),
    "hole": (({"x": entry(begin=4, end=12)}, bytes(12)), "leave a hole"),
    "something behind": (({"x": entry()}, bytes(9)), "1 bytes after its last"),
    "FP8": (({"x": entry(dtype="F8_E4M3", end=2)}, bytes(2)), "stored as F8_E4M3"),
    "dtype is a list": (({"x": entry(dtype=["F32"])}, bytes(8)), "which is not read"),
    "twice": ((b'{"x":%s,"x":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)), "tensor 'x' twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(tmp_path, case):
    arguments, message = BAD[case]
    with pytest.raises(ModelError, match=message):
        safetensors_weights(write(tmp_path, *arguments))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(ModelError, match="too short"):
        safetensors_weights(tmp_path / "x.safetensors")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    save_file({"x": torch.ones(3), "y": torch.ones(2)}, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(ModelError):
            safetensors_weights(tmp_path / "cut.safetensors")
