"""The digests that servers send: each is read, computed over the bytes, and must hold."""

import base64
import hashlib
import zlib

import anycrc
import google_crc32c
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from downloader.digests import Checker, md5_hint, promises

BODY = b"RIFF and the rest of it"
OTHER = b"RIFF and something else"


def of(body: bytes, algorithm: str) -> str:
    """Return the digest of a body as it stands in a header."""
    if algorithm == "crc32":
        return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    if algorithm == "crc32c":
        return base64.b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()
    if algorithm == "crc64nvme":
        return base64.b64encode(anycrc.Model("CRC64-NVME").calc(body).to_bytes(8, "big")).decode()
    return base64.b64encode(hashlib.new(algorithm, body).digest()).decode()


def headers(**named: str) -> CIMultiDictProxy[str]:
    """Return headers; an underscore stands for a hyphen."""
    return CIMultiDictProxy(CIMultiDict({name.replace("_", "-"): value for name, value in named.items()}))


PROMISES = [
    ({"Repr_Digest": f"sha-256=:{of(BODY, 'sha256')}:"}, ("repr-digest sha-256",)),
    ({"Repr_Digest": f"unixsum=:AAAA:, sha-512=:{of(BODY, 'sha512')}:;q=1"}, ("repr-digest sha-512",)),
    ({"Content_Digest": f"sha-256=:{of(BODY, 'sha256')}:"}, ("content-digest sha-256",)),
    ({"Digest": f"SHA-256={of(BODY, 'sha256')},MD5={of(BODY, 'md5')}"}, ("digest sha-256", "digest md5")),
    ({"Digest": f"sha={of(BODY, 'sha1')}"}, ("digest sha-1",)),
    ({"Content_MD5": of(BODY, "md5")}, ("content-md5 md5",)),
    (
        {"x_goog_hash": f"crc32c={of(BODY, 'crc32c')},md5={of(BODY, 'md5')}"},
        ("x-goog-hash crc32c", "x-goog-hash md5"),
    ),
    ({"x_amz_checksum_crc32": of(BODY, "crc32")}, ("x-amz-checksum-crc32 crc32",)),
    ({"x_amz_checksum_crc32c": of(BODY, "crc32c")}, ("x-amz-checksum-crc32c crc32c",)),
    ({"x_amz_checksum_crc64nvme": of(BODY, "crc64nvme")}, ("x-amz-checksum-crc64nvme crc64nvme",)),
    ({"x_amz_checksum_sha1": of(BODY, "sha1")}, ("x-amz-checksum-sha1 sha-1",)),
    ({"x_amz_checksum_sha256": of(BODY, "sha256")}, ("x-amz-checksum-sha256 sha-256",)),
]


@pytest.mark.parametrize(("sent", "names"), PROMISES)
def test_what_a_server_promises_must_hold(sent: dict[str, str], names: tuple[str, ...]) -> None:
    """Each form is checked, however the bytes were cut; of other bytes none of them holds."""
    promised = promises(headers(**sent), part=False)
    assert checked(Checker(promised), BODY) == (names, ())
    assert checked(Checker(promised), OTHER) == ((), names)


@pytest.mark.parametrize(
    "sent",
    [
        {"Repr_Digest": "sha-256=:not base64:"},
        {"Repr_Digest": "sha-256=:AAAA:"},
        {"x_amz_checksum_crc32": "AAAAAA==-3", "x_amz_checksum_type": "COMPOSITE"},
        {"x_amz_checksum_crc64nvme": "AAAAAAAAAAA=-3", "x_amz_checksum_type": "COMPOSITE"},
        {"x_amz_checksum_crc64nvme": "AAAAAA=="},
        {"x_amz_checksum_crc128": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"x_goog_hash": f"md5={of(OTHER, 'md5')}", "x_goog_stored_content_encoding": "gzip"},
        {"Digest": "sha-256"},
        {},
    ],
)
def test_what_cannot_be_held_against_the_file_promises_nothing(sent: dict[str, str]) -> None:
    """A digest of parts, of what is stored encoded, of an unknown kind, or garbage loses no file."""
    assert checked(Checker(promises(headers(**sent), part=False)), BODY) == ((), ())


def test_the_default_checksum_of_s3_is_that_of_the_catalogue() -> None:
    """CRC-64/NVME is the one that is published (its check value), not another CRC of 64 bits, in pieces or at once."""
    value = base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
    promised = promises(headers(x_amz_checksum_crc64nvme=value, x_amz_checksum_type="FULL_OBJECT"), part=False)
    for pieces in ([b"123456789"], [b"1", b"", b"2345", b"6789"]):
        checker = Checker(promised)
        for piece in pieces:
            checker.update(piece)
        assert checker.finish() == (("x-amz-checksum-crc64nvme crc64nvme",), ())


def test_a_digest_of_a_part_says_nothing_of_the_file() -> None:
    """With the rest of a file only what is told of the whole counts."""
    sent = headers(
        Content_MD5=of(OTHER, "md5"),
        Content_Digest=f"sha-256=:{of(OTHER, 'sha256')}:",
        x_amz_checksum_crc32=of(OTHER, "crc32"),
        Repr_Digest=f"sha-256=:{of(BODY, 'sha256')}:",
    )
    assert checked(Checker(promises(sent, part=True)), BODY) == (("repr-digest sha-256",), ())


@pytest.mark.parametrize(
    ("etag", "matched"),
    [
        (f'"{hashlib.md5(BODY).hexdigest()}"', ("etag md5",)),
        (f'"{hashlib.md5(OTHER).hexdigest()}"', ()),
        (f'W/"{hashlib.md5(BODY).hexdigest()}"', ()),
        (f'"{hashlib.md5(BODY).hexdigest()}-2"', ()),
        ("", ()),
    ],
)
def test_an_etag_is_only_a_hint(etag: str, matched: tuple[str, ...]) -> None:
    """One that matches is worth telling; one that does not says nothing, and refuses nothing."""
    assert checked(Checker((), md5_hint(headers(ETag=etag))), BODY) == (matched, ())


def checked(checker: Checker, body: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Feed a body in two pieces, and return what matched and what did not."""
    checker.update(body[:7])
    checker.update(body[7:])
    return checker.finish()
