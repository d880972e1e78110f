"""GET /v1/models: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Request

from ..openapi import errors
from ..schema.answers import ModelCard, ModelList
from ..service import Service, service_of

router = APIRouter()


@router.get("/v1/models", response_model=ModelList, responses=errors(401, 403, 431))
async def models(request: Request) -> ModelList:
    """The one model."""
    return ModelList(object="list", data=[_card(service_of(request))])


@router.get("/v1/models/{name:path}", response_model=ModelCard, responses=errors(401, 403, 404, 431))
async def model(request: Request, name: str) -> ModelCard:
    """One model by its name."""
    service = service_of(request)
    service.check_model(name)
    return _card(service)


def _card(service: Service) -> ModelCard:
    return ModelCard(
        id=service.config.model_name,
        object="model",
        created=service.created,
        owned_by="optpipe",
        max_model_len=service.engine.context_length,
    )
