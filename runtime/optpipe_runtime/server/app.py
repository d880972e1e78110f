"""The server as an ASGI app over an engine; mount it in a server of your own, or run `optpipe serve`.

with Engine("build/smollm2") as engine:
    uvicorn.run(create_app(engine, ServerConfig(model_name="smollm2")))
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from ..engine import Engine
from .config import ServerConfig
from .errors import add_handlers
from .middleware import Admission, Guard, RequestLog
from .openapi import describe
from .routes import ROUTERS
from .service import Service
from .tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def create_app(
    engine: Engine,
    config: ServerConfig = ServerConfig(),  # noqa: B008 - frozen
    *,
    traces: TracerProvider | None = None,
) -> FastAPI:
    """The app.

    Args:
        engine: generates; whoever made it closes it.
        config: names, keys and limits.
        traces: makes a span a request, of OpenTelemetry; whoever made it shuts it down.

    Raises:
        ArtifactError: the engine has no tokenizer.
    """
    service = Service(engine, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="optpipe",
        version=metadata.version("optpipe"),
        description="The OpenAI API over an optpipe engine. Fields that are not declared are refused.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    # The last one added is the outermost.
    app.add_middleware(Admission, most=config.max_requests, body_bytes=config.max_body_bytes)
    app.add_middleware(Guard, config=config)
    if traces is not None:
        app.add_middleware(Tracing, provider=traces, model=config.model_name)
    app.add_middleware(RequestLog, metrics=service.metrics)
    page: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not page:
            page.update(describe(app, config))
        return page

    app.openapi = openapi  # type: ignore[method-assign]
    return app
