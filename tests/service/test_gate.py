import asyncio
import gzip
import re

import pytest
from starlette.datastructures import Headers

from service.errors import AnswerTooLarge, BodyTooLarge, Overloaded, RequestTimeout
from service.gate import Gate
from service.metrics import Metrics
from service.passage import BYTES_PER_NUMBER, FREE_NUMBERS, PIECE_BYTES, Limits

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


def test_a_call_passes_through():
    client = call(gate(), b"abc", b"de")
    assert client.scope["state"]["body"] == b"abcde"
    assert client.headers["a"] == "b"
    assert client.sent[1]["body"] == b"done"


@pytest.mark.parametrize("chunks", [[100], [99, 1], [1] * 100, [50, 50, 0]])
def test_a_body_of_exactly_the_limit_passes(chunks):
    client = call(gate(), *(b"x" * size for size in chunks))
    assert len(client.scope["state"]["body"]) == 100


@pytest.mark.parametrize("chunks", [[101], [100, 1], [1] * 101])
def test_a_body_of_one_byte_more_is_refused_also_without_a_declared_length(chunks):
    with pytest.raises(BodyTooLarge, match="more than 100 bytes") as caught:
        call(gate(), *(b"x" * size for size in chunks))
    assert (caught.value.status, caught.value.limit) == (413, 100)


def test_a_declared_length_over_the_limit_is_refused_unread():
    client = Client(b"x", headers=[("content-length", "101")])
    with pytest.raises(BodyTooLarge):
        asyncio.run(gate()(client.scope, client.receive, client.send))
    assert client.chunks == [b"x"]


@pytest.mark.parametrize("declared", ["100", "0", "nonsense", "-5"])
def test_any_other_declared_length_is_not_believed(declared):
    call(gate(), b"x" * 100, headers=[("content-length", declared)])
    with pytest.raises(BodyTooLarge):
        call(gate(), b"x" * 101, headers=[("content-length", declared)])


def test_all_bodies_together_are_bounded_and_let_go_of():
    async def main():
        may_answer = asyncio.Event()

        async def slow(scope, receive, send):
            await read_all(receive)
            await may_answer.wait()
            await answer(send)

        door = gate(slow)
        clients = [Client(b"x" * 100) for _ in range(3)]
        tasks = [
            asyncio.create_task(door(client.scope, client.receive, client.send))
            for client in clients[:2]
        ]
        while any(client.chunks for client in clients[:2]):
            await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await door(clients[2].scope, clients[2].receive, clients[2].send)
        may_answer.set()
        await asyncio.gather(*tasks)
        fourth = Client(b"x" * 100)
        await door(fourth.scope, fourth.receive, fourth.send)
        return caught.value, fourth

    error, fourth = asyncio.run(main())
    assert (error.status, error.limit) == (429, 250)
    assert fourth.sent[0]["status"] == 200


def test_a_body_that_does_not_arrive_in_time_is_refused():
    async def main():
        client = Client()  # declares nothing, sends nothing, does not leave
        await gate(limits=LIMITS._replace(timeout_s=0.01))(
            client.scope, client.receive, client.send
        )

    with pytest.raises(RequestTimeout, match=r"the body took over 0\.01 s") as caught:
        asyncio.run(main())
    assert caught.value.status == 408


def test_the_time_is_for_the_whole_body_not_for_each_piece():
    async def main():
        client = Client(*[b"x"] * 90)
        pieces, receive = [], client.receive

        async def trickle():
            pieces.append(await asyncio.wait_for(receive(), 1))
            await asyncio.sleep(0.002)  # what is tested is time that passes
            return pieces[-1]

        with pytest.raises(RequestTimeout):
            await gate(limits=LIMITS._replace(timeout_s=0.03))(client.scope, trickle, client.send)
        return len(pieces)

    assert 0 < asyncio.run(main()) < 90


def test_the_answer_carries_the_clients_request_id():
    client = call(gate(), b"", headers=[("x-request-id", "Abc_1-2")])
    assert client.headers["x-request-id"] == "Abc_1-2"
    assert client.scope["state"]["request_id"] == "Abc_1-2"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\nb", "ä", "<script>", "../.."])
def test_a_request_id_that_is_none_is_replaced(given):
    client = call(gate(), b"", headers=[("x-request-id", given)])
    assert re.fullmatch(r"[0-9a-f]{32}", client.headers["x-request-id"])


def test_request_ids_differ():
    door = gate()
    assert len({call(door, b"").headers["x-request-id"] for _ in range(20)}) == 20


def test_a_call_is_cancelled_when_its_client_leaves():
    async def main():
        was_cancelled, has_body = asyncio.Event(), asyncio.Event()

        async def endless(scope, receive, send):
            await read_all(receive)
            has_body.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cancelled.set()
                raise

        door, client = gate(endless), Client(b"abc")
        task = asyncio.create_task(door(client.scope, client.receive, client.send))
        await has_body.wait()
        client.leaves.set()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert task in done
        await task  # ended without an error
        assert was_cancelled.is_set()
        return door

    door = asyncio.run(main())
    assert count(door, "other", "499") == 1
    assert door._held.body_bytes == 0


def test_a_client_that_leaves_before_its_body_is_whole_is_counted():
    async def main():
        client, door = Client(), gate()
        client.leaves.set()
        await door(client.scope, client.receive, client.send)
        return door

    assert count(asyncio.run(main()), "other", "499") == 1


def test_a_client_that_leaves_within_a_compressed_body_is_counted_and_let_go_of():
    async def main():
        half = gzip.compress(bytes(50))[:-10]
        client, door = Client(half, headers=[("content-encoding", "gzip")]), gate(hears)
        receive = client.receive

        async def more():
            return {**await receive(), "more_body": True}

        client.leaves.set()
        await door(client.scope, more, client.send)
        return door

    async def hears(scope, receive, send):
        while (await receive())["type"] == "http.request":
            pass

    door = asyncio.run(main())
    assert count(door, "other", "499") == 1
    assert door._held.body_bytes == 0


def test_a_cancellation_from_elsewhere_is_passed_on():
    async def main():
        async def endless(scope, receive, send):
            await asyncio.Event().wait()

        client = Client(b"abc")
        task = asyncio.create_task(gate(endless)(client.scope, client.receive, client.send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_client_that_leaves_after_its_answer_is_not_cancelled():
    async def main():
        client, door = Client(b"abc"), gate()
        await door(client.scope, client.receive, client.send)
        client.leaves.set()
        return door

    assert count(asyncio.run(main()), "other", "200") == 1


def test_who_listens_for_the_client_until_it_leaves_answered_all_the_same():
    async def listens(scope, receive, send):  # as Starlette's answers with files do
        await answer(send)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main():
        client, door = Client(b""), gate(listens)
        client.leaves.set()
        await door(client.scope, client.receive, client.send)
        return door

    assert count(asyncio.run(main()), "other", "200") == 1


def test_paths_of_clients_make_no_series_of_their_own():
    door = gate()
    for path in ("/a", "/b", "/" + "c" * 5000):
        call(door, b"", path=path)
    assert count(door, "other", "200") == 3


def test_an_answered_call_is_logged_without_its_content(caplog):
    caplog.set_level("INFO", logger="service.access")
    call(gate(), b"secret", path="/secret", headers=[("x-request-id", "id7")])
    (record,) = caplog.records
    message = record.getMessage()
    assert re.fullmatch(r"POST other 200 [\d.]+ ms 6 bytes id7", message)


def test_what_is_no_http_call_passes_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send))

    asyncio.run(gate(app)({"type": "lifespan"}, 1, 2))
    assert seen == [({"type": "lifespan"}, 1, 2)]


LARGE = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"


def giving(num_numbers, body=LARGE):
    """Give an application that announces so many numbers and answers with a body."""

    async def app(scope, receive, send):
        await read_all(receive)
        scope["state"]["expect"](num_numbers)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


class SlowClient(Client):
    """Takes an answer's beginning, and the rest when it is told to."""

    def __init__(self, *chunks: bytes) -> None:
        super().__init__(*chunks)
        self.takes = asyncio.Event()

    async def send(self, message) -> None:
        if len(self.sent) == 2:
            await self.takes.wait()
        await super().send(message)


def test_a_large_answer_goes_out_whole_in_pieces():
    client = call(gate(giving(1)), b"")
    pieces = [message["body"] for message in client.sent[1:]]
    assert b"".join(pieces) == LARGE
    assert max(map(len, pieces)) == PIECE_BYTES
    assert [message["more_body"] for message in client.sent[1:]] == [True, True, True, False]


def test_an_answer_of_one_number_too_many_is_refused():
    most = LIMITS.max_answer_numbers
    assert call(gate(giving(most)), b"").sent[0]["status"] == 200
    with pytest.raises(
        AnswerTooLarge, match="would have 200,001 numbers; at most 200,000"
    ) as found:
        call(gate(giving(most + 1)), b"")
    assert (found.value.status, found.value.limit) == (413, most)


def test_answers_count_until_their_clients_have_taken_them():
    async def main():
        held = giving(2 * FREE_NUMBERS)
        door, slow = gate(held), SlowClient(b"x" * 90)
        task = asyncio.create_task(door(slow.scope, slow.receive, slow.send))
        while len(slow.sent) < 2:
            await asyncio.sleep(0)
        for _ in range(2 * LIMITS.max_calls):  # who only takes is no call under way any more
            small = Client(b"")
            await gate_with(door, giving(FREE_NUMBERS))(small.scope, small.receive, small.send)
            assert small.sent[0]["status"] == 200
        another = Client(b"")
        with pytest.raises(Overloaded, match="too many large answers") as caught:
            await door(another.scope, another.receive, another.send)
        assert caught.value.limit == LIMITS.max_answers_bytes
        assert door._held.body_bytes == 0
        slow.takes.set()
        await task
        last = Client(b"")
        await door(last.scope, last.receive, last.send)
        return door, slow, last

    door, slow, last = asyncio.run(main())
    assert b"".join(message["body"] for message in slow.sent[1:]) == LARGE
    assert last.sent[0]["status"] == 200
    assert (door._held.answer_bytes, door._held.num_calls) == (0, 0)


def gate_with(door, app):
    """Give a gate to another application that shares what all calls hold."""
    other = gate(app)
    other._held = door._held
    return other


def test_who_leaves_while_its_answer_is_sent_has_left():
    async def main():
        door, slow = gate(giving(2 * FREE_NUMBERS)), SlowClient(b"")
        task = asyncio.create_task(door(slow.scope, slow.receive, slow.send))
        while len(slow.sent) < 2:
            await asyncio.sleep(0)
        slow.leaves.set()
        await task
        return door

    door = asyncio.run(main())
    assert count(door, "other", "499") == 1
    assert door._held.answer_bytes == 0
