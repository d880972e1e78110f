"""``inspect --plan`` and ``doctor DIR``: what they say of each instruction."""

import json

import pytest

from optpipe.artifact import load_artifact
from optpipe.cli.main import run
from optpipe.errors import RequestError
from optpipe_kernels.cpu import library as native
from optpipe_kernels.cpu.lowering.rules import RULES
from optpipe_kernels.cpu.report import describe


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
    assert report["limits"]["bytes_per_second"] > 1e8
    assert run(["inspect", str(folder), "--plan", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "of the limit" in out
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
