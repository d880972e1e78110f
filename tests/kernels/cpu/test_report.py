"""``inspect --plan`` and ``doctor DIR``: what they say of each instruction."""

import json
from dataclasses import replace

import pytest

from optpipe.artifact import load_artifact
from optpipe.cli.main import run
from optpipe.errors import RequestError
from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.costs import Cost, Sizes, cost_of
from optpipe_kernels.cpu.limits import Limits, last_level_cache
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.lowering.rules import RULES
from optpipe_kernels.cpu.pack import quantized_bytes
from optpipe_kernels.cpu.report import describe, least_seconds


@pytest.fixture
def folder(tiny):
    if native.find() is None:
        pytest.skip("optpipe was built without a C++ compiler")
    return tiny("llama-tied", "paged")


def answer(capsys, *arguments):
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_instruction_with_its_bytes_and_operations(folder):
    report = describe(load_artifact(folder).program, tokens=3, context=40)
    steps = {it["path"].removeprefix("model.layers.0."): it for it in reversed(report["steps"])}
    product = steps["self_attn.o_proj"]
    assert product["kernel"] == "linear"
    assert product["operations"] == 2 * 3 * 64 * 64
    moved = 4 * (64 * 64 + 64 + 3 * 3 * 64)  # the weight and its bias; x, the residual and the result
    assert moved <= product["bytes"] <= moved + 128  # the head of the packed weight
    attention = next(it for it in report["steps"] if it["kernel"] == "paged_attention")
    assert attention["operations"] == 2 * 4 * (16 + 16) * (38 + 39 + 40)
    assert report["bytes"] == sum(it["bytes"] for it in report["steps"])
    assert report["segments"] == []


def by_kernel(program, kernel, **step):
    return [it for it in describe(program, **step)["steps"] if it["kernel"] == kernel]


@pytest.mark.parametrize("planes", [1, 2])
def test_two_planes_of_int8_are_twice_the_operations(tiny, planes):
    program = load_artifact(tiny("llama-tied", "quant,paged")).program
    (product, *_) = by_kernel(program, "quant_linear", tokens=3, context=40, planes=planes)
    outputs = 64 + 2 * 32  # q, k and v of 4, 2 and 2 heads of 16
    assert (product["numbers"], product["operations"]) == ("int8", 2 * 3 * outputs * 64 * planes)
    codes = outputs * 64 // 2
    assert codes < product["stored"] < 1.5 * codes  # scales, and a head of 64 bytes
    assert product["bytes"] > product["stored"]
    (attention, *_) = by_kernel(program, "paged_attention", tokens=3, context=40, planes=planes)
    assert attention["numbers"] == {1: "bf16", 2: "f32"}[planes]  # the cache that goes with them
    assert attention["stored"] == 40 * 2 * 2 * 16 * {1: 2, 2: 4}[planes]


@pytest.mark.parametrize(("dtype", "numbers"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_float_products_by_their_numbers(tiny, dtype, numbers):
    report = describe(load_artifact(tiny("llama-tied", dtype=dtype)).program)
    assert {it["numbers"] for it in report["steps"] if it["kernel"] == "linear"} == {numbers}


def test_a_token_of_an_int8_cache_has_scales(tiny):
    steps = lower(load_artifact(tiny("llama-tied")).program, quantized_bytes, "i8").lowered.steps
    (attention, *_) = [it for it in steps if it.kernel == "paged_attention"]
    cost = cost_of("paged_attention", attention, Sizes(3, 40))
    assert (cost.numbers, cost.stored) == ("int8", 40 * 2 * 2 * (16 + 4))
    assert cost.operations == 2 * 2 * 4 * (16 + 16) * (38 + 39 + 40)  # two planes of queries and weights


def test_the_limit_is_that_of_where_the_bytes_are():
    limits = Limits(10.0, 40.0, 1000, {"int8": 100.0, "bf16": 50.0, "f32": 25.0})
    cost = Cost(bytes=120, operations=100, numbers="f32", stored=80)
    assert least_seconds(cost, limits, fits=False) == 80 / 10 + 40 / 40
    assert least_seconds(cost, limits, fits=True) == 100 / 25  # of more operations than 120 / 40
    assert least_seconds(replace(cost, numbers="int8"), limits, fits=True) == 120 / 40


def test_the_largest_cache_is_the_last(tmp_path):
    assert last_level_cache(tmp_path) == 0
    for index, size in enumerate(["48K", "2048K", "32M\n", "?"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size)
    assert last_level_cache(tmp_path) == 32 << 20


def test_experts_that_are_not_chosen_are_not_read(tiny):
    program = load_artifact(tiny("mixtral")).program
    one, many = (
        next(it for it in describe(program, tokens=n, context=64)["steps"] if it["kernel"] == "moe")
        for n in (1, 64)
    )
    assert many["operations"] == 64 * one["operations"]
    assert many["bytes"] < 4 * one["bytes"]


def test_a_profile_times_every_instruction(folder, capsys):
    report = answer(capsys, "inspect", folder, "--plan", "--profile", "--tokens", 4)
    assert all(it["seconds"] >= 0 for it in report["steps"])
    assert report["seconds"] == pytest.approx(sum(it["seconds"] for it in report["steps"]))
    limits = report["limits"]
    assert limits["cache_bytes_per_second"] >= limits["bytes_per_second"] > 1e8
    assert limits["bfloat16_operations_per_second"] > 1e8
    assert run(["inspect", str(folder), "--plan", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "of the limit" in out
    assert "/s from the last-level cache" in out
    assert "torch runs nothing" in out


def test_what_torch_runs_is_listed_with_the_reason(folder, capsys, monkeypatch):
    monkeypatch.delitem(RULES, "aten.cos")
    (segment,) = answer(capsys, "doctor", folder)["artifact"]["segments"]
    assert (segment["kernel"], segment["reason"]) == ("aten.cos", "aten.cos has no kernel")
    assert run(["doctor", str(folder)]) == 0
    assert "torch runs aten.cos of model.rotary_emb: aten.cos has no kernel" in capsys.readouterr().out
    report = answer(capsys, "inspect", folder, "--plan", "--profile")
    (segment,) = report["segments"]
    assert next(it for it in report["steps"] if it["kernel"] == "aten.cos")["seconds"] > 0


def test_doctor_says_the_instruction_set_and_the_threads(folder, capsys):
    (family,) = [it for it in answer(capsys, "doctor")["kernels"] if it["name"] == "cpu"]
    assert family["details"]["isa"] in family["details"]["isas"]
    assert family["details"]["threads"] >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--plan", "--text"], 2, "three views"),
        (["--profile"], 2, "--profile goes with --plan"),
        (["--plan", "--target", "reference"], 1, "'reference' has no plan"),
        (["--plan", "--target", "cpv"], 1, "no target named 'cpv'"),
        (["--plan", "--tokens", "9", "--context", "8"], 1, "1 to 8 of the 8 tokens"),
    ],
)
def test_refuses(folder, capsys, arguments, code, message):
    assert run(["inspect", str(folder), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_step_of_nothing_is_refused(folder):
    with pytest.raises(RequestError, match="got 0"):
        describe(load_artifact(folder).program, tokens=0)
