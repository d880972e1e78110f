"""Reading a model folder's tokenizer."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from optpipe.errors import ArtifactError
from optpipe_runtime.tokenizer import context_length, load_tokenizer, stop_ids


@pytest.fixture
def folder(tmp_path):
    """A byte-level tokenizer of 256 bytes and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def test_text_survives_the_way_there_and_back(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("Größe 🙂")) == "Größe 🙂"
    assert tokenizer.encode("<s>a") == [256, *tokenizer.encode("a")]


def test_a_stream_holds_characters_back_until_they_are_whole(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a🙂b")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert pieces == ["a", "", "", "", "🙂", "b"]


def test_a_stream_hides_special_tokens_and_its_prompt(folder):
    tokenizer = load_tokenizer(folder)
    stream = tokenizer.stream(tokenizer.encode("<s>prompt"))
    assert "".join(map(stream.push, tokenizer.encode("x</s>y"))) == "xy"


def test_special_tokens_and_template_of_the_config(folder):
    template = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    write(folder, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "chat_template": template})
    write(folder, "special_tokens_map.json", {"eos_token": "</s>", "bos_token": "old"})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.chat_template == "D"


def test_a_template_file_comes_first(folder):
    write(folder, "tokenizer_config.json", {"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("new")
    assert load_tokenizer(folder).chat_template == "new"


def test_no_template_is_none(folder):
    assert load_tokenizer(folder).chat_template is None


def test_stop_ids_of_each_place(folder):
    write(folder, "tokenizer_config.json", {"eos_token": "</s>"})
    tokenizer = load_tokenizer(folder)
    assert stop_ids(folder, tokenizer) == {257}
    write(folder, "config.json", {"eos_token_id": 3})
    assert stop_ids(folder, tokenizer) == {3}
    write(folder, "generation_config.json", {"eos_token_id": [4, 5]})
    assert stop_ids(folder, tokenizer) == {4, 5}


def test_context_length_of_each_spelling(folder):
    assert context_length(folder) is None
    write(folder, "config.json", {"n_positions": 64})
    assert context_length(folder) == 64
    write(folder, "config.json", {"text_config": {"max_position_embeddings": 32}})
    assert context_length(folder) == 32


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_an_error_that_names_the_place(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ArtifactError, match=str(folder)):
        load_tokenizer(folder)
