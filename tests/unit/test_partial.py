"""Partial files: who may go on with one, how much of it is trusted, and when it is let go."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from downloader import partial
from downloader.answer import Known
from downloader.digests import Promise
from downloader.partial import LONGEST_KEPT_S, Note, Partials, name_of
from downloader.proven import Proven
from shared.events import Evidence, Format

TASK, LINK = "kie/1", "identity"
KNOWN = Known(validator='"tag"', size_bytes=10, promised=(Promise("repr-digest", "sha-256", bytes(32)),))


@pytest.fixture
def partials(tmp_path: Path) -> Partials:
    """An empty folder."""
    return Partials(tmp_path, max_bytes=1_000)


def left(partials: Partials, content: bytes, *, task: str = TASK, kept: bool = True) -> Path:
    """Leave what an attempt leaves: in order, or by a crash of the process in mid-download."""
    path = partials.new(task)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    partials.note(path, identity=LINK, known=KNOWN)
    os.write(file, content)
    if kept:
        partials.keep(path, file, identity=LINK, known=KNOWN)
    os.close(file)
    return path


def claimed(partials: Partials, task: str = TASK) -> bytes | None:
    """Claim, and return what there is to go on from."""
    claim = partials.claim(task)
    if claim is None:
        return None
    content = claim.path.read_bytes()
    assert (claim.size_bytes, claim.note.identity, claim.note.known) == (len(content), LINK, KNOWN)
    os.close(claim.file)
    return content


@pytest.mark.parametrize("kept", [True, False])
def test_the_next_attempt_goes_on(partials: Partials, *, kept: bool) -> None:
    """After a failure and after a crash of the process, what came is there for the same task, and for no other."""
    left(partials, b"abc", kept=kept)
    assert claimed(partials, "kie/2") is None
    assert claimed(partials) == b"abc"


def test_one_claim_wins(partials: Partials, tmp_path: Path) -> None:
    """What somebody works on is nobody else's, and neither is what was taken a moment ago."""
    left(partials, b"abc")
    first = partials.claim(TASK)
    assert first is not None
    assert partials.claim(TASK) is None
    assert partials.sweep() == 0
    os.close(first.file)
    assert len(list(tmp_path.glob("*.part"))) == 1


def test_a_rename_decides_where_locks_do_not(
    partials: Partials, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a file system without locks between machines, whoever renames second has lost."""
    path = left(partials, b"abc")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    rename = Path.rename

    def raced(self: Path, target: Path) -> Path:
        if self == path:
            rename(self, tmp_path / "taken.part")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    assert partials.claim(TASK) is None


def test_the_largest_is_taken_first(partials: Partials) -> None:
    """Of several, most is saved by the longest."""
    left(partials, b"ab")
    left(partials, b"abcd")
    left(partials, b"abc")
    assert claimed(partials) == b"abcd"


def test_after_a_crash_of_the_machine_only_synced_bytes_count(
    partials: Partials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was never synced may be zeros by now: what was kept in order is trusted, what a crash left is not."""
    left(partials, b"abc", task="kie/in-order")
    left(partials, b"abc", task="kie/crashed", kept=False)
    monkeypatch.setattr(partial, "_boot", lambda: "another")
    assert claimed(partials, "kie/in-order") == b"abc"
    assert claimed(partials, "kie/crashed") is None


@pytest.mark.parametrize("note", [b"", b"{}", b"rubbish", None])
def test_without_its_note_a_file_is_worth_nothing(partials: Partials, note: bytes | None, tmp_path: Path) -> None:
    """Nobody can tell what it is the beginning of, so it goes."""
    beside = left(partials, b"abc").with_suffix(".note")
    beside.unlink() if note is None else beside.write_bytes(note)
    assert claimed(partials) is None
    assert partials.sweep() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_sweep_keeps_what_can_be_gone_on_from(partials: Partials, tmp_path: Path) -> None:
    """At start what a crash left goes, unless somebody can go on from it."""
    path = left(partials, b"abc", kept=False)
    old = left(partials, b"abc", task="kie/old")
    for each in (old, old.with_suffix(".note")):
        os.utime(each, (time.time() - LONGEST_KEPT_S - 60,) * 2)
    (tmp_path / "stray.tmp").write_bytes(b"")
    (tmp_path / "orphan.note").write_bytes(b"{}")
    assert partials.sweep() == 3
    assert sorted(tmp_path.iterdir()) == [path.with_suffix(".note"), path]


def test_partial_files_stay_within_bounds(partials: Partials, tmp_path: Path) -> None:
    """The oldest go first, so that files that never come whole cannot fill the disk."""
    first = left(partials, bytes(600), task="kie/1")
    os.utime(first, (time.time() - 60,) * 2)
    left(partials, bytes(600), task="kie/2")
    assert claimed(partials, "kie/1") is None
    assert claimed(partials, "kie/2") == bytes(600)
    assert len(list(tmp_path.glob("*.part"))) == 1


def test_what_is_not_ours_is_neither_followed_nor_removed(partials: Partials, tmp_path: Path) -> None:
    """A mount's folder, somebody's file, a link that leads elsewhere: none is claimed, cut back or swept."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_bytes(b"")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.write_bytes(bytes(100))
    link = partials.new(TASK)
    link.symlink_to(elsewhere)
    partials.note(link, identity=LINK, known=KNOWN, synced_bytes=10)
    assert partials.claim(TASK) is None
    partials.sweep()
    assert elsewhere.stat().st_size == 100
    assert (tmp_path / "lost+found").is_dir()
    assert (tmp_path / "notes.txt").exists()


def test_what_is_over_is_forgotten(partials: Partials, tmp_path: Path) -> None:
    """Once a task has its end nothing of it stays, of however many attempts; what somebody works on does."""
    left(partials, b"abc")
    left(partials, b"abcd")
    left(partials, b"abc", task="kie/2")
    working = partials.claim("kie/2")
    assert working is not None
    partials.forget_task(TASK)
    partials.forget_task("kie/2")
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == [working.path]
    assert not partials.drop_oldest()
    os.close(working.file)
    assert partials.drop_oldest()
    assert list(tmp_path.iterdir()) == []


def whole(partials: Partials, content: bytes, *, asked: str = LINK, claimed: str = "", task: str = TASK) -> Path:
    """Leave what an attempt leaves that proved a file and could not store it."""
    path = left(partials, content, task=task)
    proven = Proven(
        asked=asked,
        claimed=claimed,
        link="https://cdn.example.com/a.wav",
        came_by=LINK,
        size_bytes=len(content),
        sha256="0" * 64,
        format=Format(
            container="RIFF", codec="pcm", sample_rate_hz=1, channels=1, bits_per_sample=8, frames=1, duration_s=1.0
        ),
        warnings=(),
        evidence=Evidence(trust=("token",), transport="content_length"),
    )
    partials.note(path, identity=LINK, known=KNOWN, synced_bytes=len(content), proven=proven)
    return path


def test_a_whole_file_waits_for_whoever_asks_for_it(partials: Partials) -> None:
    """It is taken before a longer part, and an attempt at another link neither gets nor destroys it."""
    left(partials, b"abcdef")
    path = whole(partials, b"abc")
    other = partials.claim(TASK, lambda proven: proven.asked == "another link")
    assert other is not None
    assert other.note.proven is None
    os.close(other.file)
    claim = partials.claim(TASK, lambda proven: proven.asked == LINK)
    assert claim is not None
    assert claim.note.proven is not None
    assert claim.path.read_bytes() == b"abc"
    assert not path.exists()
    os.close(claim.file)


def test_whole_files_are_let_go_last(partials: Partials) -> None:
    """A cut download costs a part of a file, a whole one perhaps all of it: its link may be dead by now."""
    path = whole(partials, bytes(600), task="kie/whole")
    os.utime(path, (time.time() - 60,) * 2)
    left(partials, bytes(600), task="kie/cut")
    assert partials.tasks() == {name_of("kie/whole")}
    left(partials, bytes(100), task="kie/cut")
    assert partials.drop_oldest()
    assert partials.tasks() == {name_of("kie/whole")}
    assert not partials.drop_oldest()


def test_one_whole_file_of_a_reported_link_is_kept(partials: Partials) -> None:
    """Copies of one task do not pile up; what came for another reported link, or another task, or is in hand, stays."""
    whole(partials, b"one", claimed="a")
    other, another = whole(partials, b"two", claimed="b"), whole(partials, b"two", claimed="a", task="kie/2")
    in_hand = partials.claim(TASK, lambda proven: proven.claimed == "a")
    assert in_hand is not None
    newest = whole(partials, b"one", claimed="a")
    partials.supersede(newest, proven_of(newest))
    assert all(path.exists() for path in (in_hand.path, other, another, newest))
    os.close(in_hand.file)
    partials.supersede(newest, proven_of(newest))
    assert not in_hand.path.exists()
    assert all(path.exists() for path in (other, another, newest))


def proven_of(path: Path) -> Proven:
    """Return what is noted as proven of a file."""
    note = msgspec.json.decode(path.with_suffix(".note").read_bytes(), type=Note)
    assert note.proven is not None
    return note.proven


KILLED = """
import os, pathlib, signal, sys
from downloader.partial import Partials
step, left = int(sys.argv[2]), [0]
def killing(call):
    def called(*arguments, **named):
        if left[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] += 1
        return call(*arguments, **named)
    return called
for name in ("hardlink_to", "rename", "unlink"):
    setattr(pathlib.Path, name, killing(getattr(pathlib.Path, name)))
claim = Partials(pathlib.Path(sys.argv[1]), max_bytes=10**6).claim("kie/1", lambda _: True)
print(left[0])
sys.exit(0 if claim else 1)
"""


@pytest.mark.parametrize("swept", [False, True], ids=["claimed at once", "after a start"])
def test_a_kill_at_any_step_of_taking_a_whole_file_loses_nothing(
    partials: Partials, tmp_path: Path, *, swept: bool
) -> None:
    """Whatever name it has then, its note is beside it; what is left of the other name goes in the end."""
    steps, ended = 0, False
    while not ended:
        whole(partials, b"whole")
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(steps)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        ended = run.returncode == 0
        assert ended or run.returncode == -signal.SIGKILL, run.stderr
        if swept:
            partials.sweep()
        claim = partials.claim(TASK, lambda _: True)
        assert claim is not None, f"lost after step {steps}"
        assert (claim.path.read_bytes(), claim.note.proven is not None) == (b"whole", True)
        os.close(claim.file)
        partials.forget_task(TASK)
        partials.sweep()
        assert list(tmp_path.iterdir()) == []
        steps += 1
    assert steps == 4


def test_a_sweep_leaves_a_note_that_is_being_given_to_a_new_name(
    partials: Partials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that starts meanwhile takes it for nobody's orphan."""
    whole(partials, b"whole")
    rename = Path.rename

    def raced(self: Path, target: Path) -> Path:
        partials.sweep()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", raced)
    claim = partials.claim(TASK, lambda _: True)
    assert claim is not None
    assert proven_of(claim.path).size_bytes == 5
    os.close(claim.file)
