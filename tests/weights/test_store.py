import pytest
import torch

from optpipe.errors import ModelError
from optpipe.weights import LazyWeight, QuantizedTensor, TensorWeight, Weights


def store() -> Weights:
    weights = Weights({"a": TensorWeight(torch.arange(6.0).reshape(3, 2))})
    weights.set("b", torch.ones(4, dtype=torch.bfloat16))
    return weights


def test_a_tensor_that_was_set_is_read_back():
    weight = store()["b"]
    assert isinstance(weight, LazyWeight)
    assert weight.shape == (4,)
    assert weight.dtype == torch.bfloat16
    assert weight.nbytes == 8
    assert weight.grid is None


def test_an_overlay_sees_its_parent_and_leaves_it_alone():
    base = store()
    child = base.overlay()
    child.set("a", torch.zeros(1))
    child.set("c", torch.zeros(1))
    del child["b"]
    assert sorted(child) == ["a", "c"]
    assert sorted(base) == ["a", "b"]
    assert child["a"].shape == (1,)
    assert base["a"].shape == (3, 2)


def test_an_overlay_sees_what_its_parent_gets_later():
    base = store()
    child = base.overlay()
    base.set("later", torch.zeros(1))
    assert "later" in child


def test_a_deleted_name_can_be_set_again():
    child = store().overlay()
    del child["a"]
    assert "a" not in child
    child.set("a", torch.zeros(5))
    assert child["a"].shape == (5,)


def test_deleting_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        del store()["nothing"]


def test_one_object_under_two_names_is_tied_and_counted_once():
    weights = store()
    weights["head"] = weights["a"]
    assert weights.tied("a") == ("head",)
    assert weights.tied("b") == ()
    assert weights.nbytes == 3 * 2 * 4 + 8


def test_rows_are_those_of_the_whole_tensor():
    index = torch.tensor([2, 0])
    assert store()["a"].rows(index).tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_a_quantized_tensor_in_memory_keeps_its_grid():
    weights = store()
    blocks = QuantizedTensor(
        torch.full((2, 4), 9, dtype=torch.uint8), torch.ones(2, 2, dtype=torch.float16), None, 4, 2
    )
    weights.set("q", blocks)
    assert weights["q"].blocks() is blocks
    assert weights["q"].grid == blocks.info
    assert weights["q"].nbytes == 8 + 8
    assert weights["q"].rows(torch.tensor([1])).tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_a_plain_tensor_has_no_blocks():
    with pytest.raises(ModelError, match=r"not on a grid"):
        store()["a"].blocks()


def test_an_unknown_name_has_a_hint():
    weights = store()
    weights.set("model.norm.weight", torch.ones(1))
    with pytest.raises(ModelError, match="no weight named") as caught:
        weights.get_or_raise("model.nrom.weight")
    assert caught.value.hint == "did you mean 'model.norm.weight'?"
