"""No secret and no query string leaves by any way out, whatever went wrong."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aio_pika
import pytest

from simulator.payloads import signature
from simulator.rabbitmq_node import private_node
from simulator.rabbitmq_server import GIVEN_URL
from tests.e2e.conftest import MODES
from tests.e2e.harness import HMAC_KEY, WEBHOOK_SECRET, House, get, new_task, wait_for

API_KEY = "simulator-api-key"
PASSWORD = f"broker-password-{secrets.token_hex(8)}"
ASKED = ("kie", "sunoapi")
"""The vendors whose key we have; the third one's word is taken as it is."""

STRANGER = f"{secrets.token_hex(6)}:{secrets.token_hex(12)}"
"""A user and a password in a link."""

_LISTENER = "listener-of-the-tests"


def test_no_way_out_holds_a_secret_or_a_query(house: House) -> None:
    """Links are keys to files: logs, manifests, webhooks and metrics show them without what opens them."""
    tasks = {name: new_task() for name in ("stored", "refused", "cut", "broken", "conflicting", "unknown", "forged")}
    house.convert(vendor="kie", task_id=tasks["stored"], files=[{"spaced_name": True}])
    house.convert(task_id=tasks["refused"], files=[{"misbehaviour": [{"status": 403}]}])
    house.convert(task_id=tasks["cut"], files=[{"misbehaviour": [{"cut_after_bytes": 10, "reset": True}]}])
    house.convert(task_id=tasks["broken"], files=[{"flavour": "adpcm"}])
    house.convert(task_id=tasks["conflicting"], files=[{}, {}], steps=[{}, {"file": 1}])
    house.convert(task_id=tasks["unknown"], shape="music")
    link = house.link()
    body = {"code": 200, "msg": f"see {link}", "data": {"task_id": tasks["forged"], "audioWavUrl": link}}
    assert house.call_back("apibox", tasks["forged"], json.dumps(body).encode(), token="guessed-token") == 401
    outside = {
        "code": 200,
        "msg": "",
        "data": {"task_id": new_task(), "audioWavUrl": "http://127.0.0.1:1/?Signature=x"},
    }
    assert house.call_back("apibox", "", json.dumps(outside).encode()) == 200
    failed = {"code": 500, "msg": f"could not write {link}", "data": {"task_id": new_task()}}
    assert house.call_back("apibox", "", json.dumps(failed).encode()) == 200

    house.told(tasks["stored"], "conversion.stored")
    house.told(tasks["conflicting"], "conversion.conflicting")
    house.told(tasks["unknown"], "report.unrecognised")
    house.told(tasks["broken"], "conversion.rejected")
    house.told(outside["data"]["task_id"], "conversion.rejected")  # type: ignore[index]
    house.told(failed["data"]["task_id"], "conversion.rejected")  # type: ignore[index]
    wait_for(lambda: all(house.entry(tasks[name])["files"][0]["fetches"] for name in ("refused", "cut")), "both failed")
    assert house.leaks() == []


class Run:
    """A deployment with every secret there can be; remembers all that went in, and all that came out by its door."""

    def __init__(self, folder: Path, broker_url: str | None) -> None:
        self.broker_url = broker_url
        self.house = House(folder, broker_url=broker_url)
        deployment = self.house.deployment
        asking = {f"WAVEKEEP_{vendor.upper()}_API_KEY": API_KEY for vendor in ASKED} | {
            f"WAVEKEEP_{vendor.upper()}_API_BASE": f"{self.house.simulator.base_url}/{vendor}" for vendor in ASKED
        }
        for process in deployment.services.values():
            process._environ.update(asking)
        self.went_in = {HMAC_KEY, WEBHOOK_SECRET, WEBHOOK_SECRET.removeprefix("whsec_"), API_KEY, PASSWORD, STRANGER}
        self.went_in |= {*STRANGER.split(":"), *map(str, deployment.tokens.values())}
        self.came_out: list[tuple[str, str]] = []

    def convert(self, **plan: Any) -> str:
        """Make one conversion, and remember the queries of its links; return its task id."""
        made = self.house.convert(**plan)
        for link in made["links"]:
            self.remember(link)
        return str(made["task_id"])

    def remember(self, link: str) -> None:
        """Remember the query of a link, whole and in its longer parts."""
        query = urlsplit(link).query
        self.went_in |= {query, *(value for _, value in parse_qsl(query) if len(value) > 12)}

    def send(self, path: str, document: object, **headers: str) -> int:
        """Send a request to the ingress; remember its query, and the answer as a way out; return its status."""
        url = self.house.deployment.ingress_url + path
        self.remember(url)
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        told = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        request = urllib.request.Request(url, data, told, method="POST")
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.came_out.append(
                (f"answer {answer.status} to {urlsplit(url).path}", f"{answer.headers}{answer.read()!r}")
            )
            return int(answer.status)

    def wavekeep(self, *words: str) -> str:
        """Run a command as the operator would; remember what it printed, and return it."""
        service = "downloader" if self.broker_url else "standalone"
        environ = self.house.deployment.services[service]._environ
        command = [sys.executable, "-m", "cli", *words]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        self.came_out.append((f"wavekeep {' '.join(words)}", done.stdout + done.stderr))
        return done.stdout

    def sinks(self) -> Iterator[tuple[str, str]]:
        """Yield everything that anybody but the private intake has by now."""
        yield from self.came_out
        deployment = self.house.deployment
        for name, process in deployment.services.items():
            yield f"log of {name}", process.log.read_text()
            # the single process prints the URLs to hand to the vendors, on purpose and nowhere else
            printed = process.output.read_text().splitlines()
            yield f"output of {name}", "\n".join(line for line in printed if "/callbacks/" not in line)
            for route in ("/metrics", "/livez", "/readyz", "/version"):
                yield f"{route} of {name}", get(deployment.ops_urls[name] + route)
        for path in self.house.files.rglob("*"):
            yield "a name in storage", str(path.relative_to(self.house.files))
            if path.is_file() and path.suffix != ".wav":
                yield str(path), path.read_text()
        for receiver in ("main", "failures"):
            for delivery in self.house.simulator.webhooks(receiver):
                yield f"delivery to {receiver}", json.dumps(delivery["headers"]) + delivery["body"]
        if self.broker_url:
            for text in asyncio.run(drained(self.broker_url)):
                yield "published on wavekeep.events", text


@pytest.fixture(params=MODES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """A deployment of the test's own; before RabbitMQ with a user and a password of its own, and a listener to all."""
    if request.param == "embedded":
        run = Run(tmp_path, None)
        with run.house.deployment:
            yield run
        return
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's, and gets no user from us")
    with private_node() as node:
        node.ctl("add_user", "wavekeep", PASSWORD)
        node.ctl("set_permissions", "-p", "/", "wavekeep", ".*", ".*", ".*")
        run = Run(tmp_path, node.amqp_url.replace("guest:guest", f"wavekeep:{PASSWORD}"))
        assert run.broker_url is not None
        with run.house.deployment:
            asyncio.run(listen(run.broker_url))
            yield run


def test_nothing_that_went_in_comes_out_anywhere(run: Run) -> None:
    """Of every secret and every query that a full run took in, no sink but the private intake holds any."""
    house = run.house
    stored = run.convert(vendor="kie", files=[{"spaced_name": True}])
    broken = run.convert(vendor="apibox", files=[{"flavour": "adpcm"}])
    conflicting = run.convert(vendor="apibox", files=[{}, {}], steps=[{}, {"file": 1}], record="succeeded")
    gone = run.convert(vendor="sunoapi", files=[{"misbehaviour": [{"times": 1, "status": 403}]}])
    cut = run.convert(vendor="apibox", files=[{"misbehaviour": [{"times": 1, "cut_after_bytes": 9, "reset": True}]}])
    unknown = run.convert(vendor="apibox", shape="music")
    link = f"http://{STRANGER}@127.0.0.1:1/a.wav?Signature={secrets.token_hex(16)}"
    run.remember(link)
    outside = refuse_everything(run, link)

    house.told(stored, "conversion.stored")
    wait_for(lambda: house.entry(gone)["files"][0]["fetches"], "a link that is gone was tried")
    house.told(cut, "conversion.stored")
    house.told(conflicting, "conversion.stored")
    house.told(broken, "conversion.rejected")
    house.told(unknown, "report.unrecognised")
    house.told(outside, "conversion.rejected")
    ports = [word for url in house.deployment.ops_urls.values() for word in ("--port", url.rpartition(":")[2])]
    assert json.loads(run.wavekeep("status", "--json", *ports))
    assert json.loads(run.wavekeep("show", stored, "--json"))
    assert json.loads(run.wavekeep("parked", "list", "--json"))
    assert json.loads(run.wavekeep("unrecognised", "list", "--json"))
    for words in (("show", broken, "--json"), ("show", stored), ("parked", "list"), ("topology", "show"), ("events",)):
        assert run.wavekeep(*words)
    found = list(run.sinks())
    assert len(found) > 40
    assert [leak for place, text in found for word in run.went_in for leak in leaks(place, text, word)] == []


def leaks(place: str, text: str, word: str) -> list[str]:
    """Return where a word stands, without showing it."""
    at = text.find(word)
    return [] if at < 0 else [f"{place}: {text[max(0, at - 80) : at]}[here]"]


def refuse_everything(run: Run, link: str) -> str:
    """Send what is refused, in every way, with a link in each; return the task of a link that leads inside."""
    guessed, forged = secrets.token_hex(16), signature("no key of ours", "t", str(int(time.time())))
    run.went_in |= {guessed, forged}
    right = {vendor: f"/callbacks/{vendor}?token={run.house.token(vendor)}" for vendor in ("apibox", "kie")}
    about = {"code": 200, "msg": f"see {link}", "data": {"task_id": new_task(), "audioWavUrl": link}}
    signed = {"X_Webhook_Timestamp": str(int(time.time())), "X_Webhook_Signature": forged}
    assert run.send(f"/callbacks/apibox?token={guessed}", about) == 401
    assert run.send(right["kie"], about) == 401
    assert run.send(right["kie"], about, **signed) == 401
    assert run.send(f"/callbacks/nobody?token={guessed}", about) == 404
    assert run.send(f"/nothing?token={guessed}", about) == 404
    assert run.send(right["apibox"], f"{link} {guessed}".encode()) == 400
    assert run.send(right["apibox"], about | {"data": {"task_id": f"../{link}"}}) == 400
    assert run.send(right["apibox"], about, Content_Type="text/plain") == 415
    assert run.send(right["apibox"], about, Content_Encoding="gzip") == 415
    assert run.send(right["apibox"], (link * 2_000).encode()) == 413
    failed = {
        "code": 500,
        "msg": f"no {link} for {run.house.deployment.ingress_url}{right['apibox']}",
        "data": {"task_id": new_task()},
    }
    assert run.send(right["apibox"], failed) == 200
    assert run.send(right["apibox"], about) == 200
    run.house.told(failed["data"]["task_id"], "conversion.rejected")  # type: ignore[index]
    return str(about["data"]["task_id"])  # type: ignore[index]


async def listen(broker_url: str) -> None:
    """Have every public event copied into a queue of ours."""
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(_LISTENER, durable=True)
        await queue.bind("wavekeep.events", "#")


async def drained(broker_url: str) -> list[str]:
    """Return what was published so far: properties, headers and body."""
    found = []
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(_LISTENER, durable=True)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            found.append(f"{message.routing_key} {message.info()} {message.body.decode()}")
    assert found
    return found
