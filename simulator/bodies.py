"""The bytes of planned files.

Responsible for: turning a file's plan into its WAV, its size and its SHA-256, and for remembering what is asked often,
so that thousands of small files cost little. It must not know of requests or misbehaviour.
"""

from collections.abc import Iterator
from functools import lru_cache

from simulator.plan import FilePlan
from simulator.wavs import Flavour, Wav, wav

_SMALL_BYTES = 262_144


def size_of(plan: FilePlan) -> int:
    """Return the size in bytes of the file as served, whatever its seed.

    Raises:
        ValueError: there can be no such file.
    """
    return _wav(plan.flavour, plan.size_bytes, plan.duration_s, 0).size_bytes


def sha256_of(plan: FilePlan) -> str:
    """Return the SHA-256 of the file as served, in hex; computed once for equal plans, in constant memory."""
    return _sha256(*_key(plan))


def blocks_of(plan: FilePlan, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from start up to, not including, end."""
    if size_of(plan) <= _SMALL_BYTES:
        yield _small(*_key(plan))[start:end]
    else:
        yield from _wav(*_key(plan)).blocks(start, end)


def etag_of(plan: FilePlan) -> str:
    """Return a strong entity tag: equal for equal bytes."""
    return f'"{plan.flavour}-{plan.size_bytes or plan.duration_s}-{plan.seed}"'


def _key(plan: FilePlan) -> tuple[Flavour, int | None, float | None, int]:
    return plan.flavour, plan.size_bytes, plan.duration_s, plan.seed or 0


@lru_cache(maxsize=64)
def _wav(flavour: Flavour, size_bytes: int | None, duration_s: float | None, seed: int) -> Wav:
    return wav(size_bytes=size_bytes, duration_s=duration_s, seed=seed, flavour=flavour)


@lru_cache(maxsize=65_536)
def _sha256(flavour: Flavour, size_bytes: int | None, duration_s: float | None, seed: int) -> str:
    return _wav(flavour, size_bytes, duration_s, seed).sha256()


@lru_cache(maxsize=256)
def _small(flavour: Flavour, size_bytes: int | None, duration_s: float | None, seed: int) -> bytes:
    return b"".join(_wav(flavour, size_bytes, duration_s, seed).blocks())
