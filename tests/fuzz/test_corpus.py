"""Everything that fuzzing ever found is tried again: seeds, the kept corpus, and what once crashed."""

from importlib import import_module
from pathlib import Path

import pytest
from pydantic import SecretStr

from ingress.problems import Refusal, RefusedError
from tests.fuzz.engine import FOLDER, TARGETS
from tests.integration.ingress_server import TOKEN, running

DESCRIBED = {200, *(RefusedError(refusal, "").status for refusal in Refusal)} - {500}


def kept(*folders: str) -> list[Path]:
    """Return the files of some folders."""
    return sorted(path for folder in folders for path in (FOLDER / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_hold(target: str) -> None:
    """What is known to come, and to be hard, is read or refused as it should be."""
    harness = import_module(f"tests.fuzz.{target}")
    for seed in harness.seeds():
        harness.check(seed)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_holds(target: str) -> None:
    """What once led fuzzing to new code is read or refused as it should be."""
    harness = import_module(f"tests.fuzz.{target}")
    found = kept(f"corpus/{target}")
    assert found
    for path in found:
        harness.check(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_crashes_are_mended(target: str) -> None:
    """What once crashed a parser does not any more."""
    harness = import_module(f"tests.fuzz.{target}")
    for path in kept(f"crashes/{target}"):
        harness.check(path.read_bytes())


async def test_requests_that_failed_are_answered() -> None:
    """Each request that was once answered wrongly, or not at all, is answered as described."""
    async with running([], sunoapi_callback_tokens=(SecretStr(TOKEN),), signature_tolerance_s=1e12) as edge:
        for path in kept("crashes/http"):
            answer = await edge.send(path.read_bytes())
            assert answer.status in DESCRIBED, path.name
        assert (await edge.post()).status == 200


def test_corpus_is_small() -> None:
    """The corpus stays what a repository can carry."""
    found = kept("corpus")
    assert len(found) < 300
    assert sum(path.stat().st_size for path in found) < 1_000_000
