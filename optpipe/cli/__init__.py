"""The ``optpipe`` program: one file a command, each imported when it is used.

stdout is data, stderr is progress. Importing this package imports click and nothing heavier.
"""

from .command import Command, json_option

__all__ = ["Command", "json_option"]
