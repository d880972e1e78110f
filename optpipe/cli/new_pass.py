"""``optpipe new-pass``: a whole plugin package, whose own tests pass once it is installed."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from ..errors import PluginError
from ..plugins import installed_plugins
from .command import Command, json_option
from .output import print_json

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")

# Template → where it goes; the names in braces are the template's variables.
FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "init.py.txt": "src/{package}/__init__.py",
    "plugin.py.txt": "src/{package}/plugin.py",
    "pass.py.txt": "src/{package}/{module}.py",
    "test.py.txt": "tests/test_{module}.py",
}


@click.command(cls=Command, name="new-pass")
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The folder to make.  [default: ./optpipe-NAME]"
)
@json_option
def command(name: str, output: Path | None, as_json: bool) -> None:
    """Write a package with a new pass, tests included.

    NAME is what --passes will call it, such as fold-scale.
    """
    known = installed_plugins().passes()
    if name in known:
        owner = known[name].plugin.distribution
        raise PluginError(f"There is a pass named '{name}' already, of {owner}.", hint="choose another name")
    folder = output or Path(f"optpipe-{name}")
    written = write_package(name, folder)
    if as_json:
        print_json({"folder": str(folder), "files": written})
        return
    click.echo("\n".join(f"{folder}/{it}" for it in written))
    click.echo(f'next: pip install -e "{folder}[test]" && pytest {folder}', err=True)


def write_package(name: str, folder: Path) -> list[str]:
    """Write the package and return its files.

    Raises:
        PluginError: the name is no pass name, or the folder has something in it.
    """
    variables = names_of(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"'{folder}' exists and is not an empty folder; it was left alone.")
    templates = files("optpipe.cli") / "templates" / "new_pass"
    content = {
        place.format(**variables): Template((templates / template).read_text(encoding="utf-8"))
        for template, place in FILES.items()
    }
    texts = {place: template.substitute(variables) for place, template in content.items()}
    texts[f"src/{variables['package']}/py.typed"] = ""
    for place, text in texts.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(texts)


def names_of(name: str) -> dict[str, str]:
    """Every spelling of a pass's name that the package needs.

    >>> names_of("fold-scale")["package"], names_of("fold-scale")["class_name"]
    ('optpipe_fold_scale', 'FoldScale')

    Raises:
        PluginError: it is no pass name.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise PluginError(
            f"'{name}' is no name for a pass.", hint="lower-case words joined by '-', such as fold-scale"
        )
    return {
        "name": name,
        "module": module,
        "package": f"optpipe_{module}",
        "distribution": f"optpipe-{name}",
        "class_name": "".join(word.capitalize() for word in name.split("-")),
    }
