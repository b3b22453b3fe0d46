"""What survives the end of the processes: kill -9, SIGTERM, a second start."""

from pathlib import Path

import pytest

from simulator.processes import ProcessEndedError
from tests.e2e.harness import House, new_task, wait_for

_SIZE_BYTES = 3_000_000


def test_a_kill_in_the_middle_of_a_download_loses_nothing_and_leaves_nothing(house: House) -> None:
    """200 means durable: a new process goes on with the file where the old one died, and no temporary file stays."""
    task_id = new_task()
    slow = {"times": 1, "bytes_per_s": 500_000}
    house.convert(task_id=task_id, files=[{"size_bytes": _SIZE_BYTES, "misbehaviour": [slow]}])
    wait_for(lambda: any(path.stat().st_size > 500_000 for path in house.temporaries()), "the download is under way")
    for process in house.deployment.services.values():
        process.kill()
    assert any(path.stat().st_size < _SIZE_BYTES for path in house.temporaries())
    assert house.kept(task_id) == []

    house.deployment.start()
    stored = house.told(task_id, "conversion.stored", within_s=60)["data"]
    (audio,) = house.kept(task_id)
    assert (audio.as_uri(), audio.stat().st_size) == (stored["uri"], stored["size_bytes"])
    assert stored["sha256"] in house.entry(task_id)["expected_sha256"]
    assert house.entry(task_id)["files"][0]["answers"] == {"200": 1, "206": 1}
    assert house.manifest(task_id)["evidence"]["transport"] == "content_range"
    wait_for(lambda: not house.temporaries(), "no temporary file stays")


def test_callbacks_answered_just_before_a_kill_are_all_stored(house: House) -> None:
    """No callback is between an answer and the disk."""
    tasks = [new_task() for _ in range(30)]
    house.simulator.convert([{"vendor": "kie", "task_id": task_id} for task_id in tasks])
    wait_for(lambda: sum(_acknowledged(house, task_id) for task_id in tasks) >= 10, "some are answered")
    for process in house.deployment.services.values():
        process.kill()
    house.deployment.start()
    wait_for(lambda: house.simulator.pending()["pending"] == 0, "the vendor has sent everything")
    for task_id in filter(lambda task_id: _acknowledged(house, task_id), tasks):
        house.told(task_id, "conversion.stored", within_s=60)
        assert len(house.kept(task_id)) == 1


def test_sigterm_ends_every_process_with_0_and_finishes_what_is_in_hand(house: House) -> None:
    """An orderly end needs no repair: what was being fetched is finished first."""
    task_id = new_task()
    slow = {"bytes_per_s": 1_500_000}
    house.convert(task_id=task_id, files=[{"size_bytes": _SIZE_BYTES, "misbehaviour": [slow]}])
    wait_for(lambda: _served(house, task_id) > 100_000, "the download is under way")
    for process in house.deployment.services.values():
        process.terminate()
    statuses = {name: process.stop(within_s=30) for name, process in house.deployment.services.items()}
    logs = "\n".join(process.tail() for process in house.deployment.services.values())
    assert set(statuses.values()) == {0}, logs
    assert len(house.kept(task_id)) == 1
    assert house.temporaries() == []

    house.deployment.start()
    house.told(task_id, "conversion.stored")
    assert house.entry(task_id)["files"][0]["fetches"] == 1


def test_a_second_process_on_the_same_data_refuses_to_start(tmp_path: Path) -> None:
    """Two processes never share an embedded queue."""
    house = House(tmp_path / "house")
    with house.deployment:
        second = House(tmp_path / "house")
        (process,) = second.deployment.services.values()
        process.start()
        wait_for(lambda: process.exit_status is not None, "it has ended")
        assert process.exit_status == 2
        assert "Another Wavekeep process" in process.tail()


def test_a_process_that_cannot_start_names_the_setting_and_leaves_no_other_running(tmp_path: Path) -> None:
    """A wrong setting is told by its name, without its value, and the exit status says that nothing was tried."""
    house = House(tmp_path / "house", settings={"WAVEKEEP_PUBLISH_TIMEOUT_S": "secret-or-not"})
    with pytest.raises(ProcessEndedError, match="WAVEKEEP_PUBLISH_TIMEOUT_S") as caught, house.deployment:
        pass
    assert "ended with 2" in str(caught.value)
    assert "secret-or-not" not in str(caught.value)
    assert not any(process.running for process in house.deployment.processes)


def _served(house: House, task_id: str) -> int:
    return sum(int(file["bytes_served"]) for file in house.entry(task_id)["files"])


def _acknowledged(house: House, task_id: str) -> bool:
    return bool(house.entry(task_id)["acknowledged"])
