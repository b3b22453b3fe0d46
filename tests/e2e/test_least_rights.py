"""Each service with a RabbitMQ user of its own that may do what docs/security.md says, and nothing else."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.rabbitmq_node import private_node
from simulator.rabbitmq_server import GIVEN_URL
from tests.e2e.harness import House

PAGE = Path(__file__).parents[2] / "docs/security.md"
RIGHTS = {
    # a bar in a table is written with a backslash
    name: (configure, write.replace("\\|", "|"), read)
    for name, configure, write, read in re.findall(
        r"^\| `(ingress|downloader|notifier)` \| `(\S+)` \| `(\S+)` \| `(\S+)` \|$",
        PAGE.read_text("utf-8"),
        re.MULTILINE,
    )
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A deployment whose topology an administrator made, and whose services may not."""
    if GIVEN_URL in os.environ:
        pytest.skip(f"the broker of {GIVEN_URL} is somebody else's, and gets no users from us")
    with private_node() as node:
        house = House(tmp_path, broker_url=node.amqp_url, settings={"WAVEKEEP_DECLARE_TOPOLOGY": "false"})
        for name, process in house.deployment.services.items():
            node.ctl("add_user", name, "password")
            node.ctl("set_permissions", "-p", "/", name, *RIGHTS[name])
            process._environ["WAVEKEEP_BROKER_URL"] = node.amqp_url.replace("guest:guest", f"{name}:password")
        environ = house.deployment.services["notifier"]._environ | {"WAVEKEEP_BROKER_URL": node.amqp_url}
        config = tmp_path / "destinations.toml"
        config.write_text(house.deployment._destinations)
        command = [sys.executable, "-m", "cli", "topology", "apply"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        with house.deployment:
            yield house


@pytest.mark.rabbitmq
def test_the_rights_of_the_page_are_enough(house: House) -> None:
    """With no right to configure anything, and no service able to read another's queue, everything still works."""
    assert set(RIGHTS) == {"ingress", "downloader", "notifier"}
    stored = house.convert(vendor="kie", files=[{}])["task_id"]
    broken = house.convert(vendor="apibox", files=[{"flavour": "adpcm"}])["task_id"]
    cut = house.convert(files=[{"misbehaviour": [{"times": 1, "cut_after_bytes": 9, "reset": True}]}])["task_id"]
    unknown = house.convert(vendor="sunoapi", shape="music")["task_id"]
    house.simulator.tell_webhook("failures", {"times": 1, "status": 500})
    house.told(stored, "conversion.stored")
    house.told(cut, "conversion.stored")
    house.told(broken, "conversion.rejected")
    house.told(unknown, "report.unrecognised")
    house.told(broken, "conversion.rejected", receiver="failures")
    logs = "".join(process.log.read_text() for process in house.deployment.services.values())
    assert "second_chance.put_off" not in logs  # each looks into its own parked queue, also at its start
