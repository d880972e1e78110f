"""A target's plan for an artifact, printed: instructions, what they cost, and what was left to torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import PluginError, nearest
from ..plugins import installed_plugins
from .output import human_bytes, print_table

if TYPE_CHECKING:
    from ..artifact import Artifact


def plan_of(artifact: Artifact, target: str, **options: Any) -> dict[str, Any]:
    """The report of a target's plan.

    Raises:
        PluginError: there is no such target, or it has no plan to show.
    """
    targets = {name: provided.value for name, provided in installed_plugins().targets().items()}
    if target not in targets:
        raise PluginError(f"There is no target named '{target}'.", hint=nearest(target, targets))
    report = getattr(targets[target], "report_plan", None)
    if report is None:
        raise PluginError(f"The target '{target}' has no plan: it runs the graph node by node.")
    found: dict[str, Any] = report(artifact, **options)
    return found


def print_plan(report: dict[str, Any]) -> None:
    """Print a report for people."""
    step = report["step"]
    click.echo(f"target: {report['target']}; instruction set: {report['isa']}")
    click.echo(f"step: one sequence, {step['tokens']} of {step['context']} tokens")
    click.echo(f"moves {human_bytes(report['bytes'])}, {report['operations']:,} operations")
    if "limits" in report:
        limits = report["limits"]
        click.echo(f"measured: {report['seconds'] * 1e3:.3f} ms with {report['threads']} threads")
        click.echo(
            f"this machine: reads {human_bytes(limits['bytes_per_second'])}/s from memory, "
            f"{human_bytes(limits['cache_bytes_per_second'])}/s from the last-level cache "
            f"({human_bytes(limits['cache_bytes'])}), "
            f"{limits['int8_operations_per_second'] / 1e9:.0f} G operations/s on int8, "
            f"{limits['bfloat16_operations_per_second'] / 1e9:.0f} G on bfloat16, "
            f"{limits['float32_operations_per_second'] / 1e9:.0f} G on float32"
        )
    print_table(*_table(report), right=["bytes", "operations", "µs", "of the limit"])
    print_segments(report)


def print_segments(report: dict[str, Any]) -> None:
    """Print what torch has to run, and why."""
    if not report["segments"]:
        click.echo("torch runs nothing")
    for it in report["segments"]:
        click.echo(f"torch runs {it['kernel']} of {it['path'] or 'the model'}: {it['reason']}")


def _table(report: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["kernel", "module", "bytes", "operations"]
    rows: list[tuple[str, ...]] = []
    measured = "limits" in report
    for it in report["steps"]:
        row: tuple[str, ...] = (it["kernel"], it["path"], human_bytes(it["bytes"]), f"{it['operations']:,}")
        if measured:
            share = "-" if it["of_limit"] is None else f"{it['of_limit']:.0%}"
            row = (*row, f"{it['seconds'] * 1e6:.1f}", share)
        rows.append(row)
    return [*columns, *(["µs", "of the limit"] if measured else [])], rows
