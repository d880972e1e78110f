"""A span a request, for whoever collects traces with OpenTelemetry.

The span continues the trace that the client names in ``traceparent``. Names of attributes are OpenTelemetry's
for HTTP servers and for generative AI; prompts and answers are not among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optpipe.errors import OptpipeError

from .request_info import RequestInfo, info_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

QUIET = frozenset(["/health", "/metrics"])  # asked every few seconds, and never of interest


def export_to(endpoint: str) -> TracerProvider:
    """A provider that sends spans to a collector, by OTLP over HTTP.

    Args:
        endpoint: the collector's URL for traces, such as ``http://localhost:4318/v1/traces``.

    Raises:
        OptpipeError: the packages are missing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OptpipeError(
            f"Tracing needs the package '{error.name}'.", hint="pip install 'optpipe[tracing]' brings it"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "optpipe"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Makes the spans. Stands inside the request log, whose facts it tells."""

    def __init__(self, app: ASGIApp, provider: TracerProvider, model: str) -> None:
        self.app, self._model = app, model
        self._tracer = provider.get_tracer("optpipe.server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request inside a span of its own."""
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers, info, status = Headers(scope=scope), info_of(scope), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        parent = TraceContextTextMapPropagator().extract({"traceparent": headers.get("traceparent", "")})
        name = f"{scope['method']} {scope['path'][:100]}"
        with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
            span.set_attributes({"http.request.method": scope["method"], "url.path": scope["path"][:200]})
            try:
                await self.app(scope, receive, sending)
            finally:
                span.set_attributes(_facts(info, info.failed or status, self._model))


def _facts(info: RequestInfo, status: int, model: str) -> dict[str, Any]:
    found: dict[str, Any] = {"http.response.status_code": status, "optpipe.request_id": info.id}
    usage = info.facts.get("usage")
    if usage is not None:
        found |= {
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
        }
    return found
