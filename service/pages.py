"""Pages for people: files of `static/`, under headers that let nothing foreign run in them."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from service.parity import PHOTOGRAPHS

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
"""For every page: only this service's own scripts run, and they call nobody else. Browsers keep the
files but ask each time, by ETag, whether they changed: an upgrade shows at once."""


class PageFiles(StaticFiles):
    """Files of one folder, under the headers of pages."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file, or with 304 where the browser has it."""
        # Given whole: a range that is none would be refused in words that are not ours.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def add_pages(app: FastAPI, *, docs: bool) -> None:
    """Serve the playground under `/`, the API's description under `/docs`, and what they load."""
    files = PageFiles(directory=STATIC)

    def page(name: str, path: str) -> Route:
        async def answer(request: Request) -> Response:
            return await files.get_response(name, request.scope)

        return Route(path, answer, methods=["GET"])  # HEAD comes with it

    app.router.routes.append(page("index.html", "/"))
    if docs:
        app.router.routes.append(page("docs.html", "/docs"))
    app.mount("/static", files)
    app.mount("/photographs", PageFiles(directory=PHOTOGRAPHS[0].parent))
