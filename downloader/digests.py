"""The digests that a server sends along, held against the bytes that arrived.

Responsible for: reading every header that promises a digest of the file, and comparing. Pure. It must not decide what
our own digest is worth: `sha256` is always computed here too.

Sources: RFC 9530 (Repr-Digest, Content-Digest), RFC 3230 (Digest), RFC 1864 (Content-MD5), and the documentation of the
object stores for `x-goog-hash` and `x-amz-checksum-*`. An ETag that looks like an MD5 often is one, and often is not:
a match is worth noting, a difference says nothing.
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import anycrc
import google_crc32c
from multidict import CIMultiDictProxy

_MEMBER: Final = re.compile(r"\s*([A-Za-z0-9*_.-]+)=:([A-Za-z0-9+/=\s]*):\s*(?:;[^,]*)?")
"""A member of a structured field whose value is a byte sequence (RFC 8941)."""
_MD5_ETAG: Final = re.compile(r'"([0-9a-fA-F]{32})"')


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc:
    """A checksum behind the face of a hash.

    Args:
        extend: from the checksum of what went by, and the bytes that follow, to that of both; 0 is that of nothing.
    """

    def __init__(self, extend: Callable[[int, bytes], int], *, size_bytes: int = 4) -> None:
        self._extend = extend
        self._size_bytes = size_bytes
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._extend(self._value, data)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size_bytes, "big")


def _crc64nvme() -> _Hash:
    model = anycrc.Model("CRC64-NVME")
    return _Crc(lambda value, data: model.calc(data, value), size_bytes=8)


_ALGORITHMS: Final[Mapping[str, Callable[[], _Hash]]] = MappingProxyType(
    {
        "md5": lambda: hashlib.md5(usedforsecurity=False),
        "sha-1": lambda: hashlib.sha1(usedforsecurity=False),
        "sha-256": hashlib.sha256,
        "sha-512": hashlib.sha512,
        "crc32": lambda: _Crc(lambda value, data: zlib.crc32(data, value)),
        "crc32c": lambda: _Crc(google_crc32c.extend),
        "crc64nvme": _crc64nvme,
    }
)
_SPELLINGS: Final = {"sha": "sha-1", "sha1": "sha-1", "sha256": "sha-256", "sha512": "sha-512"}


MD5_HINT: Final = "etag md5"


@dataclass(frozen=True, slots=True)
class Promise:
    """A digest that a server sent.

    Attributes:
        header: its name, lower case.
        algorithm: one of those that can be computed here.
        value: of the whole file.
    """

    header: str
    algorithm: str
    value: bytes

    @property
    def name(self) -> str:
        """What stands in the evidence, for example `repr-digest sha-256`."""
        return f"{self.header} {self.algorithm}"


def promises(headers: CIMultiDictProxy[str], *, part: bool) -> tuple[Promise, ...]:
    """Return the digests of the whole file that an answer promises; what cannot be computed or read is left out.

    Args:
        headers: of an answer whose body is not encoded.
        part: only a part of the file follows: what tells the digest of this body then says nothing about the file.
    """
    found = [*_structured(headers, "Repr-Digest")]
    found += [("digest", *each) for each in _listed(headers, "Digest")]
    if not part:
        found += _structured(headers, "Content-Digest")
        found += [("content-md5", "md5", value) for value in headers.getall("Content-MD5", ())]
    if headers.get("x-goog-stored-content-encoding", "identity").lower() == "identity":  # else it is of what is stored
        found += [("x-goog-hash", *each) for each in _listed(headers, "x-goog-hash")]
    for header in headers:
        name = header.lower()
        if name.startswith("x-amz-checksum-") and name != "x-amz-checksum-type" and not part:
            found.append((name, name.removeprefix("x-amz-checksum-"), headers[header]))
    return tuple(dict.fromkeys(promise for each in found if (promise := _promise(*each)) is not None))


def md5_hint(headers: CIMultiDictProxy[str]) -> bytes | None:
    """Return what may be the MD5 of the file: a strong ETag of 32 hex digits."""
    match = _MD5_ETAG.fullmatch(headers.get("ETag", "").strip())
    return bytes.fromhex(match[1]) if match else None


class Checker:
    """Computes what was promised while the bytes go by.

    Args:
        promised: that must hold.
        hint: that may.
    """

    def __init__(self, promised: tuple[Promise, ...] = (), hint: bytes | None = None) -> None:
        self._promised = promised
        self._hint = hint
        wanted = {promise.algorithm for promise in promised} | ({"md5"} if hint else set())
        self._hashes = {algorithm: _ALGORITHMS[algorithm]() for algorithm in sorted(wanted)}

    def update(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        for running in self._hashes.values():
            running.update(block)

    def finish(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of what matched, and of what did not: then the bytes are not those that were promised."""
        digests = {algorithm: running.digest() for algorithm, running in self._hashes.items()}
        matched = [promise.name for promise in self._promised if digests[promise.algorithm] == promise.value]
        differs = [promise.name for promise in self._promised if digests[promise.algorithm] != promise.value]
        if self._hint is not None and digests["md5"] == self._hint:
            matched.append(MD5_HINT)
        return tuple(matched), tuple(differs)


def _structured(headers: CIMultiDictProxy[str], name: str) -> Iterator[tuple[str, str, str]]:
    for algorithm, value in _MEMBER.findall(",".join(headers.getall(name, ()))):
        yield name.lower(), algorithm, value


def _listed(headers: CIMultiDictProxy[str], name: str) -> Iterator[tuple[str, str]]:
    """Read `algorithm=value, algorithm=value`; a value may end in `=` itself."""
    for member in ",".join(headers.getall(name, ())).split(","):
        algorithm, told, value = member.strip().partition("=")
        if told:
            yield algorithm, value


def _promise(header: str, algorithm: str, value: str) -> Promise | None:
    algorithm = _SPELLINGS.get(algorithm.lower(), algorithm.lower())
    if algorithm not in _ALGORITHMS:
        return None
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error:  # such as the composite checksums of uploads in parts, `…-12`: of no file
        return None
    return Promise(header, algorithm, digest) if len(digest) == len(_ALGORITHMS[algorithm]().digest()) else None
