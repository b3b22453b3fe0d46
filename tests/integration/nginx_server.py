"""A real nginx on loopback that runs the configuration of `deploy/nginx`.

Responsible for: a process of its own in a temporary folder, with what the file marks as "yours" filled in. It must not
change anything else of the file, but for what a test names.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from simulator.rabbitmq_local import free_ports
from tests.integration.raw_server import TLS, trusting
from tests.packages import require

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy/nginx/wavekeep.conf"
NAME = "files.test"
"""For whom the tests' certificate was made."""

_START_WITHIN_S = 10.0
_MAIN = """
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/start.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/wavekeep.conf;
}}
"""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Nginx:
    """A running one."""

    port: int
    folder: Path

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, source: str = "127.0.0.1", **headers: str
    ) -> Answer:
        """Send one request over TLS from an address, by the right name; names of headers have _ for -. Blocks."""
        told = {"Host": NAME, "Content-Type": "application/json"}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10, source_address=(source, 0))
        connection.connect()
        connection.sock = trusting().wrap_socket(connection.sock, server_hostname=NAME)
        with closing(connection):
            connection.request(method, path, body, told)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())

    def written(self) -> str:
        """Return everything it wrote so far."""
        logs = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".conf"]
        return "\n".join(path.read_text("utf-8", "replace") for path in logs)


@contextmanager
def nginx_before(port: int, folder: Path, *changes: tuple[str, str]) -> Iterator[Nginx]:
    """Run nginx before an ingress on this port; `changes` replace words of the configuration."""
    program = require("nginx", "nginx-light")
    (tls_port,) = free_ports(1)
    text = CONFIG.read_text()
    yours = (
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{port};"),
        ("listen 443 ssl", f"listen 127.0.0.1:{tls_port} ssl"),
        ("callbacks.example.com", NAME),
        ("/etc/wavekeep/tls/fullchain.pem", str(TLS / "valid.pem")),
        ("/etc/wavekeep/tls/privkey.pem", str(TLS / "valid.pem")),
        ("/var/log/nginx/", f"{folder}/"),
    )
    for old, new in (*yours, *changes):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "wavekeep.conf").write_text(text)
    user = "user root root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder, user=user))
    command = [program, "-p", str(folder), "-e", str(folder / "start.log"), "-c", str(folder / "nginx.conf")]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    nginx = Nginx(tls_port, folder)
    try:
        _await(process, nginx)
        yield nginx
    finally:
        process.terminate()
        process.wait(10)


def _await(process: subprocess.Popen[bytes], nginx: Nginx) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while True:
        assert process.poll() is None, nginx.written()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", nginx.port)) == 0:
                return
        assert time.monotonic() < deadline, nginx.written()
        time.sleep(0.02)
