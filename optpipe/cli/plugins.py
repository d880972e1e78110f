"""``optpipe plugins``: who extends optpipe here, and with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..plugins import Broken, Plugin, Plugins, installed_plugins
from .command import Command, json_option
from .output import print_json, print_table


@click.command(cls=Command, name="plugins")
@click.option("--debug-broken", is_flag=True, help="Show the traceback of each broken plugin.")
@json_option
def command(debug_broken: bool, as_json: bool) -> None:
    """List the plugins, and what each provides.

    OPTPIPE_PLUGINS restricts them: a comma list of distributions or plugins; empty for the built-in ones.
    """
    plugins = installed_plugins()
    provided = _provided(plugins)
    if as_json:
        print_json(_as_json(plugins, provided))
        return
    rows = [(it.name, _origin(it), _sentence(provided[it.key])) for it in plugins.loaded]
    rows += [(it.name, _origin(it), f"broken: {it.error}") for it in plugins.broken]
    rows += [(key.split(":")[1], key.split(":")[0], "left out by OPTPIPE_PLUGINS") for key in plugins.skipped]
    print_table(["plugin", "from", "provides"], rows)
    if debug_broken:
        for broken in plugins.broken:
            click.echo(f"{broken.name} of {broken.distribution}:\n{broken.trace}")


def _provided(plugins: Plugins) -> dict[str, dict[str, list[str]]]:
    """What each plugin provides: its key → kind → names."""
    kinds = {
        "passes": plugins.passes().values(),
        "model sources": plugins.model_sources(),
        "kernels": plugins.kernels().values(),
        "targets": plugins.targets().values(),
        "export formats": plugins.exporters().values(),
        "ONNX mappings": plugins.onnx_mappings().values(),
    }
    found: dict[str, dict[str, list[str]]] = {it.key: {} for it in plugins.loaded}
    for kind, things in kinds.items():
        for thing in things:
            if thing.plugin.key in found:
                found[thing.plugin.key].setdefault(kind, []).append(thing.name)
    for plugin in plugins.loaded:
        watched = [hook.removeprefix("optpipe_") for hook in plugin.hooks if hook.endswith("_pass")]
        if watched:
            found[plugin.key]["watches"] = watched
    return found


def _origin(plugin: Plugin | Broken) -> str:
    return f"{plugin.distribution} {plugin.version}"


def _sentence(provided: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in provided.items()) or "nothing"


def _as_json(plugins: Plugins, provided: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    return {
        "plugins": [
            dataclasses.asdict(it) | {"hooks": list(it.hooks), "provides": provided[it.key]}
            for it in plugins.loaded
        ],
        "broken": [dataclasses.asdict(it) for it in plugins.broken],
        "left_out": plugins.skipped,
    }
