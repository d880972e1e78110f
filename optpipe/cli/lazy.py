"""A click group whose commands are imported when they are used.

The core's own commands are a table; the others are entry points of the group ``optpipe.commands``, of which
only the names are read for ``--help``. Those of this distribution are known to be light, and are imported for
their summaries.
"""

from __future__ import annotations

import importlib
import os
from importlib import metadata

import click

from ..errors import PluginError, nearest

# Command → (module, summary). The summary is repeated by the command's docstring; a test compares the two.
OWN = {
    "optimize": ("optimize", "Turn a model into an optimized, checked artifact."),
    "eval": ("eval", "Measure an artifact's quality: perplexity, and divergence from a model."),
    "verify": ("verify", "Check an artifact: hashes, graph, and a target's numbers."),
    "inspect": ("inspect", "Show what an artifact holds."),
    "export": ("export", "Write an artifact in another format."),
    "passes": ("passes", "List the passes, their contracts and options."),
    "plugins": ("plugins", "List the plugins, and what each provides."),
    "new-pass": ("new_pass", "Write a package with a new pass, tests included."),
    "doctor": ("doctor", "Report versions, CPU features, kernels, memory and devices."),
}


class LazyGroup(click.Group):
    """The ``optpipe`` group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The core's commands in the order of the table, with the plugins' behind them."""
        return [*OWN, *sorted(set(_entries()) - set(OWN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command, or None when there is no such name."""
        found = _entries().get(cmd_name, [])
        owners = ["optpipe"] * (cmd_name in OWN) + [_distribution(entry) for entry in found]
        if len(owners) > 1:
            raise PluginError(
                f"The command '{cmd_name}' is provided twice, by {' and '.join(owners)}.",
                hint="uninstall one of the two, or leave one out with OPTPIPE_PLUGINS",
            )
        if not owners:
            return None
        return _own_command(cmd_name) if cmd_name in OWN else _plugin_command(cmd_name, found[0])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown name is a usage error with the nearest one."""
        name = click.utils.make_str(args[0])
        command = self.get_command(ctx, name)
        if command is None and not name.startswith("-"):
            hint = nearest(name, self.list_commands(ctx))
            ctx.fail(f"No such command '{name}'" + (f"; {hint}" if hint else "."))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing third-party ones."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in self.list_commands(ctx)])


def _own_command(name: str) -> click.Command:
    module = importlib.import_module(f"{__package__}.{OWN[name][0]}")
    command: click.Command = module.command
    return command


def _summary(name: str) -> str:
    if name in OWN:
        return OWN[name][1]
    entries = _entries()[name]
    distribution = _distribution(entries[0])
    if len(entries) > 1 or distribution != "optpipe":
        return f"(from {distribution})"
    try:
        return _plugin_command(name, entries[0]).get_short_help_str(limit=100)
    except PluginError:
        return "(broken; `optpipe doctor` says why)"


def _entries() -> dict[str, list[metadata.EntryPoint]]:
    """Entry points of commands by name, those that ``OPTPIPE_PLUGINS`` allows."""
    from ..plugins.loader import COMMAND_GROUP, VARIABLE, installed_entries, restrict

    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in restrict(installed_entries(COMMAND_GROUP), os.environ.get(VARIABLE))[0]:
        found.setdefault(entry.name, []).append(entry)
    return found


def _plugin_command(name: str, entry: metadata.EntryPoint) -> click.Command:
    """Import the one module that provides a command.

    Raises:
        PluginError: the module is broken, or provides no such command.
    """
    from ..plugins import load_plugins

    plugins = load_plugins([entry], None)
    commands = plugins.commands()
    if plugins.broken:
        raise PluginError(f"The command '{name}' cannot be used. {plugins.broken[0]}")
    if name not in commands:
        raise PluginError(f"{_distribution(entry)} promises a command '{name}' and does not provide it.")
    command: object = commands[name].value
    if not isinstance(command, click.Command):
        raise PluginError(f"The command '{name}' of {_distribution(entry)} is no click command.")
    return command


def _distribution(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"
