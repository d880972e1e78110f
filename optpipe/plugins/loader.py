"""Find plugins through entry points, load each on its own, and collect what they provide.

Built-in plugins are those of the ``optpipe`` distribution. ``OPTPIPE_PLUGINS`` restricts the others: unset
means all of them, empty means none, otherwise a comma list of distributions or plugins (``NAME`` or
``DISTRIBUTION:NAME``).
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from ..errors import PluginError, nearest
from . import hookspecs

if TYPE_CHECKING:
    from ..sources.source import SourceKind

GROUP = "optpipe"
COMMAND_GROUP = "optpipe.commands"
OWN_DISTRIBUTION = "optpipe"
VARIABLE = "OPTPIPE_PLUGINS"

T = TypeVar("T")

_PROVIDED_BY = {
    "optpipe_passes": "pass",
    "optpipe_model_sources": "model source",
    "optpipe_kernels": "kernels",
    "optpipe_targets": "target",
    "optpipe_exporters": "export format",
    "optpipe_onnx_mappings": "ONNX mapping",
    "optpipe_commands": "command",
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that was loaded."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...]

    @property
    def key(self) -> str:
        """``DISTRIBUTION:NAME``, which no other plugin has."""
        return f"{self.distribution}:{self.name}"

    @property
    def builtin(self) -> bool:
        """Whether it came with optpipe."""
        return self.distribution == OWN_DISTRIBUTION


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that could not be used: who, and what was raised."""

    name: str
    distribution: str
    version: str
    error: str
    trace: str

    def __str__(self) -> str:
        return f"The {_who(self)} is broken and left out: {self.error}"


@dataclass(frozen=True, slots=True)
class Provided(Generic[T]):
    """One thing that a plugin provides."""

    name: str
    value: T
    plugin: Plugin


@dataclass
class Plugins:
    """The plugins in force, those that are broken, and those that ``OPTPIPE_PLUGINS`` leaves out."""

    manager: pluggy.PluginManager
    loaded: list[Plugin] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def passes(self) -> dict[str, Provided[Any]]:
        """Pass classes by name."""
        return self._collect("optpipe_passes")

    def model_sources(self) -> list[Provided[SourceKind]]:
        """Kinds of model sources, in the order in which they are asked."""
        return sorted(self._collect("optpipe_model_sources").values(), key=lambda kind: kind.value.rank)

    def kernels(self) -> dict[str, Provided[hookspecs.KernelEntry]]:
        """Kernel families by name."""
        return self._collect("optpipe_kernels")

    def targets(self) -> dict[str, Provided[hookspecs.TargetEntry]]:
        """Targets by name."""
        return self._collect("optpipe_targets")

    def exporters(self) -> dict[str, Provided[hookspecs.ExportEntry]]:
        """Export formats by name."""
        return self._collect("optpipe_exporters")

    def onnx_mappings(self) -> dict[str, Provided[hookspecs.OnnxMapping]]:
        """Mappings to ONNX by the operation's name."""
        return self._collect("optpipe_onnx_mappings")

    def commands(self) -> dict[str, Provided[Any]]:
        """Click commands by name; only of plugins that were loaded from the command group."""
        return self._collect("optpipe_commands")

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an observing hook (``optpipe_before_pass``, ``optpipe_after_pass``) in every plugin.

        Raises:
            PluginError: a plugin raised; the message names it.
        """
        for plugin in self._implementing(hook):
            try:
                self._call(plugin, hook, arguments)
            except Exception as error:
                raise PluginError(
                    f"The {_who(plugin)} raised in {hook}: {_one_line(error)}",
                    hint=f"leave it out with {VARIABLE}, or report it to its author",
                ) from error

    def _collect(self, hook: str) -> dict[str, Provided[Any]]:
        found: dict[str, Provided[Any]] = {}
        for plugin in self._implementing(hook):
            try:
                things = [Provided(_name_of(thing), thing, plugin) for thing in self._call(plugin, hook, {})]
            except Exception as error:
                self._give_up(plugin, error)
                continue
            for thing in things:
                if other := found.get(thing.name):
                    raise _duplicate(hook, other, thing)
                found[thing.name] = thing
        return found

    def _implementing(self, hook: str) -> list[Plugin]:
        return [plugin for plugin in self.loaded if hook in plugin.hooks]

    def _call(self, plugin: Plugin, hook: str, arguments: dict[str, Any]) -> Iterable[Any]:
        others = [self.manager.get_plugin(it.key) for it in self.loaded if it != plugin]
        answers = self.manager.subset_hook_caller(hook, others)(**arguments)
        return answers[0] if answers and answers[0] is not None else ()

    def _give_up(self, plugin: Plugin, error: Exception) -> None:
        self.loaded.remove(plugin)
        self.manager.unregister(name=plugin.key)
        self.broken.append(_broken(plugin.name, plugin.distribution, plugin.version, error))


def installed_plugins() -> Plugins:
    """Load what is installed, once a process for each value of ``OPTPIPE_PLUGINS``.

    Raises:
        PluginError: ``OPTPIPE_PLUGINS`` names nothing that is installed.
    """
    return _load_once(os.environ.get(VARIABLE))


@functools.cache
def _load_once(restriction: str | None) -> Plugins:
    return load_plugins(installed_entries(GROUP), restriction)


@functools.cache
def installed_entries(group: str) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, read from the metadata of what is installed; nothing is imported."""
    return tuple(metadata.entry_points(group=group))


def load_plugins(entries: Sequence[metadata.EntryPoint], restriction: str | None) -> Plugins:
    """Load entry points, built-in ones first, then by distribution and name.

    Args:
        entries: entry points with their distribution.
        restriction: as ``OPTPIPE_PLUGINS``; None for all.

    Returns:
        The plugins; one that raises while it is loaded is in ``broken``.

    Raises:
        PluginError: ``restriction`` names a plugin that is not among the entries.
    """
    manager = pluggy.PluginManager("optpipe")
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager)
    chosen, plugins.skipped = restrict(entries, restriction)
    for entry in chosen:
        name, distribution, version = describe(entry)
        try:
            plugin = _register(manager, entry)
        except Exception as error:
            plugins.broken.append(_broken(name, distribution, version, error))
        else:
            plugins.loaded.append(plugin)
    return plugins


def restrict(
    entries: Iterable[metadata.EntryPoint], restriction: str | None
) -> tuple[list[metadata.EntryPoint], list[str]]:
    """Split entry points into those in force, in order, and the keys of those left out.

    Raises:
        PluginError: ``restriction`` names something that is not installed.
    """
    ordered = sorted(entries, key=_rank)
    if restriction is None:
        return ordered, []
    wanted = {word.strip() for word in restriction.split(",") if word.strip()}
    everything = [*ordered, *installed_entries(GROUP), *installed_entries(COMMAND_GROUP)]
    installed = {word for entry in everything for word in _words(entry)}
    for word in sorted(wanted - installed):
        raise PluginError(
            f"{VARIABLE} asks for plugin '{word}', which is not installed.",
            hint=nearest(word, installed) or "`optpipe plugins` lists what is installed",
        )
    chosen = [entry for entry in ordered if _is_own(entry) or wanted & set(_words(entry))]
    return chosen, [_words(entry)[2] for entry in ordered if entry not in chosen]


def describe(entry: metadata.EntryPoint) -> tuple[str, str, str]:
    """Name, distribution and version of an entry point."""
    if entry.dist is None:
        return entry.name, "an unknown distribution", "?"
    return entry.name, entry.dist.name, entry.dist.version


def _is_own(entry: metadata.EntryPoint) -> bool:
    return describe(entry)[1] == OWN_DISTRIBUTION


def _rank(entry: metadata.EntryPoint) -> tuple[bool, str, str]:
    name, distribution, _ = describe(entry)
    return not _is_own(entry), distribution, name


def _words(entry: metadata.EntryPoint) -> tuple[str, str, str]:
    name, distribution, _ = describe(entry)
    return distribution, name, f"{distribution}:{name}"


def _register(manager: pluggy.PluginManager, entry: metadata.EntryPoint) -> Plugin:
    name, distribution, version = describe(entry)
    module = entry.load()
    hooks = tuple(_implemented(manager, module))
    plugin = Plugin(name, distribution, version, hooks)
    manager.register(module, name=plugin.key)
    return plugin


def _implemented(manager: pluggy.PluginManager, module: object) -> Iterator[str]:
    """The hooks that ``module`` implements; a function that is marked but is no hook is a PluginError."""
    known = hookspecs.hook_names()
    for name in dir(module):
        if manager.parse_hookimpl_opts(module, name) is None:
            if name in known:
                raise PluginError(f"Function '{name}' has a hook's name and is not marked with @hookimpl.")
            continue
        if name not in known:
            raise PluginError(
                f"Function '{name}' is marked with @hookimpl and is no hook.", hint=nearest(name, known)
            )
        yield name


def _name_of(thing: Any) -> str:
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not name:
        kind = thing.__name__ if isinstance(thing, type) else type(thing).__name__
        raise PluginError(f"It provides a '{kind}' without a name.")
    return name


def _duplicate(hook: str, first: Provided[Any], second: Provided[Any]) -> PluginError:
    claims = " and ".join(f"the {_who(it.plugin)}" for it in (first, second))
    return PluginError(
        f"The {_PROVIDED_BY[hook]} '{first.name}' is provided twice, by {claims}.",
        hint=f"uninstall one of the two, or leave one out with {VARIABLE}",
    )


def _who(plugin: Plugin | Broken) -> str:
    return f"plugin '{plugin.name}' of {plugin.distribution} {plugin.version}"


def _broken(name: str, distribution: str, version: str, error: Exception) -> Broken:
    trace = "".join(traceback.format_exception(error))
    return Broken(name, distribution, version, _one_line(error), trace)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, PluginError):
        return f"{text} ({error.hint})" if error.hint else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
