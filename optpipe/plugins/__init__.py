"""How optpipe is extended: hooks, found through entry points, called through pluggy.

A plugin is a module (or object) named by an entry point in the group ``optpipe`` that implements some of the
hooks of :mod:`optpipe.plugins.hookspecs`. The built-in passes, kernels and commands enter the same way.
Nothing in this package imports torch.

    from optpipe.plugins import hookimpl

    @hookimpl
    def optpipe_passes():
        return [MyPass]
"""

import pluggy

from .loader import Broken, Plugin, Plugins, Provided, installed_plugins, load_plugins

hookimpl = pluggy.HookimplMarker("optpipe")
"""Marks a function as the implementation of the hook that it is named after."""

__all__ = ["Broken", "Plugin", "Plugins", "Provided", "hookimpl", "installed_plugins", "load_plugins"]
