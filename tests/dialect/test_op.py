"""What holds for every operation: fake and body agree, dtypes are kept, no kernel moves the reference."""

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from optpipe.dialect import OPS, body_of, define
from optpipe.errors import KernelError
from optpipe.graph.interpreter import Interpreter
from optpipe.testing import tolerance
from optpipe.weights.store import Weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def operands():
    """For every operation: arguments that its schema takes, floating ones in float32."""
    torch.manual_seed(0)
    r = torch.randn
    words = lambda *shape: torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)  # noqa: E731
    ids = torch.tensor([[0, 2], [1, 0], [2, 1]])
    caches = r(4, 2, 2, 5), r(4, 2, 2, 6)
    tables = (
        torch.tensor([0, 2, 3], dtype=torch.int32),
        torch.tensor([3, 1], dtype=torch.int32),
        torch.tensor([[3, 1], [0, 0]], dtype=torch.int32),
    )
    packed_experts = (words(3, 32, 8), r(3, 32, 2), r(3, 32, 2), words(3, 64, 4), r(3, 64, 1), None)
    return {
        "add_rms_norm": ((r(3, 5), r(3, 5), r(5)), {"eps": 1e-5}),
        "attention": ((r(3, 4, 5), r(3, 2, 5), r(3, 2, 6), None, r(4), r(4)), {"scale": 0.4, "window": 2}),
        "gated_act": ((r(3, 5), r(3, 5)), {"kind": "gelu_tanh"}),
        "gather_rows": ((r(4, 5), torch.tensor([3, 1])), {}),
        "kv_write": ((r(3, 2, 5), r(3, 2, 6), *caches, torch.tensor([7, -1, 0])), {}),
        "layer_norm": ((r(3, 5), r(5), r(5)), {"eps": 1e-5}),
        "mask": ((r(1, 4, 5),), {"kind": "window", "size": 2}),
        "moe": ((r(3, 6), ids, r(3, 2), r(3, 8, 6), r(3, 6, 4)), {"kind": "silu"}),
        "paged_attention": ((r(3, 4, 5), *caches, *tables), {"scale": 0.4}),
        "quant_embedding": (
            (torch.tensor([1, 0, 1]), words(4, 8), r(4, 2), r(4, 2)),
            {"bits": 4, "group": 32},
        ),
        "quant_linear": ((r(3, 64), words(7, 8), r(7, 2), r(7, 2), r(7)), {"bits": 4, "group": 32}),
        "quant_moe": (
            (r(3, 64), ids, r(3, 2), *packed_experts),
            {"bits": 4, "group": 32, "kind": "relu", "gated": False},
        ),
        "rms_norm": ((r(3, 5), r(5)), {"eps": 1e-5, "unit_offset": True}),
        "rope": ((r(3, 2, 8), r(3, 6), r(3, 6)), {"interleaved": True}),
        "row_wise_linear": ((r(3, 16), words(7, 4).view(torch.int8), r(7, 1), r(7)), {}),
    }


OPERANDS = operands()


def cast(args, dtype):
    return tuple(a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def described(result):
    tensors = result if isinstance(result, tuple) else () if result is None else (result,)
    return [(tensor.dtype, tuple(tensor.shape), tensor.stride()) for tensor in tensors]


def test_every_operation_has_operands_here():
    assert set(OPERANDS) == set(OPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERANDS)
def test_the_fake_says_what_the_body_gives(name, dtype):
    args, kwargs = OPERANDS[name]
    given = cast(args, dtype)
    real = OPS[name].body(*given, **kwargs)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in given]
        fake = OPS[name].overload(*fakes, **kwargs)
    assert described(fake) == described(real)


@pytest.mark.parametrize("name", OPERANDS)
def test_torch_finds_nothing_wrong_with_the_declaration(name):
    args, kwargs = OPERANDS[name]
    torch.library.opcheck(OPS[name].overload, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", OPERANDS)
def test_the_body_changes_no_operand_but_a_cache(name):
    args, kwargs = operands()[name]  # fresh: other tests have written these caches already
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    OPS[name].body(*args, **kwargs)
    changed = [
        at for at, (a, b) in enumerate(zip(args, before, strict=True)) if b is not None and not a.equal(b)
    ]
    assert changed == ([2, 3] if name == "kv_write" else [])


@pytest.mark.parametrize("name", sorted(set(OPERANDS) - {"kv_write", "mask", "quant_embedding"}))
def test_results_have_the_first_operands_dtype(name):
    args, kwargs = OPERANDS[name]
    for dtype in DTYPES:
        found = OPS[name].body(*cast(args, dtype), **kwargs)
        assert {one.dtype for one in (found if isinstance(found, tuple) else (found,))} == {dtype}


@pytest.mark.parametrize("name", sorted(set(OPERANDS) - {"kv_write", "mask", "gather_rows"}))
def test_float64_is_not_rounded_to_float32_on_the_way(name):
    args, kwargs = OPERANDS[name]
    wide = OPS[name].body(*cast(args, torch.float64), **kwargs)
    narrow = OPS[name].body(*cast(args, torch.float32), **kwargs)
    wide, narrow = (found[0] if isinstance(found, tuple) else found for found in (wide, narrow))
    assert wide.dtype is torch.float64
    assert not wide.equal(wide.float().double())
    torch.testing.assert_close(wide.float(), narrow, **tolerance("float32 sum"))


@pytest.mark.parametrize(
    "name", sorted(set(OPERANDS) - {"kv_write", "mask", "gather_rows", "quant_embedding"})
)
def test_bfloat16_is_rounded_once_at_the_end(name):
    """The same numbers in float32, rounded: equal but for sums in another order that round the other way."""
    args, kwargs = OPERANDS[name]
    rounded = cast(args, torch.bfloat16)
    found, exact = OPS[name].body(*rounded, **kwargs), OPS[name].body(*cast(rounded, torch.float32), **kwargs)
    if isinstance(found, tuple):
        found, exact = found[1], exact[1]
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=2**-8)


def test_the_dispatcher_falls_back_to_the_body():
    args, kwargs = OPERANDS["rope"]
    assert torch.ops.optpipe.rope(*args, **kwargs).equal(OPS["rope"].body(*args, **kwargs))


def test_a_wrong_kernel_does_not_move_the_reference():
    (x, weight), kwargs = OPERANDS["rms_norm"]
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "w")]
    for node, tensor in zip(inputs, (x, weight), strict=True):
        node.meta["val"] = tensor
    graph.output(graph.call_function(torch.ops.optpipe.rms_norm.default, tuple(inputs), kwargs))
    gm, right = fx.GraphModule({}, graph), OPS["rms_norm"].body(x, weight, **kwargs)
    library = torch.library.Library("optpipe", "IMPL")
    try:
        library.impl("rms_norm", lambda x, weight, *, eps, unit_offset: torch.full_like(x, 7.0), "CPU")
        assert gm(x, weight).eq(7.0).all(), "the kernel must be in the way, or the test shows nothing"
        assert Interpreter(gm, Weights()).run({"x": x, "w": weight}).equal(right)
    finally:
        library._destroy()
    assert torch.ops.optpipe.rms_norm(x, weight, **kwargs).equal(right)


def test_body_of_is_the_body_for_our_operations_and_the_target_for_others():
    assert body_of(torch.ops.optpipe.rope.default) is OPS["rope"].body
    assert body_of(torch.ops.aten.add.Tensor) is torch.ops.aten.add.Tensor
    with pytest.raises(KernelError, match="must be callable, got 'add'"):
        body_of("add")


def test_a_name_is_declared_once():
    with pytest.raises(KernelError, match="already has an op named 'rope'"):
        define("rope(Tensor x) -> Tensor", fake=lambda x: x)(lambda x: x)


@pytest.mark.parametrize("name", OPERANDS)
def test_every_operation_says_what_it_takes_gives_and_where_it_is_from(name):
    doc = OPS[name].doc
    assert "Args:" in doc
    assert "Source:" in doc
    assert name == "kv_write" or "Returns:" in doc
