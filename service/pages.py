"""Pages for people: files of `static/`, under headers that let nothing foreign run in them."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

STATIC = Path(__file__).parent / "static"

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
"""For every page: only this service's own scripts run, and they call nobody else."""

docs_router = APIRouter(include_in_schema=False)


@docs_router.get("/docs")
async def docs() -> FileResponse:
    """Describe the API for people."""
    return page("docs.html")


def page(name: str) -> FileResponse:
    """Answer with a page of `static/`."""
    return FileResponse(STATIC / name, headers=PAGE_HEADERS)
