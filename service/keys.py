"""API keys: an ASGI layer that asks for one. It is only there when keys are set."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Unauthorized

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/docs", "/openapi.json"})
"""Asked for by orchestrators and browsers, which have no key: they tell nothing of the model."""

OPEN_FOLDERS = ("/static/", "/photographs/", "/v2/health/")
"""What pages are made of, and the probes of another protocol."""

Refuse = Callable[[Scope, Receive, Send, Unauthorized], Awaitable[None]]


class KeyCheck:
    """Lets calls pass that bring a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], refuse: Refuse) -> None:
        """Wrap an application.

        Args:
            app: What is behind the door.
            keys: The keys, any of which opens it.
            refuse: Answers a call that brings none.
        """
        self._app = app
        # Of digests neither content nor length can be told from how long a comparison takes.
        self._digests = [_digest(key) for key in keys]
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one call pass, or not."""
        if scope["type"] != "http" or _is_open(scope) or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        await self._refuse(scope, receive, send, error)

    def _knows(self, headers: Headers) -> bool:
        """Tell whether one of the keys is there; all are compared, whichever matches."""
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _is_open(scope: Scope) -> bool:
    """Tell whether a path is for everybody, to be read."""
    path: str = scope["path"]
    is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
    return is_open and scope["method"] in ("GET", "HEAD")


def _digest(key: str) -> bytes:
    """Give a key's fingerprint."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
