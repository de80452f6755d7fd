"""The dedupe store in a SQLite file that processes can share, and the queue of events to handle."""

import os
import sqlite3
import uuid
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Self, TypeVar

import attrs

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._store.sqlite import Request, SharedFile, UnusableError, reason
from convertrilo.dedupe.memory import LEASE, Claim, Key
from convertrilo.errors import ConfigurationError

_T = TypeVar("_T")

_APPLICATION_ID = 0x43565744  # "CVWD"
_PRUNE_EVERY = 1_000
_MAX_PARAMETERS = 500

# `until` is the time from which a row may be claimed: its claim ends then, or the queued event is due then. `until` is
# NULL once the event is handled.
_MIGRATIONS = (
    (
        """CREATE TABLE events (
        job TEXT NOT NULL,
        event TEXT NOT NULL,
        until REAL,
        owner TEXT,
        handled_at REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        payload BLOB,
        PRIMARY KEY (job, event)
    ) WITHOUT ROWID""",
        "CREATE INDEX events_queued ON events (until) WHERE payload IS NOT NULL",
        "CREATE INDEX events_handled ON events (handled_at) WHERE handled_at IS NOT NULL",
    ),
)


@attrs.frozen
class Queued:
    """An event from the queue, claimed for the caller of `take`."""

    key: Key
    payload: bytes = attrs.field(repr=False)
    attempts: int
    """The number of attempts to handle the event, this one included."""


class SQLiteDedupe:
    """Remembers events in one SQLite file that many processes may share, and holds the queue of events to handle.

    Every change is on disk when its method returns. The file is created with mode 0600, because the queue holds the
    bodies of deliveries, with the `metadata` of your jobs.

    Entering raises `ConfigurationError` if the file cannot be used.

    Args:
        path: The file, on a local disk. It is created if it does not exist.
        remember: The minimum time in seconds for which a handled event is remembered.
        clock: Tells the time.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, remember: float = 30 * 86400.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._file = SharedFile(path, application_id=_APPLICATION_ID, migrations=_MIGRATIONS)
        self._remember = remember
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._finished = 0

    async def __aenter__(self) -> Self:
        try:
            await self._file.enter()
        except (OSError, sqlite3.Error, UnusableError) as error:
            raise self._error(error) from error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._file.leave()

    # ---- claims

    async def claim(self, key: Key) -> Claim:
        """Claim an event for `LEASE` seconds, unless it was handled or is claimed."""
        now = self._clock.time()

        def work(connection: sqlite3.Connection) -> Claim:
            claimed = connection.execute(
                "INSERT INTO events (job, event, until, owner) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (job, event)"
                " DO UPDATE SET until = ?3, owner = ?4 WHERE until <= ?5",
                (*_stored(key), now + LEASE, self._owner, now),
            )
            if claimed.rowcount:
                return "mine"
            row = connection.execute("SELECT until FROM events WHERE job = ? AND event = ?", _stored(key)).fetchone()
            return "done" if row == (None,) else "busy"

        return await self._do(work)

    async def renew(self, key: Key) -> None:
        """Extend a claim by `LEASE` seconds from now."""
        await self._change(
            "UPDATE events SET until = ?3 WHERE job = ?1 AND event = ?2 AND owner = ?4 AND until IS NOT NULL",
            *(*_stored(key), self._clock.time() + LEASE, self._owner),
        )

    async def finish(self, key: Key) -> None:
        """Remember that an event was handled."""
        now = self._clock.time()

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO events (job, event, handled_at) VALUES (?1, ?2, ?3) ON CONFLICT (job, event)"
                " DO UPDATE SET until = NULL, owner = NULL, handled_at = ?3, payload = NULL",
                (*_stored(key), now),
            )
            if self._finished % _PRUNE_EVERY == 0:
                connection.execute("DELETE FROM events WHERE handled_at < ?", (now - self._remember,))
            self._finished += 1

        await self._do(work)

    async def release(self, key: Key) -> None:
        """Give up a claim; an event in the queue is due at once, and the attempt is not counted."""

        def work(connection: sqlite3.Connection) -> None:
            mine = (*_stored(key), self._owner)
            where = "WHERE job = ? AND event = ? AND owner = ?"
            connection.execute(f"DELETE FROM events {where} AND payload IS NULL", mine)  # noqa: S608  # a constant
            connection.execute(
                f"UPDATE events SET owner = NULL, until = 0, attempts = max(attempts - 1, 0) {where}",  # noqa: S608  # a constant
                mine,
            )

        await self._do(work)

    async def unseen(self, job_ids: Sequence[str], events: Collection[str]) -> list[str]:
        """Return the jobs for which none of these events was handled or is in the queue."""

        def work(connection: sqlite3.Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(job_ids), _MAX_PARAMETERS):
                chunk = [_text(job_id) for job_id in job_ids[start : start + _MAX_PARAMETERS]]
                rows = connection.execute(
                    f"SELECT job FROM events WHERE job IN ({_marks(chunk)}) AND event IN ({_marks(events)})"  # noqa: S608  # question marks
                    " AND (handled_at IS NOT NULL OR payload IS NOT NULL)",
                    (*chunk, *map(_text, events)),
                )
                found.update(job for (job,) in rows)
            return found

        found = await self._do(work)
        return [job_id for job_id in job_ids if _text(job_id) not in found]

    # ---- the queue

    async def put(self, key: Key, payload: bytes) -> None:
        """Put an event into the queue, unless it was handled or is in the queue already."""
        await self._change(
            "INSERT INTO events (job, event, until, payload) VALUES (?1, ?2, 0, ?3) ON CONFLICT (job, event)"
            " DO UPDATE SET payload = ?3 WHERE until IS NOT NULL AND payload IS NULL",  # a claimed event, too
            *(*_stored(key), payload),
        )

    async def take(self) -> tuple[Queued | None, float | None]:
        """Claim and return the event that is due the longest; if none is due, return the time when the next is due."""
        now = self._clock.time()

        def work(connection: sqlite3.Connection) -> tuple[Queued | None, float | None]:
            row = connection.execute(
                "SELECT job, event, payload, attempts, until FROM events WHERE payload IS NOT NULL"
                " ORDER BY until LIMIT 1"
            ).fetchone()
            if row is None or row[4] > now:
                return None, row and row[4]
            job, event, payload, attempts, _ = row
            connection.execute(
                "UPDATE events SET until = ?, owner = ?, attempts = ? WHERE job = ? AND event = ?",
                (now + LEASE, self._owner, attempts + 1, job, event),
            )
            return Queued((job, event), payload, attempts + 1), None

        return await self._do(work)

    async def postpone(self, key: Key, seconds: float) -> None:
        """Put an event whose handler failed back into the queue; the event is due again after `seconds`."""
        await self._change(
            "UPDATE events SET until = ?3, owner = NULL WHERE job = ?1 AND event = ?2 AND owner = ?4",
            *(*_stored(key), self._clock.time() + seconds, self._owner),
        )

    async def drop(self, key: Key) -> None:
        """Delete an event in any state."""
        await self._change("DELETE FROM events WHERE job = ? AND event = ?", *_stored(key))

    # ---- the file

    async def _change(self, statement: str, *values: object) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._do(work)

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return await self._file.do(Request(work))
        except (OSError, sqlite3.Error, UnusableError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(f"the dedupe store {self._file.path} cannot be used: {reason(error)}")


def _stored(key: Key) -> tuple[str, str]:
    return _text(key[0]), _text(key[1])


def _text(value: str) -> str:
    """Return text that SQLite can store: JSON strings may hold lone surrogates, which UTF-8 cannot encode."""
    return value.encode(errors="backslashreplace").decode()


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
