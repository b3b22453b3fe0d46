"""The keys of a task: safe whatever the vendor put into its id, and its alone."""

from hashlib import sha256
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.names import Names, names_of
from shared.errors import Reason
from shared.vendors import Vendor

PLAIN = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
HOSTILE = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\x00b",
        "a.json",
        "a\n",
        "~",
        "%2e%2e",
        "é",
        "x" * 65,
    ]
)
TASK_IDS = st.one_of(PLAIN, HOSTILE, st.text(max_size=200), st.binary(min_size=32, max_size=32).map(bytes.hex))
VENDORS = st.sampled_from(list(Vendor))


def keys(names: Names) -> set[str]:
    """Return one of every kind of key."""
    return {
        names.manifest,
        names.announced,
        names.rejected,
        names.rejection_announced(Reason.TOO_LARGE),
        names.conflict_announced("0" * 32),
        names.conflict_announced("code--1"),
        names.risk_announced(50),
        names.audio("0" * 64),
        names.audio("0" * 64, revision=3),
        names.revision(3),
        names.gone(3),
    }


@given(PLAIN)
def test_a_plain_id_stays_readable(task_id: str) -> None:
    """A person finds a task's file by its id; only what looks like a digest stands as its own digest."""
    digest = sha256(task_id.encode()).hexdigest()
    expected = digest if len(task_id) == 64 and set(task_id) <= set("0123456789abcdef") else task_id
    assert names_of("apibox", task_id).stem == f"apibox/{digest[:2]}/{expected}"


@pytest.mark.parametrize("task_id", ["", "a.b", "../x", "x" * 65, "ä", "a b", "a\n", "0" * 64])
def test_any_other_id_stands_as_its_digest(task_id: str) -> None:
    """What a file system could misread never reaches it."""
    digest = sha256(task_id.encode()).hexdigest()
    assert names_of("kie", task_id).stem == f"kie/{digest[:2]}/{digest}"


@given(VENDORS, TASK_IDS)
def test_no_key_leaves_its_vendors_folder(vendor: Vendor, task_id: str) -> None:
    """A task id cannot climb out of its folder, hide a file, or make a name no file system takes."""
    for key in keys(names_of(vendor, task_id)):
        folder, shard, name = key.split("/")
        assert folder == vendor
        assert len(shard) == 2
        assert not name.startswith(".")
        assert name.isascii()
        assert name.isprintable()
        assert len(name) < 200


@given(VENDORS, VENDORS, TASK_IDS, TASK_IDS)
def test_different_tasks_share_no_key(one: Vendor, other: Vendor, task_id: str, other_id: str) -> None:
    """No task can take the place of another one's manifest, audio or marker."""
    if (one, task_id) != (other, other_id):
        assert not keys(names_of(one, task_id)) & keys(names_of(other, other_id))


def test_an_id_that_is_anothers_digest_shares_no_key() -> None:
    """A vendor that names a task by the digest of another id, chosen to fall into the same shard, gains nothing."""
    digests = ((odd, sha256(odd.encode()).hexdigest()) for odd in (f"odd id {number}" for number in count()))
    odd, digest = next(pair for pair in digests if sha256(pair[1].encode()).hexdigest()[:2] == pair[1][:2])
    assert not keys(names_of("apibox", odd)) & keys(names_of("apibox", digest))


@given(PLAIN)
def test_the_same_id_in_other_case_shares_no_key(task_id: str) -> None:
    """Two tasks whose ids differ in nothing but case are two tasks."""
    if task_id.upper() != task_id.lower():
        assert not keys(names_of("kie", task_id.upper())) & keys(names_of("kie", task_id.lower()))


def test_audio_is_told_by_its_digest_in_whichever_revision() -> None:
    """Audio that came back has another name than before, and both are of the one digest alone."""
    names, digest = names_of("kie", "one"), "a" * 64
    assert names.audio(digest) != names.audio(digest, revision=3)
    for key in (names.audio(digest), names.audio(digest, revision=3)):
        assert names.is_audio(key, digest)
        assert not names.is_audio(key, "b" * 64)
        assert not names_of("kie", "two").is_audio(key, digest)
    for key in (
        names.waveform(digest),
        names.manifest,
        f"{names.audio(digest)}.x",
        f"{names.stem}.{digest[:12]}.v.wav",
    ):
        assert not names.is_audio(key, digest)
