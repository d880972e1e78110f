"""``optpipe passes``: every pass that ``--passes`` can name."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import click

from ..errors import PipelineError, nearest
from ..plugins import Provided, installed_plugins
from .command import Command, json_option
from .output import print_json, print_table, warn_of_broken_plugins


@click.command(cls=Command, name="passes")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the passes, their contracts and options.

    With NAME, show one pass in full.
    """
    known = installed_plugins().passes()
    warn_of_broken_plugins()
    if name is not None and name not in known:
        raise PipelineError(f"There is no pass named '{name}'.", hint=nearest(name, known))
    chosen = list(known.values()) if name is None else [known[name]]
    chosen.sort(key=lambda it: (it.value.stage, it.name))
    if as_json:
        print_json([facts_of(it) for it in chosen])
    elif name is not None:
        _print_one(chosen[0])
    else:
        rows = [_row(it) for it in chosen]
        print_table(["pass", "stage", "always", "contract", "options", "from", "what it does"], rows)


def _row(provided: Provided[Any]) -> tuple[str, ...]:
    facts = facts_of(provided)
    options = " ".join(f"{it['name']}={it['default']}" for it in facts["options"])
    always = "yes" if facts["always"] else ""
    origin = provided.plugin.distribution
    return facts["name"], facts["stage"], always, facts["contract"], options, origin, facts["summary"]


def _print_one(provided: Provided[Any]) -> None:
    facts = facts_of(provided)
    click.echo(f"{facts['name']}, of {facts['distribution']} {facts['version']}")
    click.echo(f"stage {facts['stage']}; contract: {facts['contract']}; always on: {facts['always']}")
    for relation in ("requires", "before", "after"):
        if facts[relation]:
            click.echo(f"{relation}: {', '.join(facts[relation])}")
    click.echo(f"\n{facts['doc']}")
    if facts["options"]:
        click.echo()
        print_table(["option", "type", "default"], [tuple(it.values()) for it in facts["options"]])


def facts_of(provided: Provided[Any]) -> dict[str, Any]:
    """Everything that is known of a pass without running it, as ``--json`` prints it."""
    cls = provided.value
    return {
        "name": provided.name,
        "stage": cls.stage.name,
        "always": cls.always,
        "contract": _contract(cls),
        "summary": cls.summary(),
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "requires": list(cls.requires),
        "before": list(cls.before),
        "after": list(cls.after),
        "options": options_of(cls),
        "distribution": provided.plugin.distribution,
        "version": provided.plugin.version,
    }


def options_of(cls: Any) -> list[dict[str, str]]:
    """The options of a pass class as texts: name, type, default."""
    from ..pipeline.text import default_of

    hints = typing.get_type_hints(cls)
    return [
        {
            "name": field.name,
            "type": describe_type(hints[field.name], field.metadata.get("none", "none")),
            "default": "(required)"
            if (value := default_of(field)) is dataclasses.MISSING
            else show_value(value, field.metadata.get("none", "none")),
        }
        for field in dataclasses.fields(cls)
    ]


def show_value(value: Any, none: str = "none") -> str:
    """An option's value as it is written on the command line; ``none`` is how None is.

    >>> show_value(None), show_value(True), show_value(("a", "b")), show_value(32)
    ('none', 'true', 'a|b', '32')
    """
    if isinstance(value, tuple):
        return "|".join(show_value(it) for it in value)
    if value is None:
        return none
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe_type(hint: Any, none: str = "none") -> str:
    """An option's type for people; ``none`` is how None is written.

    >>> describe_type(typing.Literal[4, 8]), describe_type(int | None)
    ('4 | 8', 'int | none')
    """
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(it) for it in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "names joined by |"
    if args := typing.get_args(hint):
        return " | ".join(describe_type(it, none) for it in args)
    return {type(None): none, str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _contract(cls: Any) -> str:
    try:
        return str(cls().contract())
    except TypeError:
        return "depends on its options"  # an option without a default
