"""Finding, restricting, loading and surviving plugins."""

import sys
import types
from importlib import metadata

import pytest

from optpipe.errors import PluginError
from optpipe.plugins import hookimpl, load_plugins


class Distribution(metadata.Distribution):
    """An installed distribution that exists only here."""

    def __init__(self, name: str):
        self._name = name

    def read_text(self, filename):
        return f"Name: {self._name}\nVersion: 1.0\n" if filename == "METADATA" else None

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture
def plugin(monkeypatch):
    """Make an entry point of a module with the given attributes."""

    def make(name, distribution="acme", **attributes):
        module = types.ModuleType(f"plugin_{distribution}_{name}".replace("-", "_"))
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entry = metadata.EntryPoint(name, module.__name__, "optpipe")
        return entry._for(Distribution(distribution))

    return make


def named(name):
    return type("APass", (), {"name": name})


def passes(*classes):
    @hookimpl
    def optpipe_passes():
        return classes

    return optpipe_passes


def test_collects_passes_with_their_origin(plugin):
    plugins = load_plugins([plugin("one", optpipe_passes=passes(named("a"), named("b")))], None)
    found = plugins.passes()
    assert list(found) == ["a", "b"]
    assert found["a"].plugin.distribution == "acme"
    assert found["a"].plugin.hooks == ("optpipe_passes",)


def test_built_in_plugins_come_first(plugin):
    entries = [plugin("z", "acme"), plugin("b", "optpipe"), plugin("a", "zebra")]
    assert [it.key for it in load_plugins(entries, None).loaded] == ["optpipe:b", "acme:z", "zebra:a"]


def test_a_duplicate_name_names_both_distributions(plugin):
    entries = [plugin("x", "acme", optpipe_passes=passes(named("a")))]
    entries.append(plugin("y", "zebra", optpipe_passes=passes(named("a"))))
    with pytest.raises(PluginError, match=r"'a'.*'x' of acme 1\.0.*'y' of zebra 1\.0") as caught:
        load_plugins(entries, None).passes()
    assert "OPTPIPE_PLUGINS" in (caught.value.hint or "")


def test_a_plugin_that_cannot_be_imported_is_named_and_survived(plugin):
    missing = metadata.EntryPoint("bad", "no_such_module_anywhere", "optpipe")._for(Distribution("acme"))
    plugins = load_plugins([missing, plugin("good", optpipe_passes=passes(named("a")))], None)
    assert list(plugins.passes()) == ["a"]
    (broken,) = plugins.broken
    assert "'bad' of acme 1.0" in str(broken)
    assert "no_such_module_anywhere" in str(broken)
    assert "Traceback" in broken.trace


def test_a_plugin_whose_hook_raises_is_named_and_survived(plugin):
    @hookimpl
    def optpipe_passes():
        raise ValueError("no\nluck")

    entries = [
        plugin("bad", optpipe_passes=optpipe_passes),
        plugin("good", optpipe_passes=passes(named("a"))),
    ]
    plugins = load_plugins(entries, None)
    assert list(plugins.passes()) == ["a"]
    assert [it.name for it in plugins.loaded] == ["good"]
    assert "ValueError: no luck" in str(plugins.broken[0])
    assert list(plugins.passes()) == ["a"]  # and is not asked again
    assert len(plugins.broken) == 1


def test_a_thing_without_a_name_breaks_its_plugin(plugin):
    plugins = load_plugins([plugin("bad", optpipe_passes=passes(object))], None)
    assert plugins.passes() == {}
    assert "without a name" in str(plugins.broken[0])


def test_an_unknown_hook_breaks_its_plugin_with_the_nearest_name(plugin):
    @hookimpl
    def optpipe_passs():
        return []

    plugins = load_plugins([plugin("bad", optpipe_passs=optpipe_passs)], None)
    assert "did you mean 'optpipe_passes'?" in str(plugins.broken[0])


def test_a_hook_that_is_not_marked_breaks_its_plugin(plugin):
    plugins = load_plugins([plugin("bad", optpipe_passes=lambda: [named("a")])], None)
    assert "not marked with @hookimpl" in str(plugins.broken[0])


def test_a_hook_with_an_argument_that_does_not_exist_breaks_its_plugin(plugin):
    @hookimpl
    def optpipe_before_pass(pass_, surprise):
        pass

    plugins = load_plugins([plugin("bad", optpipe_before_pass=optpipe_before_pass)], None)
    assert "surprise" in str(plugins.broken[0])


def test_watchers_are_called_with_the_arguments_they_name(plugin):
    seen = []

    @hookimpl
    def optpipe_after_pass(graph):
        seen.append(graph)

    load_plugins([plugin("w", optpipe_after_pass=optpipe_after_pass)], None).notify(
        "optpipe_after_pass", pass_=None, graph="g", cx=None
    )
    assert seen == ["g"]


def test_a_watcher_that_raises_is_an_error_that_names_it(plugin):
    @hookimpl
    def optpipe_before_pass():
        raise RuntimeError("too late")

    plugins = load_plugins([plugin("w", optpipe_before_pass=optpipe_before_pass)], None)
    with pytest.raises(PluginError, match=r"'w' of acme 1\.0 raised in optpipe_before_pass.*too late"):
        plugins.notify("optpipe_before_pass", pass_=None, graph=None, cx=None)


@pytest.mark.parametrize(
    ("restriction", "loaded"),
    [
        (None, ["optpipe:core", "acme:a", "acme:b", "zebra:a"]),
        ("", ["optpipe:core"]),
        (" , ", ["optpipe:core"]),
        ("acme", ["optpipe:core", "acme:a", "acme:b"]),
        ("b, zebra", ["optpipe:core", "acme:b", "zebra:a"]),
        ("acme:a", ["optpipe:core", "acme:a"]),
    ],
)
def test_restriction(plugin, restriction, loaded):
    entries = [plugin("a"), plugin("b"), plugin("a", "zebra"), plugin("core", "optpipe")]
    plugins = load_plugins(entries, restriction)
    assert [it.key for it in plugins.loaded] == loaded
    everything = {"optpipe:core", "acme:a", "acme:b", "zebra:a"}
    assert set(plugins.skipped) == everything - set(loaded)


def test_a_restriction_to_something_that_is_not_installed_is_an_error(plugin):
    with pytest.raises(PluginError, match="'acne'") as caught:
        load_plugins([plugin("a")], "acne")
    assert caught.value.hint == "did you mean 'acme'?"
