"""How `wavekeep audit` compares with reading the same files and nothing else: `make bench-audit`.

Responsible for: the sets of files, the programs that are compared, and the table. Everything is made in a temporary
folder, one set at a time, and taken away afterwards.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.runs import BrokenRunError, Program, Taken, run, side_by_side
from benchmarks.storages import evict, fill, warm
from downloader.audit import TASKS_AT_ONCE

ROOT = Path(__file__).parents[1]
MIB = 1024 * 1024
REFERENCE = "plain reading"
AUDIT = "wavekeep audit"


@dataclass(frozen=True, slots=True)
class Row:
    """One program on one set of files.

    Attributes:
        speed: the reference's wall time as a multiple of this one's: 1.0 is as fast, 0.5 half as fast.
        speed_running: the same without what each takes where there is nothing to read.
        cpu_running: its CPU time as a multiple of the reference's, likewise.
    """

    files: str
    cache: str
    program: str
    taken: Taken
    speed: float
    speed_running: float | None
    cpu_running: float | None


def main() -> None:
    """Measure, and print."""
    asked = _arguments()
    sets = [(asked.small_files, asked.small_kib * 1024), (asked.large_files, asked.large_kib * 1024)]
    _require_room(asked.folder, max(files * size_bytes for files, size_bytes in sets))
    with tempfile.TemporaryDirectory(prefix="wavekeep-bench-", dir=asked.folder) as temporary:
        folder = Path(temporary)
        rows: list[Row] = []
        for files, size_bytes in sets:
            with _filled(folder / "files", files=files, size_bytes=size_bytes) as kept:
                programs = list(_programs(kept, files, files * size_bytes))
                for cache, before in (("cold", partial(evict, kept)), ("warm", partial(warm, kept))):
                    taken, idle = _measured(programs, folder, times=asked.times, before=before)
                    rows += _rows(f"{files} x {size_bytes / MIB:g} MiB", cache, taken, idle)
        growth = dict(_growth(folder, asked.linear_files, asked.linear_kib * 1024, asked.times))
    if asked.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "cpu_ms_a_file": growth}, indent=2))
    else:
        _show(rows, growth, asked.linear_kib)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-audit", description=__doc__)
    parser.add_argument("--small-files", type=int, default=1_000, metavar="N")
    parser.add_argument("--small-kib", type=int, default=1_024, metavar="N", help="size of each of these")
    parser.add_argument("--large-files", type=int, default=32, metavar="N")
    parser.add_argument("--large-kib", type=int, default=32 * 1_024, metavar="N", help="size of each of these")
    parser.add_argument("--linear-files", type=int, nargs="*", default=[250, 1_000, 4_000], metavar="N")
    parser.add_argument("--linear-kib", type=int, default=64, metavar="N", help="size of each of these")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="runs of each program, of which the median")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk that is meant")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    return parser.parse_args()


def _require_room(folder: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 2 * size_bytes:
        sys.exit(f"{folder} has {free_bytes // MIB} MiB free, and this needs {2 * size_bytes // MIB}: see --folder.")


@contextmanager
def _filled(folder: Path, *, files: int, size_bytes: int) -> Iterator[Path]:
    fill(folder, files=files, size_bytes=size_bytes)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _measured(
    programs: Sequence[Program], folder: Path, *, times: int, before: Callable[[], None]
) -> tuple[dict[str, Taken], dict[str, Taken]]:
    """Return what each program took, and what it took in the same rounds where there was nothing to read."""
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    idle = [replace(each, name=f"{each.name}, idle") for each in _programs(empty, 0, 0)]
    taken = side_by_side([*programs, *idle], times=times, before=before)
    return (
        {each.name: taken[each.name] for each in programs},
        {each.name: taken[f"{each.name}, idle"] for each in programs},
    )


def _programs(folder: Path, files: int, size_bytes: int) -> Iterator[Program]:
    """Yield what is compared; where a tool is not installed, its row is missing."""
    plain, environment = dict(os.environ), _environment(folder)
    reading = (sys.executable, str(ROOT / "benchmarks/plain_reading.py"), str(folder), str(TASKS_AT_ONCE))
    yield Program(REFERENCE, reading, plain, lambda printed: int(printed) == files)
    yield _audit(environment, files, size_bytes)
    find = f"find {folder} -name '*.wav' -print0"
    yield Program("cat", ("sh", "-c", f"{find} | xargs -0 -r cat > /dev/null"), plain)
    if shutil.which("openssl"):
        openssl = f"{find} | xargs -0 -r -P 2 -n 8 openssl dgst -sha256 > /dev/null"
        yield Program("openssl, 2 at once", ("sh", "-c", openssl), plain)


def _audit(environment: dict[str, str], files: int, size_bytes: int) -> Program:
    def fits(printed: str) -> bool:
        report = json.loads(printed)
        whole = report["whole"] and report["complete"] and not report["findings"]
        return bool(whole and (report["files"], report["size_bytes"]) == (files, size_bytes))

    return Program(AUDIT, (sys.executable, "-m", "cli", "audit", "--no-tell", "--json"), environment, fits)


def _environment(folder: Path) -> dict[str, str]:
    """Return what the command needs to know; nothing of the surroundings' own Wavekeep."""
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("WAVEKEEP_")}
    ours = {"WAVEKEEP_STORAGE_URL": folder.as_uri(), "WAVEKEEP_DATA_DIR": str(folder.parent / "data")}
    return foreign | ours | {"PYTHONPATH": str(ROOT)}


def _rows(files: str, cache: str, taken: dict[str, Taken], idle: dict[str, Taken]) -> Iterator[Row]:
    reference = taken[REFERENCE]
    running_s = {name: each.wall_s - idle[name].wall_s for name, each in taken.items()}
    cpu_s = {name: each.cpu_s - idle[name].cpu_s for name, each in taken.items()}
    for name, each in taken.items():
        speed = reference.wall_s / each.wall_s
        speed_running = _ratio(running_s[REFERENCE], running_s[name])
        yield Row(files, cache, name, each, speed, speed_running, _ratio(cpu_s[name], cpu_s[REFERENCE]))


def _ratio(one: float, other: float) -> float | None:
    """Return how often one goes into the other; None where it was lost in the noise of the machine."""
    return one / other if one > 0 and other > 0 else None


def _growth(folder: Path, counts: Sequence[int], size_bytes: int, times: int) -> Iterator[tuple[int, float]]:
    """Yield what a file costs, in milliseconds of CPU time, by how many there are; what the start takes is left out."""
    for files in counts:
        with _filled(folder / "files", files=files, size_bytes=size_bytes) as kept:
            programs = [_audit(_environment(kept), files, files * size_bytes)]
            run(programs[0])
            taken, idle = _measured(programs, folder, times=times, before=_nothing)
        yield files, (taken[AUDIT].cpu_s - idle[AUDIT].cpu_s) * 1_000 / files


def _nothing() -> None:
    """Leave the page cache as it is."""


def _show(rows: Sequence[Row], growth: dict[int, float], linear_kib: int) -> None:
    line = "{:<16} {:<5} {:<19} {:>8} {:>8} {:>8} {:>8} {:>12}"
    print(line.format("files", "cache", "program", "wall s", "speed", "running", "CPU s", "CPU running"))
    for row in rows:
        taken, ratios = row.taken, (row.speed, row.speed_running, row.cpu_running)
        speed, running, cpu = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        cells = (row.files, row.cache, row.program, f"{taken.wall_s:.2f}", speed, running, f"{taken.cpu_s:.2f}", cpu)
        print(line.format(*cells))
    costs = ", ".join(f"{files}: {cost_ms:.2f} ms" for files, cost_ms in growth.items())
    print(f"\nCPU time of one audited file of {linear_kib} KiB, warm, by how many there are: {costs}.")


if __name__ == "__main__":
    try:
        main()
    except BrokenRunError as error:
        sys.exit(str(error))
