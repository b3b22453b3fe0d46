"""Too many connections, too many callbacks at once: who gives way, who is told 429, and that no place is ever lost."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from ingress import connection, hall
from shared.errors import BrokerError, Reason
from tests.integration.ingress_server import (
    BODY,
    PATH,
    PATIENCE_S,
    TIMEOUT_S,
    Answer,
    Edge,
    answer_from,
    document,
    listening_in,
    refused_once,
    request,
    running,
)

MOST = 16
STRANGER = "/callbacks/apibox?token=wrong"
HALF_A_BODY = request(BODY)[:-5]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Start = Callable[..., Awaitable[Edge]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """A function that runs an ingress with these settings and room for few; it is ended afterwards, without a fault."""
    async with AsyncExitStack() as stack:
        with listening_in(monkeypatch) as lines:

            async def start(**settings: Any) -> Edge:
                defaults = {"ingress_max_connections": MOST, "ingress_max_in_flight": 2, "ingress_body_timeout_s": 5}
                return await stack.enter_async_context(running(lines, **(defaults | settings)))

            yield start
            assert not [line for line in lines if line["log_level"] in {"error", "critical"}]


class Confirming:
    """Holds every publish until it is let go."""

    def __init__(self, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go = asyncio.Event()
        publish = edge.publisher.publish

        async def held(*args: Any, **options: Any) -> None:
            await self.let_go.wait()
            await publish(*args, **options)

        monkeypatch.setattr(edge.publisher, "publish", held)


@asynccontextmanager
async def opened(edge: Edge, count: int, sent: bytes = b"") -> AsyncIterator[list[Streams]]:
    """Open connections that send this much and no more."""
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            reader, writer = await stack.enter_async_context(edge.connected())
            writer.write(sent)
            streams.append((reader, writer))
        yield streams


@asynccontextmanager
async def posting(edge: Edge, count: int) -> AsyncIterator[list[asyncio.Task[Answer]]]:
    """Post callbacks, each on its own connection, without waiting for the answers."""
    tasks = [asyncio.create_task(edge.post(document(task_id=f"t{number}"))) for number in range(count)]
    yield tasks
    await asyncio.wait(tasks, timeout=PATIENCE_S)


def measured(edge: Edge, name: str) -> float:
    """Return the value of a metric of the ingress."""
    value = edge.registry.get_sample_value(f"wavekeep_ingress_{name}")
    assert value is not None
    return value


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail when it does not in time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Tell whether the other side closes without a word."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


@pytest.mark.parametrize("sent", [b"", b"POST /callb", request(BODY, path=STRANGER)])
async def test_strangers_make_room_for_a_good_caller(start: Start, sent: bytes) -> None:
    """However many are silent, half-spoken or refused, whoever comes is let in, and the oldest of them is closed."""
    edge = await start()
    async with opened(edge, MOST, sent) as streams:
        await until(lambda: measured(edge, "connections") == MOST)
        assert measured(edge, "connections_displaced_total") == 0
        assert (await edge.post()).status == 200
        assert measured(edge, "connections_displaced_total") == 1
        if not sent:
            assert await closed(streams[0][0])
        async with opened(edge, MOST * 3, sent):
            assert (await edge.post()).status == 200
            await until(lambda: measured(edge, "connections_displaced_total") >= MOST * 3)
            assert measured(edge, "connections") <= MOST
    await until(lambda: measured(edge, "connections") == 0)
    assert len([line for line in edge.lines if line["event"] == "connections.crowded"]) == 1


async def test_a_callback_in_hand_is_never_displaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that came is answered, however many connections come after it."""
    edge = await start()
    confirming = Confirming(edge, monkeypatch)
    async with posting(edge, 1) as (answer,):
        await until(lambda: measured(edge, "callbacks_in_flight") == 1)
        async with opened(edge, 1, HALF_A_BODY) as ((reader, writer),):
            await until(lambda: measured(edge, "callbacks_in_flight") == 2)
            async with opened(edge, MOST * 3):
                await until(lambda: measured(edge, "connections_displaced_total") > MOST)
                confirming.let_go.set()
                assert (await answer).status == 200
                writer.write(BODY[-5:])
                assert (await answer_from(reader)).status == 200


async def test_a_kept_connection_outlasts_strangers(start: Start) -> None:
    """A connection that brought a callback is there for the next one, though a crowd passed by."""
    edge = await start()
    async with opened(edge, 1, request(BODY)) as ((reader, writer),):
        assert (await answer_from(reader)).status == 200
        async with opened(edge, MOST * 3):
            await until(lambda: measured(edge, "connections_displaced_total") > MOST)
            writer.write(request(BODY))
            assert (await answer_from(reader)).status == 200


async def test_a_crowd_at_work_admits_nobody_for_a_moment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every connection has a request in hand, one more is closed at once; none of them is."""
    edge = await start(ingress_max_in_flight=MOST)
    confirming = Confirming(edge, monkeypatch)
    async with posting(edge, MOST) as answers:
        await until(lambda: measured(edge, "callbacks_in_flight") == MOST)
        async with edge.connected() as (reader, _):
            assert await closed(reader)
        confirming.let_go.set()
        assert {(await answer).status for answer in answers} == {200}


async def test_shedding(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One callback too many is answered 429 at once, before its body came; those in hand are all kept."""
    edge = await start()
    confirming = Confirming(edge, monkeypatch)
    async with posting(edge, 2) as answers:
        await until(lambda: measured(edge, "callbacks_in_flight") == 2)
        async with asyncio.timeout(1):
            answer = await edge.send(request(b"", content_length="60000"))
        assert (answer.status, answer.refusal) == (429, "shedding")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
        refused_once(edge, "shedding")
        confirming.let_go.set()
        assert {(await answer).status for answer in answers} == {200}
    assert len(edge.publisher.published) == 2
    assert measured(edge, "callbacks_in_flight") == 0
    assert (await edge.post()).status == 200


async def test_strangers_take_no_place(start: Start) -> None:
    """Whoever has not the token is refused for that before anything is read, and is never in hand."""
    edge = await start()
    async with opened(edge, MOST - 1, request(BODY, path=STRANGER)[:-5]) as streams:
        assert {(await answer_from(reader)).status for reader, _ in streams} == {401}
        assert measured(edge, "callbacks_in_flight") == 0
        assert (await edge.post()).status == 200


async def test_slow_bodies_give_way(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that do not come fill every place for a moment only, not for their whole time."""
    monkeypatch.setattr(hall, "PATIENCE_S", TIMEOUT_S)
    edge = await start()
    async with opened(edge, 2, HALF_A_BODY) as streams:
        await until(lambda: measured(edge, "callbacks_in_flight") == 2)
        assert (await edge.post()).status == 429
        statuses = []
        async with asyncio.timeout(3):  # less than the whole time for a body
            while 200 not in statuses:
                await asyncio.sleep(0.05)
                statuses.append((await edge.post()).status)
            reader, _ = streams[0]
            answer = await answer_from(reader)
        assert set(statuses) <= {200, 429}
        assert (answer.status, answer.refusal) == (408, "too_slow")
        _, writer = streams[1]
        writer.write(BODY[-5:])  # nobody waited for this one's place
        assert (await answer_from(streams[1][0])).status == 200


async def test_no_place_is_ever_lost(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of a callback, its place and its connection are free again."""
    edge = await start(ingress_body_timeout_s=TIMEOUT_S)
    for _ in range(MOST):
        async with edge.connected() as (_, writer):
            writer.write(HALF_A_BODY)  # and leaves
    assert (await edge.post(b"[]")).status == 400
    assert (await edge.post(b" " * 70_000)).status == 413
    assert (await edge.post(content_encoding="gzip")).status == 415
    assert (await edge.send(HALF_A_BODY)).status == 408
    edge.publisher.error = BrokerError(Reason.BROKER_UNAVAILABLE, "away")
    assert (await edge.post()).status == 503
    edge.publisher.error = None
    confirming = Confirming(edge, monkeypatch)
    async with opened(edge, 2, request(BODY)):
        await until(lambda: measured(edge, "callbacks_in_flight") == 2)  # and leave unanswered
    confirming.let_go.set()
    await until(lambda: measured(edge, "callbacks_in_flight") == 0)
    await until(lambda: measured(edge, "connections") == 0)
    assert (await edge.post()).status == 200


async def test_pipelined_requests_do_not_keep_a_connection_at_work(start: Start) -> None:
    """Whoever sends the next request before the answer gets one answer, and has to connect again."""
    edge = await start()
    async with edge.connected() as (reader, writer):
        writer.write(request(BODY) * 3)
        assert (await answer_from(reader)).status == 200
        assert await reader.read() == b""
    assert len(edge.publisher.published) == 1


async def test_a_head_is_bounded_as_a_whole(start: Start) -> None:
    """Many headers that are short enough each are refused together, before they fill the memory."""
    edge = await start()
    header = b"X-%d: " + b"a" * 4_000 + b"\r\n"
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
    answer = await edge.send(head, *(header % number for number in range(50)))
    assert (answer.status, answer.refusal) == (400, "malformed")
    refused_once(edge, "malformed")


async def test_a_body_at_the_heels_of_its_head_is_no_head(start: Start) -> None:
    """A large body that comes before anybody looks at its head is taken, and not counted as one."""
    edge = await start()
    body = BODY[:-1] + b" " * 60_000 + b"}"

    def post() -> bytes:
        with socket.create_connection(("127.0.0.1", edge.port), PATIENCE_S) as client:
            client.sendall(request(b"", content_length=str(len(body))))
            client.sendall(body)
            return client.recv(12)

    for _ in range(100):
        assert await asyncio.to_thread(post) == b"HTTP/1.1 200"


@pytest.mark.parametrize("trickle", [False, True])
async def test_half_a_head_on_a_kept_connection(start: Start, trickle: bool) -> None:
    """A later head has no more time than the first one, from its first byte on."""
    edge = await start(ingress_body_timeout_s=TIMEOUT_S)
    async with edge.connected() as (reader, writer):
        writer.write(request(BODY))
        assert (await answer_from(reader)).status == 200
        writer.write(b"POST /callb")
        waiting = asyncio.create_task(answer_from(reader))
        async with asyncio.timeout(5):
            while not waiting.done():
                if trickle:
                    writer.write(b"X")
                await asyncio.wait({waiting}, timeout=TIMEOUT_S / 8)
        answer = await waiting
        assert (answer.status, answer.refusal) == (408, "too_slow")
        assert await closed(reader)


async def test_a_head_in_two_parts_on_a_kept_connection(start: Start) -> None:
    """A head that is whole in time is no slow one, nor is the silence that follows it."""
    edge = await start(ingress_body_timeout_s=TIMEOUT_S)
    async with edge.connected() as (reader, writer):
        for _ in range(2):
            whole = request(BODY)
            for part in (whole[:20], whole[20:40], whole[40:-5], whole[-5:]):
                writer.write(part)
                await asyncio.sleep(0.01)
            assert (await answer_from(reader)).status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S * 2):
                await reader.read(1)
        writer.write(request(BODY))
        assert (await answer_from(reader)).status == 200


async def test_a_kept_connection_that_sits_is_closed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without work ends within its bound, without a word and without a count."""
    monkeypatch.setattr(connection, "IDLE_S", TIMEOUT_S)
    edge = await start()
    async with edge.connected() as (reader, writer):
        writer.write(request(BODY))
        assert (await answer_from(reader)).status == 200
        assert await closed(reader)
    assert edge.counted() == 0


async def test_a_silent_connection_is_closed(start: Start) -> None:
    """A connection that never says anything ends with the time for a head, without a word and without a count."""
    edge = await start(ingress_body_timeout_s=TIMEOUT_S)
    async with edge.connected() as (reader, _):
        assert await closed(reader)
    assert edge.counted() == 0


async def test_a_client_that_reads_no_answer_is_closed(start: Start) -> None:
    """Whoever asks and asks without reading fills a buffer, not the memory, and does not stay for ever."""
    edge = await start(ingress_body_timeout_s=TIMEOUT_S)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", edge.port))

        async def ask() -> None:
            while True:
                await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), PATIENCE_S * 3)
    await until(lambda: measured(edge, "connections") == 0)
