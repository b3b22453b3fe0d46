"""Image, compose file and Makefile say the same as the code does, and open nothing by default."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings, load_destinations
from shared.settings import PREFIX, ServiceSettings
from simulator.rabbitmq_docker import IMAGE
from simulator.rabbitmq_local import CONFIRM_TIMEOUT_MS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SETTINGS: dict[str, type[ServiceSettings]] = {
    "ingress": IngressSettings,
    "downloader": DownloaderSettings,
    "notifier": NotifierSettings,
}
OURS = (*SETTINGS, "simulator")
OTHERS = ("rabbitmq", "prometheus")


def test_the_services_are_there_and_what_is_beside_them_only_on_demand() -> None:
    """A plain `docker compose up` runs the product, and neither a vendor that is not one nor a second Prometheus."""
    assert set(SERVICES) == {*OTHERS, *OURS}
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"prometheus": ["monitoring"], "simulator": ["simulator"]}


@pytest.mark.parametrize("name", OURS)
def test_a_service_has_the_least_it_needs(name: str) -> None:
    """A process that was taken over finds no root, no capability and no place to write but its own folder."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert service["command"] == ["python", "-m", name]
    assert "user" not in service
    assert "privileged" not in service


@pytest.mark.parametrize("name", [*OTHERS, *OURS])
def test_nothing_of_the_host_is_lent(name: str) -> None:
    """No service sees the host's processes, network, devices or engine; what is mounted from it is read-only."""
    service = SERVICES[name]
    assert {"privileged", "pid", "ipc", "network_mode", "userns_mode", "devices", "cap_add", "cgroup"}.isdisjoint(
        service
    )
    mounts = [mount.split(":") for mount in service.get("volumes", ())]
    for source, target, *options in mounts:
        assert (source in COMPOSE["volumes"]) != (options == ["ro"])
        assert "docker.sock" not in source + target
    if name in OURS:
        assert {target for _, target, *options in mounts if not options} <= {"/data"}
        assert all("size=" in mount for mount in service["tmpfs"])


@pytest.mark.parametrize("name", [*OTHERS, *OURS])
def test_no_health_check_needs_a_shell(name: str) -> None:
    """A check is a program and its arguments, so that an image without a shell is watched too."""
    told = SERVICES[name]["healthcheck"].get("test") or json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert isinstance(told, list)
    assert told[0] != "CMD-SHELL"
    assert not {"sh", "bash", "/bin/sh"} & set(told)


@pytest.mark.parametrize("name", [*OTHERS, *OURS])
def test_every_service_is_watched(name: str) -> None:
    """A process that hangs is seen: each has a health check, its own or the image's."""
    check = SERVICES[name]["healthcheck"]
    assert check["interval"]
    assert check["timeout"]
    assert "test" in check or "shared.health" in instruction("HEALTHCHECK")
    assert not check.get("disable")


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_of_a_service_is_one_of_its_settings(name: str) -> None:
    """A misspelt variable would be ignored without a word."""
    known = {f"{PREFIX}{field.upper()}" for field in SETTINGS[name].model_fields}
    assert set(SERVICES[name]["environment"]) <= known


@pytest.mark.parametrize("name", SETTINGS)
def test_operations_ports_are_the_documented_ones_and_not_published(name: str) -> None:
    """Metrics and readiness are for the inner network, under the ports the code has by default."""
    port = str(SETTINGS[name].model_fields["ops_port"].default)
    assert SERVICES[name]["environment"][f"{PREFIX}OPS_PORT"] == port
    assert SERVICES[name]["expose"] == [port]
    assert not any(port in published for published in SERVICES[name].get("ports", []))


def test_only_loopback_is_published() -> None:
    """Nothing is open to the network before somebody decides so."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published["ingress"] == ["127.0.0.1:8080:8080"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_the_downloader_has_no_opening_unless_somebody_sets_it() -> None:
    """The fence is whole by default; the opening for the simulator is documented, off, and exactly its network."""
    variable = f"{PREFIX}DOWNLOAD_ALLOW_ADDRESSES"
    assert SERVICES["downloader"]["environment"][variable] is None
    assert variable not in example()
    (network,) = COMPOSE["networks"]["vendor"]["ipam"]["config"]
    assert f"\n# {variable}={network['subnet']}\n" in (ROOT / ".env.example").read_text()
    assert "vendor" in SERVICES["simulator"]["networks"]


def test_images_are_pinned_and_the_broker_is_the_tested_one() -> None:
    """A build does not change under us by itself, and compose runs the image that tests fall back to."""
    assert SERVICES["rabbitmq"]["image"] == IMAGE
    assert re.fullmatch(r"rabbitmq:\d[\w.]*-management", IMAGE)
    arguments = [line.removeprefix("ARG ") for line in dockerfile() if line.startswith("ARG ")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-\w+", arguments[0])
    assert arguments[1:] == ["LOCK=run"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"wavekeep:{version}"}
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", SERVICES["prometheus"]["image"])


def test_data_outlive_their_containers() -> None:
    """Custody and spool are on named volumes."""
    for name in SETTINGS:
        assert f"{name}-data:/data" in SERVICES[name]["volumes"]
        assert SERVICES[name]["environment"][f"{PREFIX}DATA_DIR"] == "/data"
    assert "rabbitmq-data:/var/lib/rabbitmq" in SERVICES["rabbitmq"]["volumes"]
    assert "prometheus-data:/prometheus" in SERVICES["prometheus"]["volumes"]
    assert set(COMPOSE["volumes"]) == {f"{name}-data" for name in (*OTHERS, *SETTINGS)}


def test_a_stopped_service_has_the_time_it_was_promised() -> None:
    """The engine waits longer than the grace time, so that SIGKILL is not the rule."""
    grace_time_s = ServiceSettings.model_fields["grace_time_s"].default
    for name in SETTINGS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > grace_time_s


def test_the_broker_retries_dead_letters_as_tests_do() -> None:
    """The key that keeps delay queues from stalling is the same in compose and in tests."""
    text = (ROOT / "deploy/rabbitmq/advanced.config").read_text()
    assert f"{{dead_letter_worker_publisher_confirm_timeout, {CONFIRM_TIMEOUT_MS}}}" in text
    mounted = SERVICES["rabbitmq"]["volumes"]
    assert "./deploy/rabbitmq/advanced.config:/etc/rabbitmq/advanced.config:ro" in mounted
    assert "./deploy/rabbitmq/enabled_plugins:/etc/rabbitmq/enabled_plugins:ro" in mounted
    assert "rabbitmq_prometheus" in (ROOT / "deploy/rabbitmq/enabled_plugins").read_text()


def test_prometheus_scrapes_what_it_can_reach_by_the_rules_beside_it() -> None:
    """Each target is a service on its network, under a port that is open there; the rules are where its file says."""
    service = SERVICES["prometheus"]
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = [target for job in config["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    for name, port in (target.split(":") for target in targets):
        assert set(service["networks"]) & set(SERVICES[name]["networks"])
        assert port in SERVICES[name].get("expose", ["15692"])
    for file in ("prometheus.yml", *config["rule_files"]):
        assert f"./deploy/prometheus/{file}:/etc/prometheus/{file}:ro" in service["volumes"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_mounted_files_exist() -> None:
    """The engine would make an empty folder of a missing file."""
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", []) if mount.startswith("./")]
    assert mounts
    for mount in mounts:
        assert (ROOT / mount.split(":")[0]).is_file()


def test_the_shipped_destinations_are_taken() -> None:
    """The notifier starts with the file that compose mounts."""
    assert [destination.name for destination in load_destinations(ROOT / "deploy/destinations.toml")] == ["log"]


def test_the_example_holds_no_secret_and_nothing_that_compose_does_not_read() -> None:
    """What somebody fills in takes effect, and what is empty must be chosen."""
    text = (ROOT / "docker-compose.yml").read_text()
    for name, value in example().items():
        assert name.startswith((PREFIX, "RABBITMQ_DEFAULT_"))
        assert re.search(rf"\b{name}\b", text), f"{name} is read nowhere"
        if re.search("PASS|TOKEN|KEY", name):
            assert value == ""
    needed = set(re.findall(r"\$\{(\w+)", text))
    assert needed <= set(example())


def test_the_image_runs_without_root_and_without_a_shell() -> None:
    """Every instruction that runs something names a program and its arguments, and the process is nobody special."""
    lines = dockerfile()
    assert lines.index("USER 10001:10001") > max(n for n, line in enumerate(lines) if line.startswith("RUN "))
    for line in lines:
        if line.startswith(("RUN ", "CMD ", "ENTRYPOINT ")):
            assert line.split(" ", 1)[1].startswith("[")
    assert " CMD [" in f" {instruction('HEALTHCHECK')}"
    assert any("--require-hashes" in line for line in lines)
    assert not any(re.search("TOKEN|PASS|SECRET|KEY", line) for line in lines if line.startswith(("ENV", "ARG")))


def test_the_image_holds_every_package_of_the_wheel_and_nothing_else() -> None:
    """A new package that the image lacks would only be noticed in production."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    copied = {shlex.split(line)[1] for line in dockerfile() if line.startswith("COPY ") and "--from" not in line}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(packages) <= copied
    locks = {f"requirements/{name}.txt" for name in ("run", "quality")}
    assert "requirements/${LOCK}.txt" in copied
    assert let_in == {"README.md", *locks, *copied} - {"requirements/${LOCK}.txt"}


def test_make_alone_tells_every_target() -> None:
    """Whoever types `make` learns what there is, and nothing that is not there."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony
    assert ".DEFAULT_GOAL := help" in text
    assert re.findall(r"^([a-z][a-z-]*):.*## \S", text, re.MULTILINE) == phony[1].split()


def test_continuous_integration_runs_make_test_and_no_more() -> None:
    """What a machine checks is what anybody can run."""
    script = ROOT / ".ci/run"
    assert script.read_text().splitlines()[1:] == ["exec make test"]
    assert script.stat().st_mode & 0o111 == 0o111


def example() -> dict[str, str]:
    """Return the variables of `.env.example`."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def dockerfile() -> list[str]:
    """Return the instructions of the Dockerfile, one a line."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def instruction(name: str) -> str:
    """Return what the only instruction of this name says."""
    (found,) = [line.removeprefix(f"{name} ") for line in dockerfile() if line.startswith(f"{name} ")]
    return found
