import pytest
import torch

from optpipe.errors import ModelError
from optpipe.weights import TensorWeight
from optpipe.weights.packed import Scheme, check_quantization, join_packed, unpack

N, K = 24, 64


def parts(bits: int, group: int, *, asymmetric: bool = False, seed: int = 0, scale_dtype=torch.float16):
    """A matrix as compressed-tensors stores it, and the values that the library gives it."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    generator = torch.Generator().manual_seed(seed)
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    groups = 1 if group == -1 else K // group
    codes = torch.randint(low, high, (N, K), generator=generator, dtype=torch.int8)
    scale = (torch.rand(N, groups, generator=generator) + 0.1).to(scale_dtype)
    zero = torch.zeros(N, groups, dtype=torch.int8)
    if asymmetric:
        zero = torch.randint(low, high, (N, groups), generator=generator, dtype=torch.int8)
    difference = (codes.float() - zero.float().repeat_interleave(K // groups, 1)).double()
    values = (difference * scale.double().repeat_interleave(K // groups, 1)).float()
    stored = {
        "m.weight_packed": pack_to_int32(codes, bits),
        "m.weight_scale": scale,
        "m.weight_shape": torch.tensor([N, K]),
    }
    if asymmetric:
        stored["m.weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    return stored, codes, zero, values


def join(stored, scheme=None):
    return join_packed(
        {name: TensorWeight(tensor) for name, tensor in stored.items()}, scheme or Scheme(4, False)
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [-1, 32, 16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_packed_weights_keep_codes_scale_and_values(bits, group, asymmetric):
    stored, codes, _, values = parts(bits, group, asymmetric=asymmetric)
    weight = join(stored)["m.weight"]
    assert weight.shape == (N, K)
    assert (weight.grid.bits, weight.grid.group, weight.grid.has_minimum) == (bits, group, asymmetric)
    blocks = weight.blocks()
    assert torch.equal(blocks.codes.short() - (1 << (bits - 1)), codes.short())
    assert torch.equal(blocks.scale, stored["m.weight_scale"])
    assert torch.equal(weight.load(), values)
    index = torch.tensor([23, 0, 7])
    assert torch.equal(weight.rows(index), values[index])


def test_the_librarys_own_compressor_is_read_back():
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=False),
    )
    generator = torch.Generator().manual_seed(1)
    local = {
        "weight": torch.randn(N, K, generator=generator),
        "weight_scale": torch.rand(N, 2, generator=generator) * 0.2 + 0.1,
        "weight_zero_point": torch.randint(-8, 8, (N, 2), generator=generator, dtype=torch.int8),
    }
    packed = PackedQuantizationCompressor.compress(local, scheme)
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    weight = join({f"m.{name}": tensor for name, tensor in packed.items()})["m.weight"]
    torch.testing.assert_close(weight.load(), expected, rtol=0, atol=2e-6)  # (q-z)*s there, q*s-z*s here


def test_zero_points_that_are_not_packed_are_read():
    stored, _, zero, values = parts(4, 32, asymmetric=True)
    stored["m.weight_zero_point"] = zero
    assert torch.equal(join(stored)["m.weight"].load(), values)


def test_zero_points_of_a_symmetric_scheme_mean_nothing():
    stored, *_, values = parts(4, 32)
    stored["m.weight_zero_point"] = torch.zeros(N, 2, dtype=torch.int8)
    weight = join(stored, Scheme(4, True))["m.weight"]
    assert not weight.grid.has_minimum
    assert torch.equal(weight.load(), values)


@pytest.mark.parametrize("shape", [(N, 1), (N,), (1,), ()])
def test_int8_weights_with_a_scale_a_channel_or_one_scale(shape):
    codes = torch.randint(-128, 128, (N, K), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = torch.full(shape, 0.25, dtype=torch.bfloat16)
    weight = join({"m.weight": codes, "m.weight_scale": scale}, Scheme(8, True))["m.weight"]
    assert (weight.grid.bits, weight.grid.group) == (8, -1)
    assert torch.equal(weight.load(), codes.float() * 0.25)


def test_other_tensors_pass_through():
    stored, *_ = parts(4, 32)
    joined = join(stored | {"norm.weight": torch.ones(3)})
    assert sorted(joined) == ["m.weight", "norm.weight"]


def without(name):
    stored, *_ = parts(4, 32)
    del stored[name]
    return stored


def changed(**tensors):
    stored, *_ = parts(4, 32)
    return stored | {f"m.{name}": tensor for name, tensor in tensors.items()}


BAD = {
    "no scale": (without("m.weight_scale"), "without its scale"),
    "no shape": (without("m.weight_shape"), "without its 'm.weight_shape'"),
    "no codes": (without("m.weight_packed"), "no codes that belong to it"),
    "shape of three": (changed(weight_shape=torch.tensor([N, K, 1])), "says its shape is"),
    "shape of other rows": (changed(weight_shape=torch.tensor([N + 1, K])), "says its shape is"),
    "negative shape": (changed(weight_shape=torch.tensor([N, -K])), "says its shape is"),
    "columns that do not fit": (changed(weight_shape=torch.tensor([N, 999])), "words a row for 999"),
    "scale of other rows": (changed(weight_scale=torch.ones(N + 1, 2)), "has the shape"),
    "scale of odd groups": (changed(weight_scale=torch.ones(N, 3)), "has the shape"),
    "scale that is an integer": (changed(weight_scale=torch.ones(N, 2, dtype=torch.int32)), "has the shape"),
    "reordered columns": (changed(weight_g_idx=torch.zeros(K, dtype=torch.int32)), "g_idx"),
}


@pytest.mark.parametrize("case", BAD)
def test_parts_that_do_not_fit_are_refused(case):
    stored, message = BAD[case]
    with pytest.raises(ModelError, match=message):
        join(stored)


def test_int4_codes_out_of_range_are_refused():
    stored = {"m.weight": torch.full((2, 4), 100, dtype=torch.int8), "m.weight_scale": torch.ones(2, 1)}
    with pytest.raises(ModelError, match="do not fit into 4 bits"):
        join(stored, Scheme(4, True))["m.weight"].load()


def test_unpack_is_little_end_first():
    words = torch.tensor([[0x76543210, -0x10000000]], dtype=torch.int32)
    assert unpack(words, 4, 15).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0]]
    assert unpack(words, 4, 16)[0, 15] == 15


def config(method="compressed-tensors", form="pack-quantized", **weights):
    scheme = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme}}
    return {"quantization_config": {"quant_method": method, "format": form, "config_groups": groups}}


def test_what_is_not_quantized_is_left_alone():
    assert check_quantization({}) is None
    assert check_quantization({"quantization_config": None}) is None


def test_integer_schemes_are_read():
    assert check_quantization(config()) == Scheme(4, True)
    assert check_quantization(config(num_bits=8, symmetric=False, strategy="channel")) == Scheme(8, False)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "mxfp4", "torchao", "hqq", "eetq"])
def test_other_methods_are_refused_by_name(method):
    with pytest.raises(ModelError, match=method.upper()) as caught:
        check_quantization(config(method))
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "float-quantized"}, "float-quantized"),
        ({"form": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"form": "marlin-24"}, "marlin-24"),
        ({"form": "naive-quantized", "type": "float", "num_bits": 8}, "FP8"),
        ({"num_bits": 3}, "3-bit int"),
        ({"num_bits": "4"}, "4-bit int"),
        ({"strategy": "block"}, "block"),
    ],
)
def test_other_schemes_are_refused_by_name(changes, message):
    with pytest.raises(ModelError, match=message):
        check_quantization(config(**changes))


@pytest.mark.parametrize(
    "wrong", ["text", [1], {"quant_method": "compressed-tensors", "format": "pack-quantized"}]
)
def test_a_config_of_another_shape_is_refused(wrong):
    with pytest.raises(ModelError):
        check_quantization({"quantization_config": wrong})
