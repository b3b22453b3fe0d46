"""Replacement: a person puts another file in the place of a stored one.

Responsible for: proving the new file exactly as a download is proven, keeping both files and every revision of the
manifest, and telling `file.replaced`. It must not know the command line, nor decide whether the person is right.

Each revision is created under a name of its own, only if nobody has that name: this is its commit point, so that of
two people one wins. Only then is it put in the place of the manifest, by one rename: whoever reads, reads the old or
the new one whole. What a crash left behind a commit point is finished by the next command for the task, whatever that
asks for; the same command again changes nothing. Why so: `docs/adr/0008-replacement.md`.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from downloader import manifest as records
from downloader.attempt import Attempt
from downloader.fetch import BLOCK_BYTES, Fetcher, Sink
from downloader.flow import Handover
from downloader.manifest import Manifest, read_manifest
from downloader.names import Names, names_of
from downloader.staging import Staging
from downloader.storage import Storage, translating
from downloader.tombstone import Expiry, copied, next_of, read_revision, tell
from shared import events
from shared.clock import Clock
from shared.errors import PermanentError, Reason, RetryableError
from shared.events import Evidence, FileReplaced
from shared.links import identity, public, public_text
from shared.messaging.port import Publisher

LONGEST_EXPLANATION = 500


class RefusedError(Exception):
    """There is nothing that could be replaced now; the message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a new file came from, and how its end was known. `link` is whole, and never kept as it is."""

    transport: Literal["content_length", "chunked", "close_delimited", "content_range", "local_file"]
    link: str | None = None


Content = Callable[[Sink], Awaitable[Origin]]
"""Writes the new file into a sink."""


def from_link(fetcher: Fetcher, url: str) -> Content:
    """Return what fetches a link, past the fence like any other."""

    async def fetch(sink: Sink) -> Origin:
        fetched = await fetcher.fetch(url, sink)
        return Origin(fetched.transport, url)

    return fetch


def from_file(path: Path, *, max_bytes: int) -> Content:
    """Return what reads a file of this machine; it may be as large as a download. Meant for a process of its own."""

    def blocks() -> Iterator[bytes]:
        size_bytes = 0
        with translating(), path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                size_bytes += len(block)
                if size_bytes > max_bytes:
                    raise PermanentError(Reason.TOO_LARGE, f"over {max_bytes} bytes")
                yield block

    async def read(sink: Sink) -> Origin:
        async with Handover(None) as handover:
            for block in blocks():
                await handover.run(partial(sink.write, block))
        return Origin("local_file")

    return read


Outcome = Literal["replaced", "repaired", "unchanged"]


@dataclass(frozen=True, slots=True)
class Replaced:
    """What came of a command.

    Attributes:
        manifest: in its place now.
    """

    manifest: Manifest
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a task is.

    Attributes:
        next_number: of the revisions, which nobody has yet.
        expired: retention let the file of the current one go.
        once_expired: or of an earlier one: a late deletion may still be on its way to the names it had.
    """

    current: Manifest
    next_number: int
    expired: bool
    once_expired: bool


class Replacing:
    """Replaces files.

    Args:
        staging: proves the new file.
        storage: that the downloader keeps its files in; may be used beside it.
        publisher: confirms before it returns.
    """

    def __init__(self, *, staging: Staging, storage: Storage, publisher: Publisher, clock: Clock) -> None:
        self._staging = staging
        self._storage = storage
        self._publisher = publisher
        self._clock = clock

    async def replace(self, vendor: str, task_id: str, content: Content, *, explanation: str | None) -> Replaced:
        """Put a new file in the place of a task's; return what came of it.

        Idempotent: the file that has the place already changes nothing, and is told if it was not. Where what is kept
        is not what was proven any more, the same bytes take its place again, in the same revision. A file that
        retention let go is brought back as a revision of its own, also by the same bytes.

        Raises:
            RefusedError: nothing is stored of the task, it was not announced yet, or something else took its place now:
                another person's file, or retention's tombstone.
            RetryableError, PermanentError: the new file could not be had, is not whole, or could not be kept or told.
        """
        names = names_of(vendor, task_id)
        place = await self._finish(names, await self._stored(names, f"{vendor}/{task_id}"))
        async with self._staging.attempt() as attempt:
            origin = await content(attempt)
            new = await self._prove(place, names, attempt, origin, explanation)
            if new.sha256 == place.current.sha256 and not place.expired:
                return await self._repair(names, place.current, attempt)
            await self._storage.keep(attempt.path, new.audio)
        if not await self._is_whole(new):
            if await self._storage.exists(names.revision(new.revision)):
                await self._refuse(names, new.revision, new)  # retention deleted what had this name before
            raise _differs()
        await self._keep_first(names)
        if not await self._storage.create(names.revision(new.revision), records.write(new)):
            await self._refuse(names, new.revision, new)
        return Replaced((await self._finish(names, place.current)).current, "replaced")

    async def _repair(self, names: Names, current: Manifest, attempt: Attempt) -> Replaced:
        """Put proven bytes where the same ones should be, unless they are. No event: what is kept is what was told."""
        if await self._is_whole(current):
            return Replaced(current, "unchanged")
        await self._storage.keep(attempt.path, current.audio)
        whole = await self._is_whole(current)
        if isinstance(await next_of(self._storage, names, current.revision), Expiry):
            await self._refuse(names, current.revision + 1, current)
        if not whole:
            raise _differs()
        return Replaced(current, "repaired")

    async def _stored(self, names: Names, subject: str) -> Manifest:
        content = await self._storage.read(names.manifest)
        if content is None:
            raise RefusedError(f"No file is stored of {subject}, so there is nothing to replace.")
        if not await self._storage.exists(names.announced):
            raise RefusedError(
                f"The file of {subject} is stored, but not announced yet: replacing it now would announce another one"
                " under the same event id. Let the downloader run, and repeat the command."
            )
        return read_manifest(content)

    async def _keep_first(self, names: Names) -> None:
        """Keep the first manifest under the name of its revision; whoever commits the second one did so before."""
        if not await self._storage.exists(names.revision(1)):
            content = await self._storage.read(names.manifest)
            assert content is not None
            await self._storage.create(names.revision(1), content)

    async def _finish(self, names: Names, current: Manifest) -> _Place:
        """Bring the task to its latest revision, whoever committed it: put in place, then told; return where it is."""
        number, expiry = current.revision, None
        while (content := await self._storage.read(names.revision(number + 1))) is not None:
            following = read_revision(content)
            number += 1
            if isinstance(following, Expiry):
                expiry = following
                continue
            await self._storage.replace(names.manifest, content)  # who writes an older one after us finds ours next
            await self._tell(names, following)
            current, expiry = following, None
        if current.revision > 1:
            await self._tell(names, current)
        copy = await copied(self._storage, names)
        if number == current.revision and copy is not None and copy.revision >= number:
            expiry = copy  # from before tombstones stood among the revisions
        if expiry is not None:
            await tell(self._storage, self._publisher, names, expiry, current.traceparent)
        return _Place(current, number + 1, expired=expiry is not None, once_expired=bool(copy or expiry))

    async def _refuse(self, names: Names, number: int, new: Manifest) -> NoReturn:
        """Say who else's record stands at a number, and take away what was put under a name that it condemns."""
        subject = f"{new.vendor}/{new.task_id}"
        there = await next_of(self._storage, names, number - 1)
        if not isinstance(there, Expiry):
            raise RefusedError(
                f"Somebody else has just replaced the file of {subject}. Look at it (wavekeep show {new.task_id}), and"
                " repeat the command if yours is the right one."
            )
        await tell(self._storage, self._publisher, names, there, new.traceparent)
        await self._storage.delete(new.audio)  # what follows a tombstone has another name: nobody can name this one
        raise RefusedError(
            f"Retention has just let the file of {subject} go, before yours could take its place. Repeat the command:"
            " yours is then brought back as a revision of its own."
        )

    async def _is_whole(self, manifest: Manifest) -> bool:
        """Tell whether what is kept is what was proven; what is not there or cannot be read is not."""
        try:
            return await self._storage.digest(manifest.audio) == (manifest.size_bytes, manifest.sha256)
        except RetryableError:
            await self._storage.exists(manifest.audio)  # raises where the storage as a whole is away
            return False

    async def _tell(self, names: Names, manifest: Manifest) -> None:
        marker = names.replacement_announced(manifest.revision)
        if not await self._storage.exists(marker):
            event = events.make(
                manifest.replacement_announcement(), time=manifest.stored_at, traceparent=manifest.traceparent
            )
            await self._publisher.publish(
                event.data.EXCHANGE, event.routing_key, events.encode(event), event_id=event.id
            )
            await self._storage.create(marker, f"{event.id}\n".encode())

    async def _prove(
        self, place: _Place, names: Names, attempt: Attempt, origin: Origin, explanation: str | None
    ) -> Manifest:
        complete = origin.transport in {"content_length", "chunked"}
        proof = await self._staging.prove(attempt, body_proven_complete=complete)
        if proof.differs:
            raise RetryableError(Reason.DIGEST_DIFFERS, f"the bytes that came do not match {', '.join(proof.differs)}")
        judgement, digest = proof.judgement, proof.sha256
        current, revision = place.current, place.next_number
        audio = names.audio(digest, revision=revision if place.once_expired else None)
        return msgspec.structs.replace(
            current,
            revision=revision,
            audio=audio,
            uri=self._storage.uri(audio),
            size_bytes=attempt.size_bytes,
            sha256=digest,
            format=judgement.format,
            evidence=Evidence(
                trust=("operator",),
                transport=origin.transport,
                digest=proof.digest,
                matched=proof.matched,
            ),
            warnings=tuple(str(warning) for warning in judgement.warnings),
            quality=None,
            waveform=None,
            peaks=None,
            stored_at=self._clock().astimezone(UTC),
            event_id=events.event_id(current.vendor, current.task_id, FileReplaced.TYPE, str(revision), digest),
            replacement=records.Replacement(
                previous_sha256=current.sha256,
                link=None if origin.link is None else public(origin.link),
                link_identity=None if origin.link is None else events.digest(identity(origin.link)),
                explanation=None if explanation is None else public_text(explanation)[:LONGEST_EXPLANATION],
            ),
        )


def _differs() -> RetryableError:
    return RetryableError(Reason.STORED_FILE_DIFFERS, "the kept file is not the one that was proven")
