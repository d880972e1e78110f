"""GET /: a page for trying a prompt and watching the server work."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from ..openapi import errors

router = APIRouter()


@router.get("/", response_class=HTMLResponse, responses=errors(401, 403, 431))
async def page() -> HTMLResponse:
    """The page, complete in itself: it loads nothing, and talks to this server only."""
    source = _source()
    return HTMLResponse(
        source, headers={"Content-Security-Policy": _policy(source), "X-Content-Type-Options": "nosniff"}
    )


@cache
def _source() -> str:
    return (resources.files(__package__) / "page.html").read_text(encoding="utf-8")


@cache
def _policy(source: str) -> str:
    """Allow the page's own script and style by their hashes, and nothing else."""
    script, style = (_hash(source, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(source: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", source, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
