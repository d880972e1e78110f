"""From a model folder to an artifact that runs, and everything that may be printed on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import optpipe
from optpipe.cli.main import run
from optpipe.errors import ContractError, PipelineError
from optpipe.optimizer import optimize, plan
from optpipe.program import parse_program
from optpipe.testing import save_tiny, tiny_model, tolerance

IDS = np.array([84, 104, 101, 32, 99, 97, 112, 105, 116, 97, 108, 32, 111, 102])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """(the report, the artifact, what was printed) of a run that prints all there is."""
    output, printed = tmp_path_factory.mktemp("made") / "artifact", []
    report = optimize(
        str(source),
        output=output,
        print_ir_after=["all"],
        print_ir_diff=True,
        explain=True,
        print_text=printed.append,
    )
    return report, output, printed


def manifest(folder):
    return json.loads((folder / "optpipe.json").read_text())


def refused(source, output, **options):
    """Run in a folder of its own; nothing may be left in it."""
    with pytest.raises(optpipe.OptpipeError) as caught:
        optimize(str(source), output=output, **options)
    assert not output.exists()
    assert list(output.parent.iterdir()) == [], "nothing half written stays beside it"
    return caught.value


def test_the_artifact_gives_the_models_logits(made):
    report, output, _ = made
    with torch.no_grad():
        expected = tiny_model("llama")(torch.from_numpy(IDS)[None]).logits[0]
    found = torch.from_numpy(optpipe.load(output).logits(IDS))
    torch.testing.assert_close(found, expected, **tolerance("float32"))
    assert report.output == output
    assert report.noise < 1e-4


def test_the_report_has_a_row_a_pass_and_every_finding_holds(made):
    report, _, _ = made
    assert [row.name for row in report.rows] == ["trace", *(p.name for p in plan(None))]
    assert all(finding.holds for row in report.rows for finding in row.findings)
    counts = {row.name: row.rewrites for row in report.rows}
    assert counts["paged"] == counts["cache"] == 2
    assert counts["fuse-rope"] == 4
    text = json.dumps(report.to_json())
    assert json.loads(text)["pipeline"] == report.pipeline


def test_the_pipeline_in_the_artifact_can_be_run_again(made, source, tmp_path):
    _, output, _ = made
    pipeline = manifest(output)["pipeline"]
    optimize(str(source), passes=pipeline, output=tmp_path / "again", verify=False)
    assert (tmp_path / "again" / "graph.opt").read_text() == (output / "graph.opt").read_text()


def test_the_graph_is_printed_after_every_pass(made):
    report, output, printed = made
    texts = [text for text in printed if text.startswith("# after ")]
    assert [text.split("\n")[0] for text in texts] == [f"# after {row.text}" for row in report.rows]
    last = texts[-1].split("\n", 1)[1]
    parse_program(last)
    assert [line for line in last.splitlines() if "=" in line and "weight" not in line] == [
        line
        for line in (output / "graph.opt").read_text().splitlines()
        if "=" in line and "weight" not in line
    ]


def test_the_diff_shows_what_a_pass_changed(made):
    _, _, printed = made
    diff = next(text for text in printed if text.startswith("--- before\n+++ fuse-gated-act"))
    added = [line for line in diff.splitlines() if line.startswith("+") and "gated_act" in line]
    assert sum("optpipe.gated_act" in line for line in added) == 2
    assert sum(line.startswith("-") and "aten.silu" in line for line in diff.splitlines()) == 2


def test_explain_says_what_was_made_and_what_was_missed_and_why(made):
    _, _, printed = made
    assert any(
        line.startswith("fuse-rope: applied aten.add.Tensor in model.layers.1.self_attn: #")
        for line in printed
    )
    missed = [line for line in printed if line.startswith("fuse-add-rms-norm: missed")]
    where = "optpipe.rms_norm in model.layers.0.input_layernorm"
    assert missed == [f"fuse-add-rms-norm: missed {where}: what it norms is not a sum"]


def test_one_pass_can_be_printed_after(source, tmp_path):
    printed = []
    optimize(
        str(source),
        output=tmp_path / "a",
        verify=False,
        print_ir_after=["clean", "trace"],
        print_text=printed.append,
    )
    assert [text.split("\n")[0] for text in printed] == ["# after trace", "# after clean"]


def test_printing_after_a_pass_that_does_not_run_is_refused_before_any_work(tmp_path):
    with pytest.raises(PipelineError, match="no pass named 'quan' to print after") as caught:
        optimize("nowhere", passes="quant", output=tmp_path / "a", print_ir_after=["quan"])
    assert caught.value.hint == "did you mean 'quant'?"


def test_a_dry_run_only_works_out_the_pipeline(source, tmp_path):
    report = optimize(str(source), passes="quant{bits=8}", output=tmp_path / "a", dry_run=True)
    assert report.rows == ()
    assert report.output is None
    assert "quant{bits=8}" in report.pipeline
    assert report.pipeline.startswith("clean,")
    assert list(tmp_path.iterdir()) == []


def test_bare_leaves_out_what_is_always_on(source, tmp_path):
    report = optimize(str(source), passes="", bare=True, output=tmp_path / "a")
    assert [row.name for row in report.rows] == ["trace"]
    assert report.pipeline == ""
    executor = optpipe.load(tmp_path / "a")
    assert executor.cache_spec is None
    with torch.no_grad():
        expected = tiny_model("llama")(torch.from_numpy(IDS)[None]).logits[0]
    torch.testing.assert_close(torch.from_numpy(executor.logits(IDS)), expected, **tolerance("float32"))


def test_an_artifact_says_whether_it_was_verified(made, source, tmp_path):
    _, output, _ = made
    assert manifest(output)["quality"]["verified"] is True
    report = optimize(str(source), output=tmp_path / "a", verify=False)
    assert manifest(tmp_path / "a")["quality"]["verified"] is False
    assert report.noise is None
    assert all(row.findings == () for row in report.rows)


def test_without_an_output_nothing_is_begun():
    with pytest.raises(PipelineError, match="needs a folder to write the artifact to"):
        optimize("nowhere")


def test_a_budget_that_is_too_small_names_the_pass_and_writes_nothing(source, tmp_path):
    (tmp_path / "out").mkdir()
    error = refused(source, tmp_path / "out" / "a", passes="quant", max_kld=1e-7)
    assert isinstance(error, ContractError)
    assert error.message.startswith("The pass 'quant' broke its contract: KL is ")


def test_a_budget_of_ones_own_accepts_more(source, tmp_path):
    report = optimize(
        str(source), passes="quant{bits=4 group=-1 head=4}", max_kld=50.0, output=tmp_path / "a"
    )
    assert 0 < report.quality.kld < 50
    assert manifest(tmp_path / "a")["quality"]["source"]["kld"] == report.quality.kld


@pytest.fixture
def broken_act(monkeypatch):
    """A built-in lossless pass that forgets a thousandth."""
    from optpipe_passes import fuse_gated_act

    right = fuse_gated_act.gated

    def wrong(cx, gate, up, kind):
        made = right(cx, gate, up, kind)
        return cx.call(torch.ops.aten.mul.Tensor, made, 0.999)

    monkeypatch.setattr(fuse_gated_act, "gated", wrong)


@pytest.mark.usefixtures("broken_act")
def test_the_command_exits_1_naming_the_pass_and_the_figure_and_writes_nothing(source, tmp_path, capsys):
    home = tmp_path / "out"
    home.mkdir()
    assert run(["optimize", str(source), "-o", str(home / "a")]) == 1
    err = capsys.readouterr().err
    assert "error: The pass 'fuse-gated-act' broke its contract: |Δ logit| is 0.0" in err
    assert "Traceback" not in err
    assert list(home.iterdir()) == []


def test_the_command_writes_json_alone_to_stdout(source, tmp_path, capsys):
    assert (
        run(["optimize", str(source), "-o", str(tmp_path / "a"), "--no-verify", "--explain", "--json"]) == 0
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["output"] == str(tmp_path / "a")
    assert "fuse-rope: applied" in err


def test_the_command_ends_with_a_table(source, tmp_path, capsys):
    assert (
        run(["optimize", str(source), "-o", str(tmp_path / "a"), "--no-verify", "--only-rewrites", "1-10"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("pipeline: clean,")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows["fuse-rms-norm"][1] == "5"
    assert rows["fuse-rope"][1] == "0"


WITHOUT_THE_MODEL = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("transformers.models.") and "modeling" in name:
                raise ImportError(f"{name} is blocked")

    sys.meta_path.insert(0, Block())
    try:
        import transformers.models.llama.modeling_llama
        sys.exit("the model's class can be imported, so this shows nothing")
    except ImportError:
        pass
    from optpipe_runtime.engine import Engine, EngineConfig
    from optpipe_runtime.sampling import SamplingParams

    with Engine(sys.argv[1], config=EngineConfig(num_blocks=16)) as engine:
        [output] = engine.generate(["The capital"], SamplingParams(temperature=0, max_tokens=5))
        print(*output.token_ids)
        ids = __import__("numpy").array(output.prompt_token_ids)
        print(float(engine.executor.logits(ids).sum()))
"""


def test_generates_with_the_source_deleted_and_the_models_class_blocked(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    optimize(str(source), output=tmp_path / "artifact", verify=False)
    shutil.rmtree(source)
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_THE_MODEL), str(tmp_path / "artifact")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    tokens, total = found.stdout.splitlines()
    model = tiny_model("llama")
    vocabulary = json.loads((tmp_path / "artifact" / "tokenizer.json").read_text())["model"]["vocab"]
    ids = torch.tensor([[vocabulary[c] for c in "TheĠcapital"]])
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=257, pad_token_id=258)
        assert float(total) == pytest.approx(float(model(ids).logits.sum()), abs=1e-2)
    assert [int(token) for token in tokens.split()] == expected[0, ids.shape[1] :].tolist()
