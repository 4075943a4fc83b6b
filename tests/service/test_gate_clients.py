import asyncio
import gzip

import pytest

from service.errors import AnswerTooLarge, Overloaded
from service.passage import FREE_NUMBERS, PIECE_BYTES
from tests.service.gating import LIMITS, Client, answer, call, count, gate, read_all


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
