import asyncio
import re

import pytest

from service.errors import BodyTooLarge, Overloaded, RequestTimeout
from tests.service.gating import LIMITS, Client, answer, call, count, gate, read_all


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
            async with asyncio.timeout(1):  # `wait_for` may swallow the gate's cancellation
                pieces.append(await receive())
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
