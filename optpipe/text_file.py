"""Text that a person names on the command line."""

from __future__ import annotations

from pathlib import Path

from .errors import RequestError


def read_text(path: str | Path) -> str:
    """A text file.

    Raises:
        RequestError: it cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"The text '{path}' cannot be read: {error}.", hint="it must be UTF-8") from error
