"""What may come besides requests: halves, trickles, garbage and tricks. Nothing hangs, nothing is a fault."""

import asyncio

import pytest

from tests.integration.ingress_server import (
    BODY,
    CHUNKED,
    PATH,
    TIMEOUT_S,
    TOKEN,
    Edge,
    answer_from,
    chunks,
    document,
    refused_once,
    request,
)

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


@pytest.mark.parametrize(
    "sent",
    [
        request(BODY, content_length="x"),
        request(BODY, content_length="-1"),
        request(BODY, content_length="+57"),
        request(BODY, content_length="5_7"),
        request(BODY, content_length="57, 57"),
        request(BODY, content_length="9" * 50),
        request(chunks(BODY), transfer_encoding="chunked"),
        request(chunks(BODY), content_length="", transfer_encoding="gzip, chunked, identity"),
        request(chunks(BODY), content_length="", transfer_encoding="xchunked"),
        request(chunks(BODY), content_length="", transfer_encoding="chunked, chunked"),
        HEAD + b"Content-Length: 57\r\nContent-Length: 5\r\n\r\n" + BODY,
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + chunks(BODY),
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunks(BODY),
        HEAD + b"X-\xff: 1\r\n\r\n",
        HEAD + b"X: a\0b\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b" folded\r\n\r\n",
        HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % n for n in range(1_000)) + b"\r\n",
        b"POST " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST " + PATH.encode() + b"\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/9.9\r\n\r\n",
        b"POST " + PATH.encode() + b" extra HTTP/1.1\r\n\r\n",
        b"POST " + PATH.encode() + b"\r\n\r\n",
        b"P\xd6ST " + PATH.encode() + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"token=" + TOKEN.encode() + b"\r\n\r\n",
        b"POST http://[::1/callbacks/kie?token=" + TOKEN.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST http://x:port/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        request(BODY, path="*"),
    ],
)
async def test_hostile_requests(edge: Edge, sent: bytes) -> None:
    """What the parser itself refuses, or should, is a problem document of the 4xx, told once."""
    answer = await edge.send(sent)
    assert 400 <= answer.status < 500
    assert answer.problem["title"]
    assert TOKEN.encode() not in answer.body
    assert edge.publisher.published == []
    assert edge.counted() == len([line for line in edge.lines if line["event"] == "callback.refused"]) == 1


@pytest.mark.parametrize(
    "start", [request(BODY)[:-5], request(chunks(BODY)[:-5], **CHUNKED), request(b"", **CHUNKED) + b"5"]
)
async def test_half_a_body(edge: Edge, start: bytes) -> None:
    """A body that does not end is not awaited for long."""
    answer = await edge.send(start)
    assert (answer.status, answer.refusal) == (408, "too_slow")
    refused_once(edge, "too_slow")


async def test_one_byte_at_a_time(edge: Edge) -> None:
    """A body that trickles is bounded as a whole, not from byte to byte."""
    async with edge.connected() as (reader, writer):
        writer.write(request(b"", content_length="1000"))
        waiting = asyncio.create_task(answer_from(reader))
        sent = 0
        while not waiting.done():
            writer.write(b" ")
            sent += 1
            await asyncio.wait({waiting}, timeout=TIMEOUT_S / 8)
        answer = await waiting
    assert (answer.status, answer.refusal) == (408, "too_slow")
    assert sent < 100
    refused_once(edge, "too_slow")


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("start", [b"P", b"POST /callb", HEAD, HEAD + b"Content-Le", b"\r\n"])
async def test_half_a_head(edge: Edge, start: bytes, trickle: bool) -> None:
    """A head that does not end is not awaited for long either, and is refused in the same way."""
    async with edge.connected() as (reader, writer):
        writer.write(start)
        waiting = asyncio.create_task(answer_from(reader))
        while not waiting.done():
            if trickle:
                writer.write(b"X")
            await asyncio.wait({waiting}, timeout=TIMEOUT_S / 8)
        answer = await waiting
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    # letters that trickle onto an empty line are no method
    assert (answer.status, answer.refusal) in {(408, "too_slow"), (400, "malformed")}
    assert edge.publisher.published == []
    assert edge.counted() == 1


@pytest.mark.parametrize("sent", [request(BODY)[:-5], request(chunks(BODY)[:-5], **CHUNKED), HEAD, b""])
async def test_senders_that_go_away(edge: Edge, sent: bytes) -> None:
    """A sender that leaves in the middle leaves nothing behind."""
    async with edge.connected() as (_, writer):
        writer.write(sent)
        await writer.drain()
    assert (await edge.post()).status == 200
    assert len(edge.publisher.published) == 1


async def test_idle_connections_hold_nobody_up(edge: Edge) -> None:
    """Many connections that say nothing leave the others their service, and are told nothing."""
    async with asyncio.timeout(10):
        idle = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(200)]
        assert (await edge.post()).status == 200
        for _, writer in idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in idle))
    assert edge.counted() == 0


async def test_expecting_to_continue(edge: Edge) -> None:
    """A sender that asks before it sends its body is told to go on."""
    async with edge.connected() as (reader, writer):
        writer.write(request(b"", expect="100-continue", content_length=str(len(BODY))))
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(BODY)
        assert (await answer_from(reader)).status == 200


async def test_expecting_something_else(edge: Edge) -> None:
    """What aiohttp refuses before our own code is a problem document too."""
    answer = await edge.post(expect="the-unexpected")
    assert (answer.status, answer.refusal) == (400, "malformed")
    refused_once(edge, "malformed")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
async def test_offers_to_upgrade_are_declined(edge: Edge, upgrade: str) -> None:
    """Whoever offers another protocol is answered in this one, with the body read as such."""
    answer = await edge.post(connection="upgrade", upgrade=upgrade)
    assert answer.status == 200
    assert edge.publisher.published[0].event.subject == "apibox/t1"


async def test_pipelined(edge: Edge) -> None:
    """Of requests sent at once on one connection the first is answered, and none of the others is taken in silence."""
    async with edge.connected() as (reader, writer):
        writer.write(request(document(task_id="a")) + request(b"[]") + request(document(task_id="b")))
        answer = await answer_from(reader)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert [published.event.subject for published in edge.publisher.published] == ["apibox/a"]


async def test_nothing_is_smuggled_behind_a_refusal(edge: Edge) -> None:
    """The unread rest of a refused body is never taken for a request of its own."""
    inner = request()
    outer = request(inner, path="/callbacks/apibox?token=wrong", content_length=str(len(inner) + 1))
    async with edge.connected() as (reader, writer):
        writer.write(outer)
        assert (await answer_from(reader)).status == 401
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert edge.publisher.published == []


async def test_connections_are_kept(edge: Edge) -> None:
    """A connection serves one callback after another, also after a refusal that was read whole."""
    async with edge.connected() as (reader, writer):
        for body, status in ((BODY, 200), (b"[]", 400), (BODY, 200)):
            writer.write(request(body))
            assert (await answer_from(reader)).status == status
