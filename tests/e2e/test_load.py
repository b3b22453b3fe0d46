"""A steady load: 200 callbacks a second for half a minute, and not one is lost or doubled."""

import json
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import House, wait_for

log = logging.getLogger(__name__)

RATE_PER_S = 200
SECONDS = 30
DRAIN_S = 120.0
ANSWER_WITHIN_MS = 15_000
STORED = "wavekeep_downloader_conversions_stored_total"
TOLD = 'wavekeep_notifier_deliveries_total{destination="main",outcome="delivered"}'


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_load_200_per_second(house: House) -> None:
    """Every task is one file told under one id, and every callback is answered within the vendor's patience."""
    house.simulator.reset()
    manifests_before = _manifest_paths(house)
    stored_before, told_before = house.metric(STORED), house.metric(TOLD)
    began = time.monotonic()
    planned = house.simulator.begin({"rate_per_s": RATE_PER_S, "seconds": SECONDS, "size_bytes": 8_192})
    wait_for(lambda: house.simulator.pending()["pending"] == 0, "everything was called back", within_s=SECONDS + 60)
    called_s = time.monotonic() - began
    wait_for(
        lambda: house.metric(STORED) >= stored_before + planned, "everything is announced stored", within_s=DRAIN_S
    )
    stored_s = time.monotonic() - began
    wait_for(lambda: house.metric(TOLD) >= told_before + planned, "everything is told", within_s=DRAIN_S)
    told_s = time.monotonic() - began

    conversions = house.simulator.ledger()["conversions"]
    answers = [callback for each in conversions for callback in each["callbacks"]]
    assert len(conversions) == planned == RATE_PER_S * SECONDS
    assert {callback["status"] for callback in answers} == {200}
    answered_ms = sorted(callback["answered_ms"] for callback in answers)
    assert answered_ms[-1] < ANSWER_WITHIN_MS
    told = _ids_by_subject(house)
    assert set(told) == {f"{each['vendor']}/{each['task_id']}" for each in conversions}
    assert {len(ids) for ids in told.values()} == {1}
    assert len(set.union(*told.values())) == planned
    manifests = _manifests(_manifest_paths(house) - manifests_before)
    for each in conversions:
        (manifest,) = manifests[each["task_id"]]
        assert manifest["sha256"] in each["expected_sha256"]
    audio = [path for path in house.files.rglob("*.wav") if path.name.partition(".")[0] in manifests]
    assert len(audio) == planned
    assert house.leaks() == []
    log.info(
        "called after %.1f s, stored after %.1f s, told after %.1f s; answered in %.0f ms (median), %.0f (99 %%), %.0f",
        *(called_s, stored_s, told_s),
        *(answered_ms[len(answered_ms) * percent // 100] for percent in (50, 99)),
        answered_ms[-1],
    )
    house.simulator.reset()


def _manifest_paths(house: House) -> set[Path]:
    return {path for path in house.files.rglob("*.json") if not path.name.endswith(".rejected.json")}


def _manifests(paths: set[Path]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        manifest = json.loads(path.read_text())
        found[manifest["task_id"]].append(manifest)
    return found


def _ids_by_subject(house: House) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for delivery in house.simulator.webhooks("main"):
        event = json.loads(delivery["body"])
        if event["type"] == "wavekeep.conversion.stored.v1":
            found[event["subject"]].add(event["id"])
    return found
