"""Errors as OpenAI's API shapes them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from optpipe.errors import CapacityError, OptpipeError, RequestError, nearest

RETRY_AFTER = "1"  # seconds; a step is far shorter, so a place is likely free by then
LONGEST_PATH = 200  # that an error repeats

# Status → the type that clients branch on, as OpenAI names them.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A refusal or failure that the client is told about.

    Args:
        status: of HTTP.
        message: a whole sentence.
        param: the field of the request that is wrong.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request is wrong."""
    return ApiError(400, message, param=param, code=code)


def too_busy(message: str) -> ApiError:
    """There is no room now, and will be soon."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": RETRY_AFTER})


def from_optpipe(error: OptpipeError) -> ApiError:
    """An error of the engine, tokenizer or template as the client sees it. Only requests' errors are told."""
    hint = None if (error.hint or "").startswith("--") else error.hint  # a flag is no help to a client
    message = error.message + (f" ({hint})" if hint else "")
    if isinstance(error, RequestError):
        return invalid(message, param=_field_of(message))
    if isinstance(error, CapacityError):
        return too_busy(message)
    return ApiError(500, "The server failed to answer; its log says why.")


def _field_of(message: str) -> str | None:
    """The field that a sentence begins with: ``top_p must be …``."""
    word = message.split(maxsplit=1)[0].strip("'`") if message else ""
    known = word.replace("_", "").isalnum() and word.islower() and ("_" in word or word in _PLAIN_FIELDS)
    return word if known else None


_PLAIN_FIELDS = frozenset(["n", "seed", "stop", "temperature", "logprobs", "prompt", "priority", "tools"])


def from_pydantic(problems: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> ApiError:
    """The first thing that a schema finds wrong.

    Args:
        problems: as ``ValidationError.errors()`` lists them.
        known: names of the fields at the top, for the nearest match of an unknown one.
    """
    first = problems[0]
    place = [str(part) for part in first["loc"] if not _is_tag(part)]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        hint = nearest(place[-1], known) if len(place) == 1 else None
        message = f"The request has a field '{param}' that this server does not know"
        return invalid(f"{message}; {hint}" if hint else f"{message}.", param, "unknown_field")
    if first["type"] == "missing":
        return invalid(f"The request lacks the field '{param}'.", param, "missing_field")
    said = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    if first["type"] == "json_invalid":
        return invalid(f"The body is not JSON: {said}.", code="invalid_json")
    if not place:
        return invalid(f"The body must be a JSON object: {said}.", code="invalid_body")
    return invalid(f"The field '{param}' is wrong: {said[0].lower() + said[1:]}.", param, "invalid_value")


def _is_tag(part: object) -> bool:
    """A name that pydantic puts in a place for the branch of a union that it took."""
    return isinstance(part, str) and (part.startswith("=") or "[" in part or part in ("str", "int"))


def add_handlers(app: FastAPI) -> None:
    """Answer every refusal in the one shape."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError), f"{error = }"
        return error.response()

    async def optpipe_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OptpipeError), f"{error = }"
        if not isinstance(error, RequestError | CapacityError):
            raise error
        return from_optpipe(error).response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException), f"{error = }"
        path = request.url.path
        path = path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "…"
        known = {
            404: f"There is no '{path}' here.",
            405: f"'{path}' does not take {request.method}.",
        }
        message = known.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def validation_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError), f"{error = }"
        return from_pydantic(error.errors()).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(OptpipeError, optpipe_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
