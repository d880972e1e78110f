"""The values are those of gguf-py, bit for bit."""

import gguf as reference
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from optpipe.errors import ModelError
from optpipe.weights import PermutedRows, ShiftedWeight
from optpipe.weights.gguf import GgufWeight, gguf_weights
from optpipe.weights.gguf_file import read_gguf

from .gguf_bytes import gguf, info, write

OWN_GRID = {"Q4_0": (4, False), "Q4_1": (4, True), "Q8_0": (8, False), "Q4_K": (4, True)}
OTHER = ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0"]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_tensor(folder, kind: str, shape=(6, 512), seed: int = 0) -> tuple[GgufWeight, np.ndarray]:
    """A tensor of random bytes (finite scales) and its values as gguf-py has them."""
    ggml = GGMLQuantizationType[kind]
    per_block, block_bytes = GGML_QUANT_SIZES[ggml]
    rows, blocks = int(np.prod(shape[:-1])), shape[-1] // per_block
    data = np.random.default_rng(seed).integers(0, 256, (rows * blocks, block_bytes), dtype=np.uint8)
    halves = {
        "Q4_1": (0, 2),
        "Q5_1": (0, 2),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
    }
    for at in halves.get(kind, {"Q6_K": (208,), "TQ1_0": (52,)}.get(kind, (0,))):
        data[:, at + 1] &= 0xBF  # clears the exponent's top bit: no infinity, no NaN
    data = data.reshape(rows, -1)
    path = write(folder, gguf([info("x", shape, ggml.value, 0)], data.tobytes()))
    return gguf_weights(read_gguf(path))["x"], reference.quants.dequantize(data, ggml).reshape(shape)


def same_bits(tensor: torch.Tensor, values: np.ndarray) -> bool:
    return tensor.dtype == torch.float32 and tensor.numpy().tobytes() == values.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", OWN_GRID)
def test_blocks_on_their_own_grid_are_the_files_values(tmp_path, kind):
    weight, values = random_tensor(tmp_path, kind)
    blocks = weight.blocks()
    bits, has_minimum = OWN_GRID[kind]
    assert (blocks.bits, blocks.group, blocks.minimum is not None) == (bits, 32, has_minimum)
    assert weight.grid == blocks.info
    assert int(blocks.codes.max()) < 1 << bits
    assert blocks.scale.dtype == (torch.float32 if kind == "Q4_K" else torch.float16)
    assert same_bits(blocks.dequantize(), values)


@pytest.mark.parametrize("kind", [*OWN_GRID, *OTHER])
def test_load_is_the_files_values(tmp_path, kind):
    weight, values = random_tensor(tmp_path, kind)
    assert weight.shape == values.shape
    assert weight.dtype == torch.float32
    assert same_bits(weight.load(), values)


@pytest.mark.parametrize("kind", [*OWN_GRID, "Q6_K"])
def test_rows_are_rows_of_the_whole(tmp_path, kind):
    weight, values = random_tensor(tmp_path, kind)
    index = torch.tensor([5, 0, 0, 3])
    assert same_bits(weight.rows(index), values[index.numpy()])


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K"])
def test_stacked_experts_keep_their_shape(tmp_path, kind):
    weight, values = random_tensor(tmp_path, kind, (3, 4, 256))
    assert same_bits(weight.load(), values)
    assert same_bits(weight.rows(torch.tensor([2, 0])), values[[2, 0]])
    if weight.grid is not None:
        assert weight.blocks().codes.shape == (3, 4, 256)
        assert weight.blocks().scale.shape == (3, 4, 8)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_tensors_keep_their_dtype(tmp_path, kind):
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(PLAIN[kind])
    content = values.view(torch.uint8).numpy().tobytes()
    path = write(tmp_path, gguf([info("x", (4, 8), GGMLQuantizationType[kind].value, 0)], content))
    weight = gguf_weights(read_gguf(path))["x"]
    assert weight.dtype == PLAIN[kind]
    assert torch.equal(weight.load(), values)
    assert torch.equal(weight.rows(torch.tensor([3, 1])), values[[3, 1]])
    with pytest.raises(ModelError, match="not on a grid"):
        weight.blocks()


def test_a_large_tensor_is_dequantized_in_pieces(tmp_path, monkeypatch):
    from optpipe.weights import gguf as module

    weight, values = random_tensor(tmp_path, "Q4_0", (17, 64))
    monkeypatch.setattr(module, "_CHUNK", 200)
    assert same_bits(weight.load(), values)


def test_permuted_rows_move_codes_and_scales(tmp_path):
    weight, values = random_tensor(tmp_path, "Q4_1")
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = PermutedRows(weight, order)
    assert moved.grid == weight.grid
    assert same_bits(moved.load(), values[order.numpy()])
    assert same_bits(moved.blocks().dequantize(), values[order.numpy()])
    assert same_bits(moved.rows(torch.tensor([2])), values[[5]])


def test_shifted_norms_are_float32(tmp_path):
    weight, values = random_tensor(tmp_path, "F32", (8,))
    assert same_bits(ShiftedWeight(weight, -1.0).load(), values - np.float32(1))


def test_a_type_that_gguf_cannot_dequantize_is_named(tmp_path):
    kind = GGMLQuantizationType.Q8_K
    path = write(tmp_path, gguf([info("x", (1, 256), kind.value, 0)], bytes(GGML_QUANT_SIZES[kind][1])))
    with pytest.raises(ModelError, match="stored as Q8_K") as caught:
        gguf_weights(read_gguf(path))["x"].load()
    assert caught.value.hint is not None
