"""The table of messages in the embedded queue: its schema and every statement on it.

Responsible for: SQL, and the translation between rows and the port's models. Each function is one step inside a
transaction of `shared.messaging.journal` (or one read). It must not open, commit or wait for anything.

A row is ready when it is not leased and its time has come; parked and unrecognised messages are rows of their own
queues, which nobody leases.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from shared.errors import NotRoutableError, Reason
from shared.messaging.port import Kept, Message
from shared.messaging.topology import CRASH_LOOP_LIMIT, parked_queue, service_of

Position = tuple[float, int]
"""Where in a queue to read on: after the row with this turn and id."""

FIRST: Position = (0.0, 0)

SCHEMA = """
CREATE TABLE IF NOT EXISTS queue (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    leased INTEGER NOT NULL DEFAULT 0,
    available_at REAL NOT NULL,
    deliveries INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    first_seen REAL,
    reason TEXT,
    came_from TEXT NOT NULL DEFAULT '',
    parked_at REAL,
    event_id TEXT NOT NULL,
    body BLOB NOT NULL,
    second_chance INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS message_by_turn ON message (queue, leased, available_at, id);
"""
"""Times are Unix seconds. Ids only grow, so that a message never inherits the name of another."""

_INSERT = "INSERT INTO message (queue, available_at, event_id, body) VALUES (?, ?, ?, ?)"
_READY = """
SELECT id, event_id, attempts, first_seen, reason, deliveries, body, second_chance FROM message
WHERE queue = ? AND leased = 0 AND available_at <= ? ORDER BY available_at, id LIMIT ?
"""
_NEXT_TURN = "SELECT min(available_at) FROM message WHERE queue = ? AND leased = 0"
_LEASE = "UPDATE message SET leased = 1, deliveries = deliveries + 1 WHERE id = ?"
_PUT_BACK = """
UPDATE message SET queue = ?, leased = 0, deliveries = 0, available_at = ?, attempts = ?, first_seen = ?, reason = ?
WHERE id = ?
"""
_PARK = """
UPDATE message SET came_from = queue, queue = ?, reason = ?, first_seen = coalesce(first_seen, ?), parked_at = ?,
    available_at = ?, leased = 0
WHERE id = ?
"""
_REPLAY = """
UPDATE message SET queue = came_from, came_from = '', reason = NULL, parked_at = NULL, attempts = 0,
    deliveries = 0, first_seen = NULL, available_at = ?, leased = 0, second_chance = ?
WHERE queue = ? AND id = ? AND came_from != ''
"""
_PAGE = """
SELECT id, event_id, came_from, reason, attempts, first_seen, parked_at, body, second_chance, available_at FROM message
WHERE queue = ? AND leased = 0 AND (available_at, id) > (?, ?) ORDER BY available_at, id LIMIT ?
"""
_WEIGH = "SELECT count(*), sum(length(body)) FROM message WHERE queue = ?"
_NAMED = """
SELECT id, event_id, came_from, reason, attempts, first_seen, parked_at, body, second_chance, available_at FROM message
WHERE queue = ? AND id = ?
"""


def declare(db: sqlite3.Connection, queues: Sequence[str]) -> None:
    """Create the queues that are missing, and what an earlier version's file lacks. No queue is ever removed here."""
    if "second_chance" not in {row[1] for row in db.execute("PRAGMA table_info(message)")}:
        db.execute("ALTER TABLE message ADD COLUMN second_chance INTEGER NOT NULL DEFAULT 0")
    db.executemany("INSERT OR IGNORE INTO queue (name) VALUES (?)", [(queue,) for queue in queues])


def release(db: sqlite3.Connection) -> int:
    """Hand out again whatever a process that is gone had in hand; return how many messages that were."""
    return db.execute("UPDATE message SET leased = 0 WHERE leased = 1").rowcount


def insert(db: sqlite3.Connection, queues: Sequence[str], event_id: str, body: bytes, now: float) -> None:
    """Put one message into several queues, or into none.

    Raises:
        NotRoutableError: one of the queues does not exist, or none was asked for.
    """
    missing = [q for q in queues if db.execute("SELECT 1 FROM queue WHERE name = ?", (q,)).fetchone() is None]
    if missing or not queues:
        raise NotRoutableError(Reason.NOT_ROUTABLE, f"no queue {', '.join(missing) or 'is bound'} to take the message")
    db.executemany(_INSERT, [(queue, now, event_id, body) for queue in queues])


def lease(db: sqlite3.Connection, queue: str, most: int, now: float) -> tuple[list[tuple[int, Message]], float | None]:
    """Take up to `most` messages whose turn has come.

    A message that has been taken too often without being settled keeps killing its process: it is parked.

    Returns:
        The messages with their ids, and when the next one's turn comes; None where none waits.
    """
    rows = db.execute(_READY, (queue, now, most)).fetchall()
    for row in rows:
        if row[5] >= CRASH_LOOP_LIMIT:
            park(db, row[0], parked_queue(service_of(queue)), Reason.DELIVERY_LIMIT, now)
        else:
            db.execute(_LEASE, (row[0],))
    following = oldest(db, queue)
    return [(row[0], _message(queue, row, now)) for row in rows if row[5] < CRASH_LOOP_LIMIT], following


def delete(db: sqlite3.Connection, message_id: int) -> int:
    """Forget a message; return how many there were (0 or 1)."""
    return db.execute("DELETE FROM message WHERE id = ?", (message_id,)).rowcount


def delete_kept(db: sqlite3.Connection, queue: str, message_id: str) -> int:
    """Forget a kept message, unless it has left its queue meanwhile; return how many there were (0 or 1)."""
    return db.execute("DELETE FROM message WHERE queue = ? AND id = ?", (queue, message_id)).rowcount


def put_back(
    db: sqlite3.Connection, message_id: int, message: Message, reason: Reason | None, when: float, queue: str
) -> None:
    """Let a message in hand wait in a queue; with a reason, one more attempt has failed.

    Raises:
        NotRoutableError: that queue is another one than the message's, and does not exist.
    """
    if queue != message.queue:
        _require(db, queue)
    attempts = message.attempts + (1 if reason else 0)
    latest = reason or message.last_reason
    first_seen = message.first_seen.timestamp()
    db.execute(_PUT_BACK, (queue, when, attempts, first_seen, str(latest) if latest else None, message_id))


def park(
    db: sqlite3.Connection, message_id: int, target: str, reason: Reason, now: float, first_seen: float | None = None
) -> None:
    """Move a message in hand to a parked queue; with when it was first handed over, where its row does not say.

    Raises:
        NotRoutableError: that queue does not exist.
    """
    _require(db, target)
    db.execute(_PARK, (target, str(reason), first_seen, now, now, message_id))


def replay(
    db: sqlite3.Connection, queue: str, message_ids: Sequence[str], now: float, *, second_chance: bool = False
) -> int:
    """Send parked messages back to where they came from, as if new; return how many there were."""
    return sum(db.execute(_REPLAY, (now, second_chance, queue, message_id)).rowcount for message_id in message_ids)


def page(db: sqlite3.Connection, queue: str, after: Position, most: int) -> tuple[list[Kept], Position]:
    """Return up to `most` kept messages that follow, oldest first, and where the next page starts."""
    rows = db.execute(_PAGE, (queue, *after, most)).fetchall()
    return [_kept(row) for row in rows], (rows[-1][-1], rows[-1][0]) if rows else after


def named(db: sqlite3.Connection, queue: str, message_ids: Sequence[str]) -> list[Kept]:
    """Return those of the named messages that are (still) kept there."""
    found = (db.execute(_NAMED, (queue, message_id)).fetchone() for message_id in message_ids)
    return [_kept(row) for row in found if row is not None]


def weigh(db: sqlite3.Connection, queue: str) -> tuple[int, int]:
    """Return how many messages a queue holds, and the bytes of their bodies. Reads them all."""
    count, size = db.execute(_WEIGH, (queue,)).fetchone()
    return count, size or 0


def oldest(db: sqlite3.Connection, queue: str) -> float | None:
    """Return when the next message's turn came or comes, in Unix seconds; None where none waits."""
    moment: float | None = db.execute(_NEXT_TURN, (queue,)).fetchone()[0]
    return moment


def unused_bytes(db: sqlite3.Connection) -> int:
    """Return how much can be put into the file before it grows."""
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
    return int(pages * page_bytes)


def depths(db: sqlite3.Connection) -> dict[str, int]:
    """Return the number of messages in every queue, those in hand included."""
    counts = dict(db.execute("SELECT queue, count(*) FROM message GROUP BY queue"))
    return {name: counts.get(name, 0) for (name,) in db.execute("SELECT name FROM queue")}


def _require(db: sqlite3.Connection, queue: str) -> None:
    if db.execute("SELECT 1 FROM queue WHERE name = ?", (queue,)).fetchone() is None:
        raise NotRoutableError(Reason.NOT_ROUTABLE, f"no queue {queue} to take the message")


def _message(queue: str, row: Sequence[Any], now: float) -> Message:
    _, event_id, attempts, first_seen, reason, deliveries, body, second_chance = row
    return Message(
        body=body,
        event_id=event_id,
        queue=queue,
        attempts=attempts,
        first_seen=datetime.fromtimestamp(now if first_seen is None else first_seen, UTC),
        last_reason=Reason(reason) if reason else None,
        redelivered=deliveries > 0,
        second_chance=bool(second_chance),
    )


def _kept(row: Sequence[Any]) -> Kept:
    message_id, event_id, came_from, reason, attempts, first_seen, parked_at, body, second_chance, _ = row
    return Kept(
        id=str(message_id),
        event_id=event_id,
        queue=came_from,
        reason=Reason(reason) if reason else None,
        attempts=attempts,
        first_seen=None if first_seen is None else datetime.fromtimestamp(first_seen, UTC),
        parked_at=None if parked_at is None else datetime.fromtimestamp(parked_at, UTC),
        body=body,
        second_chance=bool(second_chance),
    )
