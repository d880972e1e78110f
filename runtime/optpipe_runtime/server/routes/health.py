"""GET /health: 200 when text is being made, or could be. The one route that needs no key."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..errors import ApiError
from ..openapi import errors
from ..schema.answers import HealthAnswer
from ..service import service_of

router = APIRouter()


@router.get("/health", response_model=HealthAnswer, responses=errors(403, 431, 503))
async def health(request: Request) -> HealthAnswer:
    """Whether generation works."""
    trouble = await service_of(request).prober.trouble()
    if trouble is not None:
        raise ApiError(503, trouble, code="unhealthy")
    return HealthAnswer(status="ok")
