"""A real S3 server on loopback, moto's, as a process of its own; and a proxy before it that misbehaves on demand.

Responsible for: starting and ending both, and for looking into a bucket past everything that is tested. It must not
import any service, nor assert anything.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from simulator.rabbitmq_local import free_ports

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 30.0
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/s3/aws4_request, Signature=none"}
"""The server asks for a signature and believes any."""
CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Bucket:
    """One bucket of a server: looked into without the library that is tested.

    Attributes:
        server: URL of the server itself.
        name: of the bucket.
    """

    server: str
    name: str

    @property
    def address(self) -> str:
        """What `WAVEKEEP_STORAGE_URL` is set to: a prefix in the bucket."""
        return f"s3://{self.name}/kept/here"

    def sizes(self) -> dict[str, int]:
        """Return the keys below the address, and their sizes in bytes."""
        found: dict[str, int] = {}
        token = ""
        while True:
            page = self._ask(f"?list-type=2&prefix=kept%2Fhere%2F{token}")
            for each in page.iterfind("{*}Contents"):
                found[each.findtext("{*}Key", "").removeprefix("kept/here/")] = int(each.findtext("{*}Size", "0"))
            following = page.findtext("{*}NextContinuationToken")
            if not following:
                return found
            token = f"&continuation-token={urllib.parse.quote(following, safe='')}"

    def get(self, key: str) -> bytes:
        """Return the content of a key below the address."""
        return _call("GET", f"{self.server}/{self.name}/kept/here/{key}")[1]

    def copy(self, key: str, path: Path) -> None:
        """Write a key's content into a file that is as old as the key is."""
        headers, content = _call("GET", f"{self.server}/{self.name}/kept/here/{key}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        changed = parsedate_to_datetime(headers["Last-Modified"]).timestamp()
        os.utime(path, (changed, changed))

    def headers(self, key: str) -> Mapping[str, str]:
        """Return what the server says of a key, its checksums included."""
        url = f"{self.server}/{self.name}/kept/here/{key}"
        return {
            name.lower(): value for name, value in _call("HEAD", url, {"x-amz-checksum-mode": "ENABLED"})[0].items()
        }

    def uploads(self) -> list[str]:
        """Return the whole keys of uploads that were begun, and neither completed nor aborted."""
        return [each.findtext("{*}Key", "") for each in self._ask("?uploads").iterfind("{*}Upload")]

    def begin_upload(self, key: str) -> None:
        """Begin an upload under a whole key, and forget it."""
        _call("POST", f"{self.server}/{self.name}/{key}?uploads", body=b"")

    def _ask(self, query: str) -> ET.Element:
        return ET.fromstring(_call("GET", f"{self.server}/{self.name}{query}")[1])


class Server:
    """A running S3 server.

    Attributes:
        url: of it.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def bucket(self) -> Bucket:
        """Make one more bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        _call("PUT", f"{self.url}/{name}")
        return Bucket(self.url, name)


class Proxy:
    """What stands before a server and misbehaves as told; see `tests.object_store_proxy`.

    Attributes:
        url: the endpoint for those who are to suffer.
    """

    def __init__(self, url: str, control_url: str) -> None:
        self.url = url
        self._control_url = control_url

    def tell(self, **manner: Any) -> None:
        """Say how requests are treated from now on; nothing means well."""
        _call("PUT", f"{self._control_url}/manner", body=msgspec.json.encode(manner))

    def met(self) -> list[str]:
        """Return the requests that were treated badly: `METHOD PATH`."""
        return msgspec.json.decode(_call("GET", f"{self._control_url}/met")[1], type=list[str])


def environment(endpoint: str) -> dict[str, str]:
    """Return the variables by which the library finds a server, and believes to be known there."""
    return {
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Run a server; gone afterwards, with everything in it.

    Args:
        folder: takes its log.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.s3_stand_in", "--host", "127.0.0.1", "--port", str(port)]
    # large objects go to its temporary folder
    settings = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "65536", "TMPDIR": str(folder)}
    with _process(command, settings, folder / "moto.log", f"http://127.0.0.1:{port}/moto-api/"):
        yield Server(f"http://127.0.0.1:{port}")


@contextmanager
def running_proxy(folder: Path, server: Server) -> Iterator[Proxy]:
    """Run a proxy before a server; gone afterwards.

    Args:
        folder: takes its log.
    """
    port, control_port = free_ports(2)
    settings = {"PROXY_PORT": str(port), "PROXY_CONTROL_PORT": str(control_port), "PROXY_TARGET": server.url}
    control_url = f"http://127.0.0.1:{control_port}"
    command = [sys.executable, "-m", "tests.object_store_proxy"]
    with _process(command, settings, folder / "proxy.log", f"{control_url}/met"):
        yield Proxy(f"http://127.0.0.1:{port}", control_url)


@contextmanager
def _process(command: list[str], settings: Mapping[str, str], log: Path, ready_url: str) -> Iterator[None]:
    with (
        log.open("ab") as output,
        subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _answers(ready_url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        _call("GET", url)
    except OSError:
        return False
    return True


def _call(
    method: str, url: str, headers: Mapping[str, str] | None = None, *, body: bytes | None = None
) -> tuple[Mapping[str, str], bytes]:
    request = urllib.request.Request(url, data=body, headers=_SIGNED | dict(headers or {}), method=method)
    with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as answer:
        return answer.headers, answer.read()
