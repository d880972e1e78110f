"""The server: the OpenAI API over an engine.

    app.py       puts it together            config.py    every limit
    routes/      one endpoint a file         schema/      what requests and answers hold
    answer.py    body → job → answer         job.py       one request at the engine
    *_style.py   how an answer is written    middleware/  log, keys, room
    listener.py  uvicorn, signals            health.py, metrics.py, logs.py

The event loop only moves bytes. Whatever takes time runs in the threads of service.py or in the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import ServerConfig

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["ServerConfig", "create_app"]


def __getattr__(name: str) -> Any:
    """Import the app, and with it FastAPI, when it is asked for."""
    if name == "create_app":
        from .app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
