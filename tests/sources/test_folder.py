import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from optpipe.errors import ModelError
from optpipe.sources import resolve
from optpipe.testing.tiny import save_tiny, tiny_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny("llama", tmp_path / "tiny")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_opened(folder):
    source = resolve(str(folder))
    expected = tiny_model("llama").state_dict()
    assert set(source.weights) == set(expected)
    assert all(torch.equal(source.weights[name].load(), tensor) for name, tensor in expected.items())
    assert source.config["model_type"] == "llama"
    assert source.dtype == "f32"
    assert source.bytes == sum(tensor.numel() * 4 for tensor in expected.values())
    assert source.identity["kind"] == "folder"
    assert set(source.files) == {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads(source.read("tokenizer.json"))


def test_half_precision_stays_half_precision(folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    source = resolve(str(folder))
    assert source.dtype == "bf16"
    assert source.weights["model.norm.weight"].dtype == torch.bfloat16


def test_shards_are_one_model(folder, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded, whole = resolve(str(tmp_path / "sharded")), resolve(str(folder))
    assert set(sharded.weights) == set(whole.weights)
    assert all(
        torch.equal(sharded.weights[name].load(), whole.weights[name].load()) for name in whole.weights
    )


def test_identity_follows_the_content(folder, tmp_path):
    other = save_tiny("llama", tmp_path / "other")
    same = [resolve(str(one)).identity["headers_sha256"] for one in (folder, other)]
    assert same[0] == same[1]
    edit(other, rope_theta=3.0)
    assert resolve(str(other)).identity["headers_sha256"] != same[0]


def test_a_sentencepiece_style_tokenizer_is_made_fast(folder):
    (folder / "tokenizer.json").unlink()
    symbols = ["<|endoftext|>", "h", "e", "he"]
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    made = json.loads(resolve(str(folder)).read("tokenizer.json"))
    assert made["model"]["vocab"]["he"] == 3


def test_a_compressed_tensors_checkpoint_keeps_its_grid(folder):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    tensors = load_file(folder / "model.safetensors")
    values = {}
    for name in [name for name in tensors if ".mlp." in name]:
        matrix = tensors.pop(name)
        codes = torch.randint(
            -8, 8, matrix.shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1)
        )
        scale = torch.full((matrix.shape[0], 1), 0.125, dtype=torch.float16)
        home = name.removesuffix(".weight")
        tensors[f"{home}.weight_packed"] = pack_to_int32(codes, 4)
        tensors[f"{home}.weight_scale"] = scale
        tensors[f"{home}.weight_shape"] = torch.tensor(matrix.shape)
        values[name] = codes.float() * 0.125
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
    scheme = {"group_0": {"targets": ["Linear"], "weights": weights}}
    edit(
        folder,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": scheme,
        },
    )
    source = resolve(str(folder))
    assert "quantization_config" not in source.config
    for name, expected in values.items():
        assert source.weights[name].grid.bits == 4
        assert torch.equal(source.weights[name].load(), expected)


def test_a_method_that_is_not_read_is_refused_before_anything_else(folder):
    edit(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ModelError, match="quantized with AWQ"):
        resolve(str(folder))


def test_the_text_part_of_a_composite_model(tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_model("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    assert source.config["model_type"] == "gemma3_text"
    expected = model.model.language_model.state_dict()
    assert all(
        torch.equal(source.weights[f"model.{name}"].load(), tensor) for name, tensor in expected.items()
    )


# --- what is wrong with a folder -------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    with pytest.raises(ModelError, match="is empty"):
        resolve(str(tmp_path))


def test_a_folder_that_is_not_there():
    with pytest.raises(ModelError, match=r"There is no folder '\./nowhere'"):
        resolve("./nowhere")


def test_a_folder_without_a_config(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "holds a list, not an object"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("{}", "'model_type'"),
        ('{"model_type": 3}', "'model_type'"),
        ('{"model_type": "lama"}', "does not know the model type 'lama'"),
        ('{"model_type": "vit"}', "not a causal language model"),
        ('{"model_type": "llama", "num_attention_heads": "many"}', "not valid"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "not valid|cannot be built"),
        ('{"model_type": "llama", "num_hidden_layers": 4000000000}', "asks for 4000000000 layers"),
        ('{"model_type": "llama", "vocab_size": 100000000000000000}', "cannot be built|not valid"),
    ],
)
def test_a_bad_config(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        resolve(str(folder))


def test_an_unknown_type_has_the_nearest_as_a_hint(folder):
    edit(folder, model_type="lama")
    with pytest.raises(ModelError) as caught:
        resolve(str(folder))
    assert "llama" in str(caught.value.hint)


def test_foreign_code_does_not_run_unless_trusted(folder):
    edit(
        folder,
        model_type="mymodel",
        auto_map={"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.My"},
    )
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="its own Python code") as caught:
        resolve(str(folder))
    assert "--trust-remote-code" in str(caught.value.hint)


def test_foreign_code_of_a_known_type_is_not_run(folder):
    edit(folder, auto_map={"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.My"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    source = resolve(str(folder))
    assert source.code is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickles_are_refused_by_name(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"pickled \('{name}'\)") as caught:
        resolve(str(folder))
    assert "save_pretrained" in str(caught.value.hint)


def test_a_folder_of_ggufs_points_to_the_file(folder):
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(ModelError, match="no safetensors") as caught:
        resolve(str(folder))
    assert str(folder / "model.gguf") in str(caught.value.hint)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        resolve(str(folder))


def test_two_files_without_an_index(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"x": torch.ones(1)}, folder / "b.safetensors")
    with pytest.raises(ModelError, match="2 safetensors files and no model"):
        resolve(str(folder))


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        resolve(str(folder))


def test_weights_of_another_config(folder):
    edit(folder, hidden_size=128, head_dim=16)
    with pytest.raises(ModelError, match="has the shape"):
        resolve(str(folder))


INDEX = "model.safetensors.index.json"


def indexed(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\\b", "", 7]
)
def test_an_index_does_not_leave_the_folder(folder, name):
    indexed(folder, {"x": name})
    with pytest.raises(ModelError, match="outside of the folder"):
        resolve(str(folder))


@pytest.mark.parametrize("weight_map", [[], {}, "model.safetensors"])
def test_an_index_of_another_shape(folder, weight_map):
    indexed(folder, weight_map)
    with pytest.raises(ModelError, match="weight_map"):
        resolve(str(folder))


def test_a_missing_shard(folder):
    indexed(folder, {"x": "model-00001-of-00002.safetensors"})
    with pytest.raises(ModelError, match=r"shard 'model-00001-of-00002\.safetensors' is missing"):
        resolve(str(folder))


def test_a_shard_without_its_tensor(folder):
    indexed(folder, {"nothing.weight": "model.safetensors"})
    with pytest.raises(ModelError, match=r"lacks the tensor 'nothing\.weight'"):
        resolve(str(folder))


def test_one_tensor_in_two_shards(folder):
    save_file({"model.norm.weight": torch.ones(4)}, folder / "more.safetensors")
    indexed(folder, {"model.norm.weight": "model.safetensors", "more": "more.safetensors"})
    indexed(folder, {"lm_head.weight": "model.safetensors", "model.norm.weight": "more.safetensors"})
    with pytest.raises(ModelError, match="in two shards"):
        resolve(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_that_leave_the_folder_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ModelError, match=rf"'{name}' in .* is a link that leaves the folder"):
        resolve(str(folder))


def test_a_link_inside_the_folder_is_followed(folder):
    (folder / "model.safetensors").rename(folder / "real.data")
    (folder / "model.safetensors").symlink_to("real.data")
    assert resolve(str(folder)).weights


def test_the_hubs_own_links_are_followed(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert resolve(str(snapshot)).weights
