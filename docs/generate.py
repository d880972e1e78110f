"""Write the reference pages from the code: dialect, passes, hooks, command line.

    python docs/generate.py           write them
    python docs/generate.py --check   say which are not up to date, and exit with 1

``tests/test_docs.py`` runs the check.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import click

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code. Change it there, then run `make docs`. -->\n"
WIDTH = 100  # of help pages, columns


def block(text: str) -> str:
    """Text as it is, in a fence."""
    return f"```text\n{text}\n```\n"


def dialect() -> str:
    """One section an operation: what its file says, its schema, its operands."""
    from optpipe.dialect import OPS

    parts = [
        "# The dialect\n",
        NOTE,
        _DIALECT,
    ]
    for name in sorted(OPS):
        op = OPS[name]
        page = inspect.getdoc(inspect.getmodule(op.body)) or ""
        parts += [f"## {name}\n", block(page), block(f"{op.schema}\n\n{op.doc}")]
    return "\n".join(parts)


def passes() -> str:
    """One section a built-in pass: what its file says, its contract and options."""
    from optpipe.cli.passes import facts_of
    from optpipe.plugins import Plugins
    from optpipe.plugins.loader import GROUP, installed_entries, load_plugins

    plugins: Plugins = load_plugins(installed_entries(GROUP), "")
    found = sorted(plugins.passes().values(), key=lambda it: (it.value.stage, it.name))
    parts = [
        "# The built-in passes\n",
        NOTE,
        "In the order of their stages. `optpipe passes` lists those of plugins too.\n",
    ]
    for it in found:
        facts = facts_of(it)
        always = "always on" if facts["always"] else "on when it is named or required"
        parts += [f"## {it.name}\n", f"Stage {facts['stage']}; contract: {facts['contract']}; {always}.\n"]
        parts += [block(inspect.getdoc(inspect.getmodule(it.value)) or ""), block(facts["doc"])]
        if facts["options"]:
            rows = [
                f"| `{o['name']}` | {o['type'].replace('|', 'or')} | `{o['default']}` |"
                for o in facts["options"]
            ]
            parts += ["\n".join(["| option | type | default |", "|---|---|---|", *rows]) + "\n"]
    return "\n".join(parts)


def hooks() -> str:
    """One section a hook: its signature and contract."""
    from optpipe.plugins import hookspecs

    parts = ["# Hooks\n", NOTE, f"{inspect.getdoc(hookspecs)}\n", _HOW_TO_REGISTER]
    for name in hookspecs.hook_names():
        function = getattr(hookspecs, name)
        signature = f"{name}({', '.join(inspect.signature(function).parameters)})"
        parts += [f"## {name}\n", block(f"{signature}\n\n{inspect.getdoc(function)}")]
    return "\n".join(parts)


def cli() -> str:
    """One section a command: its help page."""
    from optpipe.cli.lazy import OWN
    from optpipe.cli.main import app
    from optpipe.plugins.loader import COMMAND_GROUP, installed_entries

    own = [
        it.name
        for it in installed_entries(COMMAND_GROUP)
        if it.dist is not None and it.dist.name == "optpipe"
    ]
    settings = {**app.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    root = click.Context(app, info_name="optpipe", **settings)
    parts = ["# The command line\n", NOTE, _CONVENTIONS]
    for name in [*OWN, *sorted(own)]:
        command = app.get_command(root, name)
        assert command is not None, f"{name = }"
        parts += _help_pages(name, command, root)
    return "\n".join(parts)


def _help_pages(name: str, command: click.Command, parent: click.Context, level: int = 2) -> list[str]:
    """A command's section, and those of its commands when it is a group."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    parts = [f"{'#' * level} {context.command_path}\n", block(command.get_help(context))]
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            inner = command.get_command(context, part)
            assert inner is not None, f"{part = }"
            parts += _help_pages(part, inner, context, level + 1)
    return parts


_DIALECT = """The operations that a graph may hold beside ATen's. They say what is computed, not on what. The
body is plain torch and is the truth: a kernel must equal it. The letters are in the [glossary](glossary.md).
"""

_HOW_TO_REGISTER = """A plugin is a module with functions of these names, marked with
`optpipe.plugins.hookimpl`, and an entry point that names the module:

```toml
[project.entry-points.optpipe]
my-plugin = "my_package.plugin"
```

`OPTPIPE_PLUGINS` restricts which are loaded: unset for all, empty for the built-in ones, otherwise a comma
list of distributions or plugins. A plugin that cannot be loaded is named on stderr and by `optpipe plugins`;
the rest goes on without it.
"""

_CONVENTIONS = """stdout is data and stderr is progress, so a pipe gets the data alone. Exit codes: 0 it
worked; 1 it did not, and stderr says why in one line, with a hint where there is one; 2 the command line is
wrong; 130 interrupted. `--debug` shows the traceback.
"""

PAGES: dict[str, Callable[[], str]] = {
    "dialect.md": dialect,
    "passes.md": passes,
    "hooks.md": hooks,
    "cli.md": cli,
}


def main() -> int:
    """Write or check every page."""
    stale = [name for name, page in PAGES.items() if _stored(name) != page()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/{name} is not what the code says; run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def _stored(name: str) -> str | None:
    path = DOCS / name
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
