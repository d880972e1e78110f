"""The manager: every kind of contract can fail, a pass that fails leaves nothing behind but a reproducer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from optpipe.errors import ContractError, PassError
from optpipe.graph.nodes import aten, is_call, shape
from optpipe.graph.sizes import as_arguments
from optpipe.optimizer import plan
from optpipe.pipeline import Lossless, Lossy, Pass, Stage, checks
from optpipe.pipeline.checks import Subject
from optpipe.pipeline.contract import Contract
from optpipe.program import from_fx, parse_program, print_program


@dataclass(frozen=True)
class Sabotage(Pass):
    """Whatever a test wants it to do."""

    name: ClassVar[str] = "sabotage"
    stage: ClassVar[Stage] = Stage.LOWER
    after: ClassVar[tuple[str, ...]] = ("paged",)
    deed: Callable[[Any, Any], None] = lambda graph, cx: None
    promise: Contract = Lossless()  # noqa: RUF009 - frozen
    promised: int | None = None

    def contract(self):
        return self.promise

    def expected(self, config):
        return self.promised

    def apply(self, graph, cx):
        self.deed(graph, cx)


def text_of(gm):
    return print_program(from_fx(gm))


def linears(cx, part):
    return [node for node in cx.nodes(aten.linear) if part in node.meta["path"]]


def scaled(factor):
    """Multiply one projection by a little more than one."""

    def deed(graph, cx):
        node = linears(cx, "layers.0.mlp.up_proj")[0]
        cx.replace(
            node,
            lambda: cx.call(aten.mul.Tensor, cx.call(aten.linear.default, *node.args), factor),
            what="scale",
        )

    return deed


def test_a_lossless_pass_that_changes_a_thousandth_is_caught(manager):
    with pytest.raises(
        ContractError, match=r"'sabotage' broke its contract: \|Δ logit\| is [\d.e-]+, and at most"
    ):
        manager().run([Sabotage(scaled(1.001))])


def test_a_lossless_pass_that_changes_nothing_is_not(manager):
    done = manager()
    done.run([Sabotage(scaled(1.0))])
    assert done.records[0].rewrites == 1
    assert done.records[0].findings[0].holds


def unrecorded(graph, cx):
    """Swap two operands behind the context's back."""
    gate, up = (linears(cx, f"layers.0.mlp.{part}_proj")[0] for part in ("gate", "up"))
    if list(graph.nodes).index(gate) < list(graph.nodes).index(up):
        gate, up = up, gate
    gate.replace_all_uses_with(up)


def unrecorded_weight(graph, cx):
    name = "model.layers.0.mlp.down_proj.weight"
    cx.weights.set(name, cx.weights[name].load() * 0)


@pytest.mark.parametrize("deed", [unrecorded, unrecorded_weight])
def test_a_change_that_no_rewrite_records_is_measured_all_the_same(manager, deed):
    with pytest.raises(ContractError, match="'sabotage' broke its contract"):
        manager().run([Sabotage(deed)])


class Meddler:
    """Stands for the installed plugins; one of them zeroes a weight and a node while it watches."""

    def notify(self, hook, *, pass_, graph, cx):
        unrecorded_weight(graph, cx)
        unrecorded(graph.graph, cx)


def test_a_plugin_that_watches_cannot_change_the_graph(paged, monkeypatch):
    monkeypatch.setattr("optpipe.pipeline.manager.installed_plugins", Meddler)
    done = paged()
    before, name = text_of(done.gm), "model.layers.0.mlp.down_proj.weight"
    kept = done.weights[name]
    done.run([Sabotage()])
    assert text_of(done.gm) == before
    assert done.weights[name] is kept


def test_a_number_that_is_none_is_caught_in_any_packed_sequence(paged, monkeypatch):
    done = paged()
    subject = Subject(done.gm, done.weights, done.measured.probes, done.measured.cache)
    real = checks.run_packed

    def spoiled(executor, sequences):
        found = real(executor, sequences)
        found[1][0, 0] = float("nan")
        return found

    monkeypatch.setattr(checks, "run_packed", spoiled)
    assert not checks.check_packed(subject, done.measured.noise).holds


def without_a_layer(graph, cx):
    for node in linears(cx, "layers.1.mlp.down_proj") + linears(cx, "layers.1.self_attn.o_proj"):
        cx.replace(node, lambda: cx.call(aten.mul.Tensor, cx.call(aten.linear.default, *node.args), 0.0))  # noqa: B023


def test_a_lossy_pass_that_zeroes_a_layer_is_caught(manager):
    with pytest.raises(
        ContractError, match=r"'sabotage' broke its contract: KL is [\d.]+, and at most 0.01 is allowed"
    ):
        manager().run([Sabotage(without_a_layer, Lossy(max_kld=0.01))])


def test_a_budget_of_the_persons_own_accepts_it(manager):
    done = manager(max_kld=100.0)
    done.run([Sabotage(without_a_layer, Lossy(max_kld=0.01))])
    done.check_whole()
    assert 0.01 < done.quality.kld < 100
    assert done.records[0].findings[0].bound == 100


def test_a_budget_of_the_persons_own_can_be_the_stricter_one(manager):
    with pytest.raises(ContractError, match="at most 1e-09 is allowed"):
        manager(max_kld=1e-9).run([Sabotage(scaled(1.01), Lossy(max_kld=5.0))])


def test_lossy_passes_add_up_their_budgets(manager):
    done = manager()
    promises = Lossy(max_kld=0.25, min_top1=0.9), Lossy(max_kld=0.5, min_top1=0.8)
    done.run([Sabotage(scaled(1.001), promise) for promise in promises])
    assert [record.findings[0].bound for record in done.records] == [0.25, 0.75]
    assert [record.findings[1].bound for record in done.records] == [pytest.approx(0.1), pytest.approx(0.3)]


def test_other_first_choices_are_caught_where_the_divergence_is_allowed(manager):
    with pytest.raises(ContractError, match=r"top-1 disagreement is 0\.\d+, and at most 0.01 is allowed"):
        manager().run([Sabotage(without_a_layer, Lossy(max_kld=50.0, min_top1=0.99))])


def test_first_choices_have_a_bound_that_a_person_can_set_too(manager):
    accepted = manager(max_kld=100.0)
    accepted.run([Sabotage(without_a_layer, Lossy(max_kld=0.01))])
    assert accepted.records[0].findings[1].bound == 1.0
    top1 = accepted.records[0].quality.top1
    with pytest.raises(ContractError, match="top-1 disagreement"):
        manager(max_kld=100.0, min_top1=top1 + 0.01).run([Sabotage(without_a_layer, Lossy(max_kld=0.01))])
    manager(max_kld=100.0, min_top1=top1 - 0.01).run([Sabotage(without_a_layer, Lossy(max_kld=0.01))])


def test_after_a_lossy_pass_a_lossless_one_is_held_to_what_that_made(manager):
    lossy = Sabotage(without_a_layer, Lossy(max_kld=50.0))
    manager().run([lossy, Sabotage(scaled(1.0))])
    with pytest.raises(ContractError, match="Δ logit"):
        manager().run([lossy, Sabotage(scaled(1.001))])


def forgetful(graph, cx):
    """Positions from 500 on are all 500, as a table of 501 rows would have them."""
    positions = next(node for node in graph.nodes if node.name == "position_ids")
    (reader,) = [user for user in positions.users if user.op == "call_function"]
    cx.replace(
        reader,
        lambda: cx.call(reader.target, cx.call(aten.clamp.default, positions, None, 500), *reader.args[1:]),
    )


def test_a_mistake_that_shows_only_at_the_last_positions_is_caught(manager, paged):
    for made in (manager, paged):
        with pytest.raises(ContractError, match=r"\|Δ logit, last positions\| is"):
            made().run([Sabotage(forgetful)])


def test_no_other_probe_sees_that_mistake(paged, monkeypatch):
    done = paged()
    measured = done.measured
    monkeypatch.setattr(measured.probes, "far", [])
    done.measured = dataclasses.replace(
        measured, source=(measured.source[0][: len(measured.probes.exact)], measured.source[1])
    )
    done.__post_init__()  # takes the baseline
    done.run([Sabotage(forgetful)])
    assert all(finding.holds for finding in done.records[0].findings)


def test_a_lossy_pass_is_held_to_its_budget_at_the_last_positions_too(paged):
    with pytest.raises(ContractError, match="'sabotage' broke its contract: KL, last positions is"):
        paged().run([Sabotage(forgetful, Lossy(max_kld=1e-3))])


def counted(drift=1.0):
    """Read positions from the row's number, as far as ``drift`` goes: right for one sequence alone."""

    def deed(graph, cx):
        positions = next(node for node in graph.nodes if node.name == "position_ids")
        readers = [user for user in positions.users if is_call(user, aten.reshape)]
        assert len(readers) == 1
        (cast,) = readers[0].users

        def build():
            rows = cx.call(
                aten.arange.default, *as_arguments(graph, [shape(positions)[0]]), dtype=torch.float32
            )
            column = cx.call(aten.unsqueeze.default, rows, 1)
            wrong = cx.call(aten.sub.Tensor, column, new)
            return cx.call(aten.add.Tensor, new, cx.call(aten.mul.Tensor, wrong, drift))

        with graph.inserting_before(cast):
            new = cx.call(cast.target, *cast.args, **cast.kwargs)
        cx.replace(cast, build)

    return deed


def test_reading_positions_from_row_numbers_is_caught_when_sequences_are_packed(paged):
    with pytest.raises(ContractError, match=r"'sabotage' broke its contract: \|Δ packed\| is"):
        paged().run([Sabotage(counted())])


def test_the_same_mistake_below_float32_noise_is_caught_in_float64(paged):
    with pytest.raises(ContractError, match=r"\|Δ packed, float64\| is"):
        paged().run([Sabotage(counted(drift=1e-9))])


def test_no_mistake_is_none(paged):
    done = paged()
    done.run([Sabotage(counted(drift=0.0))])
    assert [finding.check for finding in done.records[0].findings] == [
        "|Δ logit|",
        "|Δ logit, last positions|",
        "|Δ packed|",
        "|Δ packed, float64|",
    ]


def mixed(share=1e-4):
    """Add to every token a little of the mean over tokens of its step."""

    def deed(graph, cx):
        node = linears(cx, "layers.0.mlp.up_proj")[0]

        def build():
            again = cx.call(aten.linear.default, *node.args)
            mean = cx.call(aten.mean.dim, again, [0], True)
            return cx.call(aten.add.Tensor, again, cx.call(aten.mul.Tensor, mean, share))

        cx.replace(node, build)

    return deed


def test_mixing_tokens_is_caught(paged):
    with pytest.raises(ContractError, match="sabotage"):
        paged().run([Sabotage(mixed())])


def test_mixing_below_float32_noise_is_caught_in_a_graph_that_is_not_paged(manager):
    done = manager()
    done.run(plan("")[:3])
    with pytest.raises(ContractError, match=r"\|Δ split, float64\| is"):
        done.run([Sabotage(mixed(share=1e-7))])


def lie_about_a_shape(graph, cx):
    node = next(iter(cx.nodes(aten.linear)))
    node.meta["val"] = node.meta["val"][..., :1]


def lie_about_an_order(graph, cx):
    graph.output_node().prepend(next(iter(cx.nodes(aten.linear))))


@pytest.mark.parametrize("deed", [lie_about_a_shape, lie_about_an_order])
def test_a_graph_that_does_not_hold_together_is_caught(manager, deed):
    with pytest.raises(PassError):
        manager(verify=False).run([Sabotage(deed)])


def test_an_operation_of_a_stage_that_is_over_is_caught(manager):
    def deed(graph, cx):
        ids = next(node for node in graph.nodes if node.name == "input_ids")
        with graph.inserting_after(ids):
            mask = cx.call(torch.ops.optpipe.mask.default, ids, kind="causal")
        logits = graph.output_node().args[0]
        with graph.inserting_after(logits):
            total = cx.call(aten.sum.default, mask)
        with graph.inserting_after(total):
            graph.output_node().args = (cx.call(aten.add.Tensor, logits, total),)

    with pytest.raises(PassError, match=r"optpipe\.mask"):
        manager(verify=False).run([Sabotage(deed)])


def test_fewer_rewrites_than_promised_are_an_error(manager):
    with pytest.raises(PassError, match="'sabotage' made 1 rewrites where the config promises 2") as caught:
        manager().run([Sabotage(scaled(1.0), promised=2)])
    assert "--explain" in caught.value.hint


def test_as_many_rewrites_as_promised_are_fine(manager):
    manager().run([Sabotage(scaled(1.0), promised=1)])


def crash(graph, cx):
    for node in list(graph.nodes):
        if node.op == "output":
            node.args = (0,)
    raise ZeroDivisionError("by nothing")


FAILURES = {
    "crash": (Sabotage(crash), PassError),
    "contract": (Sabotage(scaled(1.5)), ContractError),
    "count": (Sabotage(scaled(1.0), promised=9), PassError),
    "verifier": (Sabotage(lie_about_a_shape), PassError),
}


@pytest.mark.parametrize(("failing", "kind"), FAILURES.values(), ids=FAILURES)
def test_a_pass_that_fails_leaves_the_old_graph_in_place(manager, reproducers, failing, kind):
    begun = manager()
    gm, weights, constants, text = begun.gm, begun.weights, begun.constants, text_of(begun.gm)
    names = list(weights)
    with pytest.raises(kind) as caught:
        begun.run([failing, *plan("paged")])
    assert (begun.gm, begun.weights, begun.constants) == (gm, weights, constants)
    assert text_of(begun.gm) == text
    assert list(weights) == names
    assert begun.records == []
    (folder,) = reproducers.glob("optpipe-sabotage-*")
    assert str(folder) in caught.value.hint


def test_weights_of_a_pass_that_fails_are_gone(manager):
    def deed(graph, cx):
        with graph.inserting_before(next(iter(cx.nodes(aten.linear)))):
            cx.set_weight("model.norm.weight", torch.zeros(64))
        raise ValueError

    begun = manager()
    with pytest.raises(PassError):
        begun.run([Sabotage(deed)])
    assert begun.weights["model.norm.weight"].load().any()


def test_the_reproducer_holds_the_graph_before_and_what_was_left(manager, reproducers):
    begun = manager()
    with pytest.raises(PassError, match="The pass 'sabotage' failed: ZeroDivisionError: by nothing"):
        begun.run([*plan("", bare=False)[:1], Sabotage(crash), *plan("paged{block=8}")[-1:]])
    (folder,) = reproducers.glob("optpipe-sabotage-*")
    assert {path.name for path in folder.iterdir()} == {
        "before.opt",
        "pipeline.txt",
        "config.json",
        "error.txt",
    }
    text = (folder / "before.opt").read_text()
    assert text == text_of(begun.gm)
    assert print_program(parse_program(text)) == text
    assert "arange" not in text, "clean had run"
    left = (folder / "pipeline.txt").read_text()
    assert left.startswith("sabotage")
    assert left.endswith(",paged{block=8}\n")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert "ZeroDivisionError: by nothing" in (folder / "error.txt").read_text()


def test_the_reproducer_is_where_a_person_wants_it(manager, reproducers, tmp_path):
    begun = manager()
    begun.reproducers = tmp_path / "kept" / "here"
    with pytest.raises(PassError) as caught:
        begun.run([Sabotage(crash)])
    (folder,) = begun.reproducers.iterdir()
    assert str(folder) in caught.value.hint
    assert "--reproducers" in caught.value.hint
    assert list(reproducers.iterdir()) == []


def test_without_verification_nothing_is_measured(manager):
    done = manager(verify=False)
    done.run([Sabotage(scaled(1.5))])
    assert done.records[0].findings == ()
    done.check_whole()
    assert done.quality is None


def test_a_pass_that_changes_nothing_is_not_measured(paged):
    done = paged()
    done.run([Sabotage()])
    assert done.records[0].findings == ()


def test_records_say_what_a_pass_did(manager):
    done = manager()
    done.run(plan("paged"))
    rows = {row.name: row for row in done.records}
    assert rows["fuse-rms-norm"].rewrites == 5
    assert rows["fuse-rms-norm"].nodes_before - rows["fuse-rms-norm"].nodes_after == 5 * 5
    assert rows["fuse-add-rms-norm"].missed == 1
    assert rows["paged"].text == "paged"
    assert all(row.bytes_before == row.bytes_after for row in done.records)
    assert all(finding.holds for row in done.records for finding in row.findings)
    assert json.loads(json.dumps(rows["paged"].to_json()))["rewrites"] == 2


class Told:
    def __init__(self):
        self.said = []

    def starting(self, name, number, total):
        self.said.append((name, number, total))

    def progressed(self, *given):
        pass

    def finished(self, record, before, after):
        self.said.append((record.name, text_of(before) == text_of(after)))


def test_a_watcher_is_told_what_starts_and_what_it_made(manager):
    begun = manager(verify=False)
    begun.watcher = told = Told()
    begun.run([Sabotage()])  # tidies what was traced
    told.said.clear()
    begun.run([Sabotage(), Sabotage(scaled(2.0))])
    assert told.said == [("sabotage", 0, 2), ("sabotage", True), ("sabotage", 1, 2), ("sabotage", False)]
