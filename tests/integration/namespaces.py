"""Network namespaces: a small internet of the tests' own, with a container, its host and the world behind it.

Responsible for: making them and taking them away, servers in the world, and trying connections from within. Root only;
nothing outside of the namespaces is touched. It must not know the rules that are tried.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

_CONTAINER, _ROUTER = "172.30.78.2", "172.30.78.1"
_CONTAINER_V6, _ROUTER_V6 = "fd77:6b65:6570::2", "fd77:6b65:6570::1"
_LINK, _LINK_V6 = ("10.99.0.1", "10.99.0.2"), ("fd00:77::1", "fd00:77::2")
_OF_THE_KERNEL = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/dad_transmits": "0",  # addresses can be used at once
}

_SET = """
import json, sys
for name, value in json.loads(sys.argv[1]).items():
    with open("/proc/sys/net/" + name, "w") as setting:
        setting.write(value)
"""

_SERVER = """
import json, socket, sys, threading
def tcp(family, port):
    with socket.create_server(("", port), family=family, backlog=512) as server:
        ready.release()
        while True:
            server.accept()[0].close()
def udp(address):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        ready.release()
        while True:
            server.sendto(b"answer", server.recvfrom(512)[1])
ready = threading.Semaphore(0)
ports, resolvers = json.loads(sys.argv[1])
jobs = [(tcp, (family, port)) for family in (socket.AF_INET, socket.AF_INET6) for port in ports]
jobs += [(udp, (address,)) for address in resolvers]
for job, arguments in jobs:
    threading.Thread(target=job, args=arguments, daemon=True).start()
for _ in jobs:
    ready.acquire()
print("ready", flush=True)
sys.stdin.read()
"""

_CLIENT = """
import encodings.idna, json, os, socket, sys
from concurrent.futures import ThreadPoolExecutor
user, targets = json.loads(sys.argv[1])
if user:
    os.setgroups([])
    os.setuid(user)
def reached(target):
    kind, address, port = target
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect((address, port))
            if kind == "udp":
                client.send(b"question")
                client.recv(512)
        except OSError:
            return False
        return True
with ThreadPoolExecutor(128) as pool:
    print(json.dumps(list(pool.map(reached, targets))))
"""

Target = tuple[str, str, int]
"""`tcp` or `udp`, address, port."""


@dataclass(frozen=True)
class Internet:
    """The three namespaces, by name."""

    container: str
    host: str
    world: str

    def reached(self, namespace: str, targets: Iterable[Target], *, user: int = 0) -> list[Target]:
        """Return which targets can be reached from a namespace, as a user."""
        asked = list(targets)
        said = within(namespace, [sys.executable, "-I", "-c", _CLIENT, json.dumps([user, asked])])
        return [target for target, there in zip(asked, json.loads(said), strict=True) if there]


def within(namespace: str, command: Sequence[str]) -> str:
    """Run a command in a namespace; return what it said."""
    done = _run(["ip", "netns", "exec", namespace, *command])
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def internet(addresses: Sequence[str], *, ports: Sequence[int], resolvers: Sequence[str]) -> Iterator[Internet]:
    """Lend a container behind a host behind a world that answers at these addresses; skip where there can be none."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("Network namespaces need root and the package iproute2.")
    mark = secrets.token_hex(3)
    found = Internet(*(f"wk{mark}-{role}" for role in ("container", "host", "world")))
    with ExitStack() as cleaning:
        for name in (found.container, found.host, found.world):
            made = _run(["ip", "netns", "add", name])
            if made.returncode != 0:
                pytest.skip(f"No network namespace can be made on this machine: {made.stderr.strip()}")
            cleaning.callback(_run, ["ip", "netns", "del", name])
            within(name, [sys.executable, "-I", "-c", _SET, json.dumps(_OF_THE_KERNEL)])
        wired = _batch(None, [
            f"link add c{mark} netns {found.container} type veth peer name h{mark} netns {found.host}",
            f"link add u{mark} netns {found.host} type veth peer name w{mark} netns {found.world}",
        ])  # fmt: skip
        if wired.returncode != 0:
            pytest.skip(f"No namespaces can be connected on this machine: {wired.stderr.strip()}")
        _wire(found, mark, addresses)
        command = ["ip", "netns", "exec", found.world, sys.executable, "-I", "-c", _SERVER]
        server = cleaning.enter_context(
            subprocess.Popen(
                [*command, json.dumps([list(ports), list(resolvers)])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        cleaning.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield found


def _wire(found: Internet, mark: str, addresses: Sequence[str]) -> None:
    hosts = [f"address add {each}/{ip_address(each).max_prefixlen} dev lo" for each in addresses]
    lines = {
        found.container: [
            *_ends(f"c{mark}", f"{_CONTAINER}/24", f"{_CONTAINER_V6}/64"),
            f"route add default via {_ROUTER}",
            f"route add ::/0 via {_ROUTER_V6}",
        ],
        found.host: [
            *_ends(f"h{mark}", f"{_ROUTER}/24", f"{_ROUTER_V6}/64"),
            *_ends(f"u{mark}", f"{_LINK[0]}/30", f"{_LINK_V6[0]}/64"),
            f"route add default via {_LINK[1]}",
            f"route add ::/0 via {_LINK_V6[1]}",
        ],
        found.world: [
            *_ends(f"w{mark}", f"{_LINK[1]}/30", f"{_LINK_V6[1]}/64"),
            *hosts,
            f"route add default via {_LINK[0]}",
            f"route add ::/0 via {_LINK_V6[0]}",
        ],
    }
    for name, batch in lines.items():
        done = _batch(name, ["link set lo up", *batch])
        assert done.returncode == 0, done.stderr


def _ends(device: str, v4: str, v6: str) -> list[str]:
    return [f"link set {device} up", f"address add {v4} dev {device}", f"address add {v6} dev {device} nodad"]


def _batch(namespace: str | None, lines: Sequence[str]) -> subprocess.CompletedProcess[str]:
    inside = ["-n", namespace] if namespace else []
    return _run(["ip", *inside, "-batch", "-"], text="\n".join(lines) + "\n")


def _run(command: Sequence[str], *, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
