"""What torch is left with: which runs are compiled, and that they give what they gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optpipe.errors import ArtifactError
from optpipe.program.program import Value
from optpipe.program.types import TensorType
from optpipe_kernels.cuda import leftovers
from optpipe_kernels.cuda.calls import Calls
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.leftovers import Compiler, Segment, function_of, segments
from optpipe_kernels.cuda.steps import Step
from optpipe_kernels.cuda.target import CudaTarget
from optpipe_kernels.cuda.weights import load_weights, recipes_of

CPU = torch.device("cpu")


def value(name):
    return Value(name, TensorType("f32", ("T", 8)))


def gelu(n, x):
    """x · (1 + tanh(x · 0.8)), by hand, as steps."""
    a, b, c, d = (value(f"{name}{n}") for name in "abcd")
    return [
        Step("aten.mul.Tensor", (x, 0.8), results=(a,)),
        Step("aten.tanh", (a,), results=(b,)),
        Step("aten.add.Tensor", (b, 1.0), results=(c,)),
        Step("aten.mul.Tensor", (x, c), results=(d,)),
    ]


def layers(count):
    """Layers with such a GELU, apart from each other."""
    steps, x = [], value("x")
    for n in range(count):
        part = gelu(n, x)
        out = value(f"y{n}")
        steps += [*part, Step("linear", (part[-1].results[0], None, None), results=(out,))]
        x = out
    return steps


def test_runs_are_compiled_when_many_layers_repeat_them():
    steps = layers(6)
    found = segments(steps, "y5")
    assert list(found) == [0, 5, 10, 15, 20, 25]
    assert [it.name for it in found[5].results] == ["d1"]
    assert found[5].reads == ("y0",)
    assert len({it.key for it in found.values()}) == 1


def test_a_few_small_operations_are_not_worth_the_start():
    assert segments(layers(5), "y4") == {}


def test_others_that_read_the_middle_of_a_run_get_it():
    steps = [*gelu(0, value("x")), Step("linear", (value("b0"), None, None), results=(value("y"),))]
    (_, segment), *_ = leftovers._runs(steps, "d0")
    assert [it.name for it in segment.results] == ["b0", "d0"]


def test_weights_sizes_and_reductions_end_a_run():
    assert not leftovers._pointwise(Step("aten.sum.dim_IntList", (value("x"), (1,)), results=(value("y"),)))
    assert not leftovers._pointwise(Step("aten.reshape", (value("x"), (8, "T")), results=(value("y"),)))
    assert not leftovers._pointwise(Step("linear", (value("x"),), results=(value("y"),)))


def test_one_function_serves_all_of_one_structure_and_gives_the_same():
    steps = layers(6)
    found = segments(steps, "y5")
    compiler = Compiler(CPU, backend="eager")
    functions = {compiler.function(it) for it in found.values()}
    assert len(functions) == 1
    x = torch.randn(5, 8)
    (y,) = functions.pop()(x)
    torch.testing.assert_close(y, x * (1 + torch.tanh(0.8 * x)))


def test_half_precision_is_widened_where_it_would_lose_too_much():
    x = torch.randn(4, 8).to(torch.bfloat16)
    softmax = function_of(Step("aten.softmax.int", (value("x"), -1), results=(value("y"),)), CPU)
    assert softmax(x, -1).dtype is torch.float32
    tanh = function_of(Step("aten.tanh", (value("x"),), results=(value("y"),)), CPU)
    assert tanh(x).dtype is torch.bfloat16


def test_factories_make_their_tensors_on_the_device():
    made = function_of(Step("aten.arange", (4,), results=(value("y"),)), torch.device("meta"))
    assert made(4).device.type == "meta"


def test_what_a_graph_may_not_hold_is_refused():
    with pytest.raises(ArtifactError):
        function_of(Step("aten.bernoulli", (value("x"),), results=(value("y"),)), CPU)


def test_a_segment_of_a_program_runs_as_its_steps_do(tiny):
    lowered = lower(tiny("gpt2").program)
    runs = dict(leftovers._runs(lowered.steps, lowered.output.name))
    assert runs
    for segment in runs.values():
        assert isinstance(segment, Segment)
        made = leftovers.graph_of(segment, CPU)
        given = [torch.randn(3, 8) for _ in segment.reads]
        values = dict(zip(segment.reads, given, strict=True))
        for step in segment.steps:
            args = [values[it.name] if isinstance(it, Value) else it for it in step.args]
            values[step.results[0].name] = function_of(step, CPU)(*args, **step.kwargs)
        for found, wanted in zip(made(*given), segment.results, strict=True):
            torch.testing.assert_close(found, values[wanted.name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, as Inductor is imported
@pytest.mark.parametrize("name", ["gpt2"])
def test_a_model_gives_the_same_with_its_leftovers_compiled_by_inductor(tiny, monkeypatch, name):
    """Tiny models repeat little: here every run is worth it. Lengths change without another compilation."""
    monkeypatch.setattr(leftovers, "WORTH", 1)
    artifact = tiny(name)
    executor = CudaTarget().load_artifact(artifact, device="cpu", kernels="bodies")
    tokens = np.random.default_rng(0).integers(0, 250, 40)
    lengths = (1, 7, 40)
    expected = [executor.logits(tokens[:length]) for length in lengths]
    weights = load_weights(recipes_of(executor.lowered), artifact.weights, CPU, executor.operations)
    executor.calls = Calls(executor.lowered, weights, executor.operations, CPU, Compiler(CPU))
    compiled = [call.kernel for call in executor.calls.calls if call.kernel.endswith("compiled")]
    assert compiled
    torch._dynamo.reset()
    for length, wanted in zip(lengths, expected, strict=True):
        np.testing.assert_allclose(executor.logits(tokens[:length]), wanted, atol=2e-5, rtol=0)
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < counted <= 2 * len(compiled)  # one for a single token, one for any other number
