import torch

from optpipe.weights import PermutedRows, ShiftedWeight, TensorWeight, TransposedWeight

MATRIX = torch.arange(6.0).reshape(3, 2)


def test_permuted_rows():
    weight = PermutedRows(TensorWeight(MATRIX), torch.tensor([2, 0, 1]))
    assert weight.load().tolist() == [[4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]
    assert weight.rows(torch.tensor([1])).tolist() == [[0.0, 1.0]]


def test_shifted_values_are_float32():
    weight = ShiftedWeight(TensorWeight(MATRIX.to(torch.bfloat16)), -1.0)
    assert weight.dtype == weight.load().dtype == torch.float32
    assert weight.load().tolist() == (MATRIX - 1).tolist()
    assert weight.rows(torch.tensor([2])).tolist() == [[3.0, 4.0]]


def test_transposed_matrix():
    weight = TransposedWeight(TensorWeight(MATRIX))
    assert weight.shape == (2, 3)
    assert weight.load().tolist() == MATRIX.T.tolist()
    assert weight.load().is_contiguous()
    assert weight.rows(torch.tensor([1])).tolist() == [[1.0, 3.0, 5.0]]
