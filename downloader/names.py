"""What the objects of one task are called in storage.

Responsible for: keys. Pure. Every name is safe on any storage, whatever the vendor put into the task id.
"""

import re
from dataclasses import dataclass
from hashlib import sha256

_PLAIN = re.compile(r"(?![0-9a-f]{64})[A-Za-z0-9_-]{1,64}")
"""What looks like a SHA-256 is not plain, so that no id can take the name of another one that stands as its SHA-256."""

_AUDIO_END = re.compile(r"(?:\.v[1-9][0-9]{0,8})?\.wav")


@dataclass(frozen=True, slots=True)
class Names:
    """The keys of one task.

    Attributes:
        stem: `{vendor}/{shard}/{task_id}`; a task id that is not plain stands as its SHA-256.
    """

    stem: str

    @property
    def manifest(self) -> str:
        """The commit point."""
        return f"{self.stem}.json"

    @property
    def announced(self) -> str:
        """Made after `conversion.stored` was confirmed."""
        return f"{self.stem}.announced"

    @property
    def rejected(self) -> str:
        """The record of a rejection."""
        return f"{self.stem}.rejected.json"

    @property
    def rejected_too(self) -> str:
        """The record of the second fact, where the vendor has failed and we gave up as well."""
        return f"{self.stem}.rejected.too.json"

    @property
    def expired(self) -> str:
        """A copy of the latest tombstone, made before retention deletes the audio: from then on it may be missing."""
        return f"{self.stem}.expired"

    @property
    def expiry_announced(self) -> str:
        """Made after `file.expired` for what `expired` says was confirmed."""
        return f"{self.stem}.expired.announced"

    def rejection_announced(self, reason: str) -> str:
        """Made after `conversion.rejected` with this reason was confirmed."""
        return f"{self.stem}.rejected.{reason}.announced"

    def conflict_announced(self, claimed_identity: str) -> str:
        """Made after `conversion.conflicting` with this claim was confirmed."""
        return f"{self.stem}.conflicting.{claimed_identity}.announced"

    def risk_announced(self, percent: int) -> str:
        """Made after `conversion.at_risk` with this threshold was confirmed."""
        return f"{self.stem}.at_risk.{percent}.announced"

    def gone(self, revision: int) -> str:
        """Made after retention deleted all that this revision and those before it name: whatever is there came back."""
        return f"{self.stem}.v{revision}.gone"

    def revision(self, number: int) -> str:
        """What follows the number before: a revision of the manifest, or a tombstone; the first manifest is number 1.

        Kept for ever. The first one is there only once a person replaced the file.
        """
        return f"{self.stem}.v{number}.json"

    def replacement_announced(self, revision: int) -> str:
        """Made after `file.replaced` for this revision was confirmed."""
        return f"{self.stem}.v{revision}.announced"

    def audio(self, digest: str, *, revision: int | None = None) -> str:
        """The audio; its digest in the name means that nobody can replace what a manifest describes.

        Args:
            revision: that it comes back in after an earlier one's files were let go: whoever still deletes those must
                not find this one under their name.
        """
        return f"{self.stem}.{digest[:12]}.wav" if revision is None else f"{self.stem}.{digest[:12]}.v{revision}.wav"

    def is_audio(self, key: str, digest: str) -> bool:
        """Tell whether a key is that of audio with this digest, in whichever revision."""
        rest = key.removeprefix(f"{self.stem}.{digest[:12]}")
        return rest != key and _AUDIO_END.fullmatch(rest) is not None

    def waveform(self, digest: str) -> str:
        """The picture of the audio with this digest."""
        return f"{self.stem}.{digest[:12]}.png"

    def peaks(self, digest: str) -> str:
        """The peaks of the audio with this digest."""
        return f"{self.stem}.{digest[:12]}.peaks.json"


def names_of(vendor: str, task_id: str) -> Names:
    """Return the keys of a task.

    The shard is the first two hex digits of the SHA-256 of the task id, so that no folder grows without bound.
    """
    digest = sha256(task_id.encode()).hexdigest()
    plain = task_id if _PLAIN.fullmatch(task_id) else digest
    return Names(f"{vendor}/{digest[:2]}/{plain}")
