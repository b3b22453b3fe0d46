"""Every kind of body that may come: what can be a callback is taken, all else is a problem of the 4xx."""

import asyncio
import gzip
import zlib

import pytest

from tests.integration.ingress_server import (
    BODY,
    CHUNKED,
    PATH,
    Edge,
    answer_from,
    chunks,
    document,
    refused_once,
    request,
)

LIMIT = 64 * 1024
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


def padded(size: int) -> bytes:
    """Write a callback of exactly this many bytes."""
    return BODY[:-1] + b" " * (size - len(BODY)) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"not JSON",
        b"[]",
        b"[1, 2]",
        b"7",
        b"null",
        b"true",
        BODY.decode().encode("utf-16"),
        BODY.decode().encode("utf-16-le"),
        b"\xef\xbb\xbf" + BODY,
        b"\xff" * 10,
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"data": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"code": ' + b"1" * 5_000 + b"}",
        b'{"code": NaN, "taskId": "t1"}',
        b'{"code": -Infinity, "taskId": "t1"}',
        b'{"code": 501, "code": 200, "taskId": "t1"}',
        b'{"code": 501, "data": {"task_id": "t1", "task_id": "t2"}}',
        b'{"code": 501, "taskId": "t1", "msg": "\\ud800"}',
        b'{"code": 501, "taskId": "\\udfff"}',
        document(task_id="a\0b"),
        document(task_id="../../etc/passwd"),
        document(task_id=".."),
        document(task_id="a/b"),
        document(task_id="a\\b"),
        document(task_id="a\nb"),
        document(task_id="\x1b[31m"),
        document(task_id="\u0085"),
        document(task_id="x" * 10_000),
        document(task_id=int("9" * 4_000)),
        BODY[:-1],
        BODY + BODY,
    ],
)
async def test_malformed_bodies(edge: Edge, body: bytes) -> None:
    """A body that cannot be a callback is answered 400."""
    answer = await edge.post(body)
    assert (answer.status, answer.refusal) == (400, "malformed")
    refused_once(edge, "malformed")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, padded(LIMIT + 1)])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_too_large(edge: Edge, body: bytes, framing: str) -> None:
    """One byte over 64 KiB is too many, whether the length is told or not."""
    sent = request(body) if framing == "length" else request(chunks(body, 4_096), **CHUNKED)
    answer = await edge.send(sent)
    assert (answer.status, answer.refusal) == (413, "too_large")
    refused_once(edge, "too_large")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_exactly_64_kib(edge: Edge, framing: str) -> None:
    """64 KiB are taken."""
    body = padded(LIMIT)
    answer = await edge.send(request(body) if framing == "length" else request(chunks(body, 4_096), **CHUNKED))
    assert answer.status == 200


async def test_100_mb_are_not_awaited(edge: Edge) -> None:
    """A huge body is refused by its announced length, before it is sent, and its connection is closed."""
    async with edge.connected() as (reader, writer):
        writer.write(HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 1_000)
        answer = await answer_from(reader)
        assert (answer.status, answer.refusal) == (413, "too_large")
        assert answer.headers["connection"] == "close"
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    refused_once(edge, "too_large")


async def test_endless_chunks_are_not_awaited(edge: Edge) -> None:
    """A body without an announced length is refused as soon as it is too long."""
    async with edge.connected() as (reader, writer):
        writer.write(request(b"", **CHUNKED) + b"10001\r\n" + b" " * 0x10001 + b"\r\n")
        answer = await answer_from(reader)
    assert (answer.status, answer.refusal) == (413, "too_large")
    refused_once(edge, "too_large")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", gzip.compress(BODY), id="gzip"),
        pytest.param("gzip", gzip.compress(b"0" * 50_000_000), id="bomb"),
        pytest.param("deflate", zlib.compress(BODY), id="deflate"),
        pytest.param("br", b"\x0b\x02\x80{}\x03", id="br"),
        pytest.param("zstd", b"(\xb5/\xfd", id="zstd"),
        pytest.param("gzip", BODY, id="gzip-that-is-none"),
        pytest.param("GZIP, gzip", gzip.compress(gzip.compress(BODY)), id="twice"),
        pytest.param("identity", BODY, id="identity"),
        pytest.param("x", BODY, id="unknown"),
    ],
)
async def test_encoded_bodies(edge: Edge, encoding: str, body: bytes) -> None:
    """Nothing is unpacked: any Content-Encoding is answered 415."""
    answer = await edge.post(body, content_encoding=encoding)
    assert (answer.status, answer.refusal) == (415, "encoded")
    refused_once(edge, "encoded")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=\xff",
        "application/jsonp",
        "application",
        ";",
        "a/b/c",
        '"application/json',
    ],
)
async def test_wrong_types(edge: Edge, content_type: str) -> None:
    """Only JSON in UTF-8 is read."""
    answer = await edge.post(content_type=content_type)
    assert (answer.status, answer.refusal) == (415, "wrong_type")
    refused_once(edge, "wrong_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON;charset=UTF8", 'application/json; charset="utf-8"'],
)
async def test_right_types(edge: Edge, content_type: str) -> None:
    """JSON may say that it is in UTF-8, in any case."""
    assert (await edge.post(content_type=content_type)).status == 200


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_chunked(edge: Edge, size: int) -> None:
    """A good body is taken although it comes in chunks, without a length."""
    assert (await edge.send(request(chunks(BODY, size), **CHUNKED))).status == 200
    assert len(edge.publisher.published) == 1


async def test_no_length_is_an_empty_body(edge: Edge) -> None:
    """Without length and chunks there is no body, by RFC 9112, and an empty body is malformed."""
    answer = await edge.send(request(BODY, content_length="", connection="close"))
    assert (answer.status, answer.refusal) == (400, "malformed")


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n",
        b"5\r\n{}\r\n",
        b"ffffffffffffffffffff\r\n",
        b"2;" + b"x" * 100_000 + b"\r\n{}\r\n",
        b"2\n{}\n0\n\n",
    ],
)
async def test_broken_chunks(edge: Edge, body: bytes) -> None:
    """Chunks that cannot be read end in a 4xx."""
    answer = await edge.send(request(body, **CHUNKED))
    assert answer.status in {400, 408, 413}
    assert answer.problem["title"]
    assert edge.publisher.published == []


async def test_broken_chunks_after_the_answer(edge: Edge) -> None:
    """What still comes after a refusal is thrown away, whatever it is, and is nobody's alarm."""
    async with edge.connected() as (reader, writer):
        writer.write(request(b"", path="/callbacks/apibox", **CHUNKED))
        assert (await answer_from(reader)).status == 401
        writer.write(b"zz\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert (await edge.post()).status == 200
