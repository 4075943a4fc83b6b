"""The ASGI layer round the application: request ids, limits, departed clients, accounting.

Everything here must hold for every call, also for those that no route takes, and costs
microseconds: it is plain ASGI, not Starlette's middleware class.
"""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from service.metrics import Metrics
from service.passage import Held, Limits, Passage

logger = logging.getLogger("service.access")

CALL = "%(method)s %(path)s %(status)d %(ms).1f ms %(bytes)d bytes %(request_id)s"

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})

CLIENT_LEFT = 499
"""Status under which a call is counted whose client left before the answer."""


class Gate:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._metrics = metrics
        self._held = Held(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = Passage(self._held, scope, receive, send)
        state = scope.setdefault("state", {})
        state["request_id"], state["expect"] = passage.request_id, passage.expect
        started = time.perf_counter()
        try:
            await self._app(scope, passage.receive, passage.send)
            await passage.send_rest()
        except asyncio.CancelledError:
            if not passage.has_client_left:
                raise
        finally:
            passage.close()
            self._count(scope, passage, time.perf_counter() - started)

    def _count(self, scope: Scope, passage: Passage, seconds: float) -> None:
        """Count and log an answered call."""
        route = scope.get("route")
        path = getattr(route, "path", "other")  # a path of the client's would make endless series
        status = CLIENT_LEFT if passage.has_client_left else passage.status
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if logger.isEnabledFor(logging.INFO):
            call = {
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "path": path,
                "status": status,
                "ms": round(1e3 * seconds, 1),
                "bytes": passage.num_bytes,
                "request_id": passage.request_id,
            }
            logger.info(CALL, call, extra={"call": call})
