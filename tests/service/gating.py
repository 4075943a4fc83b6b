"""A gate, and clients of its that do what a test wants."""

import asyncio

from starlette.datastructures import Headers

from service.gate import Gate
from service.metrics import Metrics
from service.passage import BYTES_PER_NUMBER, FREE_NUMBERS, Limits

LIMITS = Limits(
    max_bytes=100,
    max_bytes_held=250,
    timeout_s=20.0,
    max_calls=3,
    max_answer_numbers=2 * FREE_NUMBERS,
    max_answers_bytes=3 * FREE_NUMBERS * BYTES_PER_NUMBER,
)


class Client:
    """One call: gives the body in chunks, then waits to leave; keeps what is sent."""

    def __init__(self, *chunks: bytes, headers=(), path="/embed") -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }
        self.chunks = list(chunks)
        self.leaves = asyncio.Event()
        self.sent: list[dict] = []

    async def receive(self):
        if self.chunks:
            return {
                "type": "http.request",
                "body": self.chunks.pop(0),
                "more_body": bool(self.chunks),
            }
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> Headers:
        return Headers(raw=self.sent[0]["headers"])


async def read_all(receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def answer(send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"done"})


async def echo(scope, receive, send) -> None:
    scope["state"]["body"] = await read_all(receive)
    await answer(send)


def gate(app=echo, limits=LIMITS) -> Gate:
    return Gate(app, limits=limits, metrics=Metrics())


def count(gate: Gate, path: str, status: str) -> float | None:
    return gate._metrics.registry.get_sample_value(
        "esvit_requests_total", {"path": path, "status": status}
    )


def call(gate: Gate, *chunks: bytes, **options) -> Client:
    async def main():
        client = Client(*chunks, **options)
        await gate(client.scope, client.receive, client.send)
        return client

    return asyncio.run(main())
