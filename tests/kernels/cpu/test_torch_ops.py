"""The dialect's operations through torch's dispatcher: each on its kernel, beside its body."""

import numpy as np
import pytest
import torch

from optpipe.artifact import load_artifact
from optpipe.dialect import OPS
from optpipe.program import to_fx
from optpipe.testing import tolerance
from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu import torch_ops


@pytest.fixture
def ran(monkeypatch):
    """The operations' kernels while the test runs, and the names of those that ran."""
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    names = []
    call = native.Library.call

    def seen(self, kernel, *args, **kwargs):
        call(self, kernel, *args, **kwargs)
        names.append(kernel)

    monkeypatch.setattr(native.Library, "call", seen)
    with torch.library._scoped_library("optpipe", "IMPL") as where:
        torch_ops.register(where)
        yield names


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *sizes: torch.randn(sizes, generator=generator)


def words(*sizes):
    return torch.randint(
        -(2**31), 2**31 - 1, sizes, dtype=torch.int32, generator=torch.Generator().manual_seed(1)
    )


def calls(randn):
    x, heads = randn(5, 64), randn(5, 3, 20)
    experts = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1], [2, 2]])
    scale, halves = randn(32, 2).abs() / 100, randn(5, 2).softmax(-1)
    stacks = (
        words(3, 64, 8),
        randn(3, 64, 2).abs() / 100,
        None,
        words(3, 64, 4),
        randn(3, 64, 1).abs() / 100,
        None,
    )
    starts, lengths = torch.tensor([0, 3, 5], dtype=torch.int32), torch.tensor([7, 2], dtype=torch.int32)
    tables = torch.tensor([[2, 0], [1, 9]], dtype=torch.int32)
    paged = (randn(5, 4, 8), randn(3, 5, 2, 8), randn(3, 5, 2, 6), starts, lengths, tables)
    return {
        "rms_norm": ((x, randn(64)), {"eps": 1e-5, "unit_offset": True}),
        "add_rms_norm": ((x, randn(5, 64), None), {"eps": 1e-5}),
        "layer_norm": ((x.T.contiguous().T, randn(64), randn(64)), {"eps": 1e-5}),
        "rope": ((heads, randn(5, 12), randn(5, 12)), {"interleaved": True}),
        "gated_act": ((x, randn(5, 64)), {"kind": "gelu_tanh"}),
        "gather_rows": ((heads, torch.tensor([4, 0])), {}),
        "quant_linear": ((x, words(32, 8), scale, None, randn(32)), {"bits": 4, "group": 32}),
        "quant_embedding": ((experts, words(32, 8), scale, -scale), {"bits": 4, "group": 32}),
        "paged_attention": (paged, {"scale": 0.3, "window": 4}),
        "moe": (
            (x, experts, halves, randn(3, 64, 64) / 8, randn(3, 32, 64) / 8),
            {"kind": "silu", "transposed": True},
        ),
        "quant_moe": ((x, experts, halves, *stacks), {"kind": "silu", "bits": 4, "group": 32}),
    }


@pytest.mark.parametrize("name", sorted(torch_ops._RUNS))
def test_equals_the_body_and_runs_the_kernel(ran, randn, name):
    args, kwargs = calls(randn)[name]
    found = getattr(torch.ops.optpipe, name)(*args, **kwargs)
    assert ran, "the kernel ran, not the body"
    expected = OPS[name].body(*args, **kwargs)
    near = {"rtol": 0.02, "atol": 0.02} if name in ("quant_linear", "quant_moe") else tolerance("float32")
    torch.testing.assert_close(
        found, expected, **near
    )  # 8 bits a token and group of 32: 0.4 % of the largest


def test_other_dtypes_run_on_the_body(ran, randn):
    x = randn(5, 64).double()
    torch.testing.assert_close(
        torch.ops.optpipe.rms_norm(x, None, eps=1e-5), OPS["rms_norm"].body(x, None, eps=1e-5), rtol=0, atol=0
    )
    assert ran == []


def test_groups_that_no_kernel_takes_run_on_the_body(ran, randn):
    args = randn(5, 64), words(32, 8), randn(32, 4)
    found = torch.ops.optpipe.quant_linear(*args, bits=4, group=16)
    torch.testing.assert_close(found, OPS["quant_linear"].body(*args, bits=4, group=16), rtol=0, atol=0)


def test_a_weight_that_changed_is_packed_anew(ran, randn):
    x, codes, scale = randn(5, 64), words(32, 8), randn(32, 2).abs()
    before = torch.ops.optpipe.quant_linear(x, codes, scale, bits=4, group=32)
    scale *= 2
    torch.testing.assert_close(torch.ops.optpipe.quant_linear(x, codes, scale, bits=4, group=32), 2 * before)
    assert ran.count("pack") == 2


def test_a_graph_runs_on_them_node_by_node(ran, tiny):
    artifact = load_artifact(tiny("llama", "paged"))
    gm = to_fx(artifact.program)
    tokens = torch.arange(5, 45)
    inputs = {
        "input_ids": tokens, "position_ids": torch.arange(40), "logit_rows": torch.arange(40),
        "slot_mapping": torch.arange(40), "query_start": torch.tensor([0, 40], dtype=torch.int32),
        "context_lens": torch.tensor([40], dtype=torch.int32),
        "block_tables": torch.arange(3, dtype=torch.int32)[None],
    }  # fmt: skip
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            home, _, last = node.target.rpartition(".")
            weight = torch.nn.Parameter(artifact.weights[node.target].load().float(), requires_grad=False)
            setattr(gm.get_submodule(home), last, weight)
        elif node.op == "placeholder" and node.meta["kind"] == "cache":
            inputs[node.meta["name"]] = torch.zeros(3, *node.meta["val"].shape[1:])
    names = [node.meta["name"] for node in gm.graph.nodes if node.op == "placeholder"]
    found = gm(*(inputs[name] for name in names))
    from optpipe.targets.reference_target import ReferenceTarget

    expected = ReferenceTarget().load(artifact.program, artifact.weights).logits(np.arange(5, 45))
    torch.testing.assert_close(found, torch.from_numpy(expected), **tolerance("float32"))
    assert {"rms_norm", "add_rms_norm", "rope", "gated_act", "paged_attention", "index_select"} <= set(ran)


def test_without_registration_nothing_runs_on_kernels(randn, monkeypatch):
    monkeypatch.setattr(native.Library, "call", None)
    torch.ops.optpipe.rms_norm(randn(5, 64), None, eps=1e-5)
