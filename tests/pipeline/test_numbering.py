"""Numbers of rewrites: the same every time, and those that are asked for alone are made."""

from __future__ import annotations

import pytest

from optpipe.optimizer import parse_numbers, plan


def ran(manager, only=None, passes="paged"):
    done = manager(verify=False)
    done.numbering.only = None if only is None else parse_numbers(only)
    done.run(plan(passes))
    return done


def made(done):
    """(number, pass, module, operation) of every rewrite made."""
    return [
        (int(remark.text), record.name, remark.where, remark.what)
        for record in done.records
        for remark in record.remarks
        if remark.kind == "applied"
    ]


@pytest.fixture(scope="module")
def everything(manager):
    """Every rewrite of a run that makes them all."""
    return made(ran(manager))


def test_numbers_run_through_the_whole_pipeline_without_a_gap(everything):
    numbers = [number for number, *_ in everything]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_run_numbers_the_same_rewrites_the_same(manager, everything):
    assert made(ran(manager)) == everything


@pytest.mark.parametrize("count", [0, 3, 8, 15])
def test_the_first_rewrites_are_the_first_of_the_whole_run(manager, everything, count):
    """What bisection needs: a prefix is the same rewrites."""
    whole = {p.name for p in plan("paged") if p.whole}
    free = [one for one in everything if one[1] not in whole]
    last = free[count - 1][0] if count else 0
    first = [one for one in made(ran(manager, f"0-{last}")) if one[1] not in whole]
    assert first == free[:count]


def test_one_rewrite_alone_can_be_made(manager, everything):
    wanted = next(one for one in everything if one[1] == "fuse-rms-norm" and "layers.1" in one[2])
    done = ran(manager, str(wanted[0]))
    assert [one for one in made(done) if one[1].startswith("fuse-")] == [wanted]


def test_whole_passes_are_counted_and_never_skipped(manager):
    done = ran(manager, "0")
    by_name = {record.name: record.rewrites for record in done.records}
    assert by_name["clean"] == 1
    assert by_name["drop-batch"] == 2
    assert by_name["gather-logits"] == 1
    assert by_name["cache"] == by_name["paged"] == 2
    assert not any(count for name, count in by_name.items() if name.startswith("fuse-"))


def test_what_was_left_out_has_no_remark(manager):
    done = ran(manager, "0")
    assert {record.name: record.missed for record in done.records}["fuse-rms-norm"] == 0


def test_the_graph_of_some_rewrites_gives_the_models_numbers(manager):
    """Any subset is a right graph: bisection may stop anywhere."""
    done = manager()
    done.numbering.only = parse_numbers("5-6,8,11")
    done.run(plan("paged"))
    assert all(finding.holds for record in done.records for finding in record.findings)
