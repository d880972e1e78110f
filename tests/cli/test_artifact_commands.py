"""The commands that make, show, check and run artifacts, on a tiny model."""

import json
import shutil

import pytest

from optpipe.cli.main import run
from optpipe.testing import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "quantized"
    assert run(["optimize", str(model), "--passes", "quant,paged", "--max-kld", "9", "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def dense(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "dense"
    assert run(["optimize", str(model), "--passes", "", "-o", str(folder)]) == 0
    return folder


def answer(capsys, *arguments):
    """What a command prints as JSON."""
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_optimize_ends_with_a_table_of_every_pass(model, tmp_path, capsys):
    assert run(["optimize", str(model), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pipeline: clean,")
    for word in (
        "rewrites",
        "missed",
        "nodes",
        "bytes",
        "error",
        "seconds",
        "fuse-rope",
        "paged",
        "|Δ logit|",
    ):
        assert word in out
    assert out.rstrip().endswith(f"wrote {tmp_path / 'out'}")


def test_optimize_as_json_prints_nothing_else_on_stdout(model, tmp_path, capsys):
    report = answer(
        capsys, "optimize", model, "-o", tmp_path / "out", "--explain", "--print-ir-after", "fuse-rope"
    )
    assert report["output"] == str(tmp_path / "out")
    assert report["passes"][0]["pass"] == "trace"


def test_a_dry_run_prints_the_pipeline_and_writes_nothing(model, tmp_path, capsys):
    assert run(["optimize", str(model), "--passes", "quant{bits=8},paged", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "quant{bits=8}" in out
    assert "cache" in out
    assert list(tmp_path.iterdir()) == []


def test_explain_and_the_graph_are_printed_when_asked_for(model, tmp_path, capsys):
    arguments = ["--bare", "--passes", "", "--print-ir-after", "all", "--explain"]
    assert run(["optimize", str(model), "-o", str(tmp_path / "out"), *arguments]) == 0
    assert "optpipe.program 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["optimize", "MODEL"], 2, "--output"),
        (["optimize", "MODEL", "-o", "OUT", "--max-kld", "0"], 2, "max-kld"),
        (["optimize", "MODEL", "-o", "OUT", "--max-kld", "nan"], 2, "max-kld"),
        (["optimize", "MODEL", "-o", "OUT", "--max-kld", "inf"], 2, "not a finite number"),
        (["optimize", "MODEL", "-o", "OUT", "--min-top1", "1.1"], 2, "min-top1"),
        (["optimize", "MODEL", "-o", "OUT", "--min-top1", "nan"], 2, "not a finite number"),
        (["optimize", "MODEL", "-o", ""], 2, "the folder has no name"),
        (["optimize", "/no/such/folder", "--dry-run"], 1, "There is no folder '/no/such/folder'"),
        (["optimize", "no.gguf", "--dry-run"], 1, "There is no file 'no.gguf'"),
        (["optimize", "pypi:a b", "--dry-run"], 1, "is not the name of a package"),
        (["optimize", "nowhere", "--dry-run"], 1, "names no model"),
        (
            ["optimize", "MODEL", "-o", "OUT", "--passes", "paged{block=100000000}"],
            1,
            "from 1 to 1024 tokens",
        ),
        (["optimize", "MODEL", "-o", "OUT", "--print-ir-after", "zzz"], 1, "it has all, trace, clean,"),
        (["export", "QUANTIZED", "-o", ""], 2, "the folder has no name"),
        (
            ["export", "QUANTIZED", "-o", "QUANTIZED"],
            1,
            "holds an optpipe artifact, which an export does not",
        ),
        (["verify", "QUANTIZED", "--max-kld", "nan"], 2, "max-kld"),
        (["optimize", "MODEL", "-o", "OUT", "--passes", "qaunt"], 1, "did you mean 'quant'?"),
        (["optimize", "MODEL", "-o", "OUT", "--passes", "quant{bit=4}"], 1, "did you mean 'bits'?"),
        (["optimize", "MODEL", "-o", "OUT", "--only-rewrites", "x"], 1, "1-40,44"),
        (["optimize", "/no/such/folder", "-o", "OUT"], 1, "error: "),
        (["optimize", "MODEL", "-o", "MODEL"], 1, "not empty"),
        (["generate", "/no/such/folder", "hello"], 1, "no artifact"),
        (["inspect", "MODEL"], 1, "not an optpipe artifact"),
        (["verify", "MODEL"], 1, "not an optpipe artifact"),
        (["export", "QUANTIZED"], 2, "--output"),
        (["generate", "QUANTIZED", "hello", "--target", "refrence"], 1, "did you mean 'reference'?"),
        (["generate", "QUANTIZED", "hello", "--temperature", "nan"], 1, "temperature"),
        (["generate", "QUANTIZED", "", "--raw"], 1, "empty"),
        (["generate", "QUANTIZED", "hello", "--raw", "--system", "x"], 2, "--raw"),
        (["generate", "QUANTIZED", "word " * 999, "--raw"], 1, "there is room for 512"),
        (["inspect", "QUANTIZED", "--layer", "7"], 1, "no layer 7"),
        (["inspect", "QUANTIZED", "--layer", "0", "--text"], 2, "--layer"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, code, message, model, quantized, tmp_path, capsys):
    places = {"MODEL": str(model), "QUANTIZED": str(quantized), "OUT": str(tmp_path / "out")}
    assert run([places.get(it, it) for it in arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_inspect_summarizes(quantized, capsys):
    facts = answer(capsys, "inspect", quantized)
    assert facts["layers"] == 2
    assert facts["caches"] == 4
    assert facts["manifest"]["pipeline"].endswith("cache,paged")
    assert run(["inspect", str(quantized)]) == 0
    out = capsys.readouterr().out
    assert "int4" in out
    assert "KL " in out
    assert "optpipe.paged_attention" in out


def test_inspect_prints_text_that_parses(quantized, capsys):
    from optpipe.program import parse_program

    assert run(["inspect", str(quantized), "--text"]) == 0
    assert parse_program(capsys.readouterr().out).nodes


def test_inspect_prints_one_layer(quantized, capsys):
    assert run(["inspect", str(quantized), "--layer", "1"]) == 0
    out = capsys.readouterr().out
    assert "model.layers.1.self_attn" in out
    assert "layers.0.self_attn" not in out


def test_inspect_prints_json_of_whatever_is_asked(quantized, capsys):
    from optpipe.program import parse_program

    assert parse_program(answer(capsys, "inspect", quantized, "--text")["text"]).nodes
    facts = answer(capsys, "inspect", quantized, "--layer", "1")
    assert facts["layer"] == 1
    assert "optpipe.paged_attention" in {node["operation"] for node in facts["nodes"]}
    assert all(node["path"].startswith("model.layers.1") for node in facts["nodes"])
    assert all(kind.startswith("f32[T") for node in facts["nodes"] for kind in node["results"].values())


def resealed_with_an_unknown_operation(source, folder):
    """A copy whose graph names an operation that nobody has, and whose hashes agree with it."""
    from optpipe.artifact.folder import hash_folder
    from optpipe.artifact.manifest import NAME, Manifest, read_manifest, write_manifest

    shutil.copytree(source, folder)
    text = (folder / "graph.opt").read_text()
    (folder / "graph.opt").write_text(text.replace("optpipe.rms_norm(", "optpipe.rms_nrom("))
    content = read_manifest(folder).to_json()
    (folder / NAME).unlink()
    write_manifest(folder, Manifest(**{**content, "cache": None, "files": hash_folder(folder)}))
    return folder


@pytest.mark.parametrize(
    "command",
    [["inspect"], ["inspect", "--text"], ["inspect", "--layer", "0", "--json"], ["verify"], ["generate"]],
)
def test_an_unknown_operation_is_refused_whatever_is_asked(command, quantized, tmp_path, capsys):
    folder = resealed_with_an_unknown_operation(quantized, tmp_path / "resealed")
    name, *options = command
    said = ["hello"] if name == "generate" else []
    assert run([name, str(folder), *said, *options]) == 1
    printed = capsys.readouterr()
    assert "'optpipe.rms_nrom' is unknown" in printed.err
    assert printed.out == ""


def test_verify_holds_on_what_was_just_made(quantized, dense, capsys):
    report = answer(capsys, "verify", quantized)
    assert report["holds"]
    assert [it["name"] for it in report["checks"]] == ["files", "weights", "graph", "steps"]
    assert [it["name"] for it in answer(capsys, "verify", dense)["checks"]] == ["files", "weights", "graph"]


def test_verify_measures_a_target_where_that_runs_by_itself(quantized, capsys):
    report = answer(capsys, "verify", quantized, "--target", "cpu")
    assert [it["name"] for it in report["checks"]][-1] == "target cpu"
    assert report["holds"]


def test_verify_knows_that_noise_turns_codes_of_activations_over(model, tmp_path, capsys):
    """Optimized with every contract checked, too: the passes behind quant are lossless."""
    pipeline, folder = "quant{scheme=w8a8},paged", tmp_path / "rows"
    assert run(["optimize", str(model), "--passes", pipeline, "--max-kld", "9", "-o", str(folder)]) == 0
    report = answer(capsys, "verify", folder, "--target", "cpu")
    assert report["holds"]
    assert "rounding activations is" in report["checks"][-1]["detail"]


def test_verify_names_the_file_with_a_flipped_byte(quantized, tmp_path, capsys):
    copy = shutil.copytree(quantized, tmp_path / "copy")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert run(["verify", str(copy)]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_verify_fails_when_steps_disagree(quantized, monkeypatch, capsys):
    """A reference that forgets the cache between steps must be noticed."""
    from optpipe.targets.reference import ReferenceExecutor

    submit = ReferenceExecutor.submit

    def forgetful(self, step, **options):
        for cache in self._caches.values():
            cache.zero_()
        return submit(self, step, **options)

    monkeypatch.setattr(ReferenceExecutor, "submit", forgetful)
    assert run(["verify", str(quantized)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_eval_measures_the_divergence_from_a_model(quantized, dense, model, tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 4)
    far = answer(capsys, "eval", quantized, "--against", model, "--text", text)
    near = answer(capsys, "eval", dense, "--against", model, "--text", text)
    assert far["kld"] > 1e-4
    assert near["kld"] < 1e-6
    assert near["top1"] == 1.0
    assert near["perplexity"] == pytest.approx(near["source_perplexity"], rel=1e-4)
    assert far["tokens"] == near["tokens"] > 100


def test_eval_against_another_artifact(quantized, dense, capsys):
    assert answer(capsys, "eval", quantized, "--against", dense, "--windows", "1")["kld"] > 1e-4


def test_eval_alone_gives_the_perplexity(dense, capsys):
    alone = answer(capsys, "eval", dense, "--windows", "1")
    assert alone["kld"] is None
    assert alone["perplexity_error"] > 0


def test_export_writes_a_folder_that_can_be_optimized_again(quantized, tmp_path, capsys):
    assert run(["export", str(quantized), "-o", str(tmp_path / "plain")]) == 0
    again = tmp_path / "again"
    assert run(["optimize", str(tmp_path / "plain"), "-o", str(again)]) == 0
    assert answer(capsys, "eval", again, "--against", quantized, "--windows", "1")["kld"] < 1e-6


def test_generate_is_the_same_with_and_without_a_cache(model, dense, tmp_path, capsys):
    paged = tmp_path / "paged"
    assert run(["optimize", str(model), "-o", str(paged)]) == 0
    options = ["the quick", "--raw", "--max-tokens", "12"]
    first, second = answer(capsys, "generate", paged, *options), answer(capsys, "generate", dense, *options)
    assert first["token_ids"] == second["token_ids"]
    assert first["text"] == second["text"]
    assert first["prompt_tokens"] > 1


def test_generate_without_a_cache_says_so(dense, capsys):
    assert run(["generate", str(dense), "a", "--raw", "--max-tokens", "1"]) == 0
    assert "no `paged` pass" in capsys.readouterr().err


def test_generate_repeats_with_a_seed(quantized, capsys):
    options = ["a", "--raw", "--max-tokens", "12", "--temperature", "2", "--seed"]
    runs = [answer(capsys, "generate", quantized, *options, seed)["token_ids"] for seed in ("1", "1", "2")]
    assert runs[0] == runs[1] != runs[2]


def test_generate_reads_stdin_and_streams_text(quantized, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("once upon"))
    spoken = answer(capsys, "generate", quantized, "once upon", "--raw", "--max-tokens", "5")
    assert run(["generate", str(quantized), "-", "--raw", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == spoken["text"] + "\n"
