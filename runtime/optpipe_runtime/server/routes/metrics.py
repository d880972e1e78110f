"""GET /metrics: numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from ..openapi import errors
from ..service import service_of

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse, responses=errors(401, 403, 431))
async def metrics(request: Request) -> Response:
    """Everything, in Prometheus' text form."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
