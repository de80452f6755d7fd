"""The durable record of keyed operations: written down before the request is sent, completed by its answer.

A `Journal` is one SQLite file. What it has confirmed survives the death of the process and of the machine: every change
is on disk (`synchronous=FULL`) before the call returns. Many tasks and several processes can use one file at once.

A commit costs a sync of the disk and two changes of thread, so tasks share them. The first to ask opens a batch and
waits for the batch before it; whoever asks meanwhile joins, and one transaction serves them all.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    IdempotencyConflictError,
    JournalError,
    OutcomeUnknownError,
)

State = Literal["pending", "answered", "unknown"]

_T = TypeVar("_T")

_APPLICATION_ID = 0x43565254
"""Marks a SQLite file as a journal ("CVRT"), so that another program's database is not taken for one."""

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE operations (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            operation TEXT NOT NULL,
            identity TEXT NOT NULL,
            name TEXT,
            first_sent_at REAL NOT NULL,
            answered_at REAL,
            claims INTEGER NOT NULL DEFAULT 1,
            body BLOB NOT NULL,
            answer BLOB
        )""",
        "CREATE INDEX operations_unanswered ON operations (id) WHERE answered_at IS NULL",
    ),
)
"""The statements that lead from each version of the schema to the next; `PRAGMA user_version` counts those applied."""

_COLUMNS = "SELECT id, operation, key, identity, name, first_sent_at, answered_at, body, answer FROM operations "
_UNANSWERED = _COLUMNS + "INDEXED BY operations_unanswered WHERE answered_at IS NULL AND id > :after AND first_sent_at "
_LISTED: dict[State, str] = {
    "pending": _UNANSWERED + ">= :edge ORDER BY id",
    "unknown": _UNANSWERED + "< :edge ORDER BY id",
    "answered": _COLUMNS + "WHERE answered_at IS NOT NULL AND id > :after ORDER BY id",
}
_PAGE_ENTRIES = 100
_PAGE_BYTES = 1 << 20

_PATIENCE = 10.0
"""Seconds to wait while another process holds the file; it does so for the length of a commit."""

_REASONS = {
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_PATIENCE:g} s",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; its directory must exist and be writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy, or move it away and start with a new one",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be written or read",
    sqlite3.SQLITE_NOTADB: "it is not a journal, or it is damaged",
    sqlite3.SQLITE_READONLY: "it is read-only",
}
_CLOSED = "it is not open; use it inside `async with`"
_NOTHING_SENT = "Nothing was sent."
_NOT_RECORDED = (
    "The service's answer is not recorded: the operation stays pending, and within the replay window the same call "
    "gets the same answer again, under the same key."
)
_STAYS = "The operation stays pending, which is harmless: its key still makes one job of it."
_FIND_OUT = (
    "Look for it in the service's dashboard, your webhooks or your own records. Then record its answer with "
    "`Journal.answer`, or, if it never happened, `Journal.drop` the key and call again."
)

# Closing any descriptor of a file drops all of the process's locks on it, SQLite's among them: while one thread
# creates a file, no other may go on to open it.
_creating = threading.Lock()


def _size(value: bytes | None) -> str:
    return "None" if value is None else f"<{len(value)} bytes>"


@attrs.frozen
class Entry:
    """One operation as the journal holds it.

    Attributes:
        operation: The contract's operation id, such as `createJob`.
        key: The idempotency key.
        identity: What the key stands for: the caller's own `key`, the `operation` or `external_id` that it was derived
            from, or this one `call`.
        name: What the operation is called, for people.
        body: The canonical body, without credentials.
        first_sent_at: When it was written down, just before it was first sent.
        answered_at: When its answer was written down.
        answer: The body of the answer as it was received. It may hold temporary permissions, such as an upload URL.
        state: At the time of reading: `answered`; or `pending`, which may be sent again under its key; or `unknown`,
            pending for longer than the replay window, after which the service may have forgotten the key.
        fresh: Whether the call that returns this entry wrote it down.
    """

    operation: str
    key: str
    identity: str
    name: str | None
    body: bytes = attrs.field(repr=_size)
    first_sent_at: datetime
    answered_at: datetime | None
    answer: bytes | None = attrs.field(repr=_size)
    state: State
    fresh: bool = False


class Journal:
    """A durable record of the operations of one or many processes, in one SQLite file.

    Enter it (`async with`) before use; a client and its user may both do so, and the last one out closes the file. It
    serves one event loop at a time, and is opened after a fork, not before.

    The file is created with mode 0600. It never holds credentials of the request; answers are stored as they were
    received, and may hold temporary permissions such as an upload URL, so treat the file as you treat those.

    A call that was handed to the disk is finished even if its task is cancelled: cancellation waits for the commit,
    which takes milliseconds, or up to 10 s where another process keeps the file locked.

    Entering raises `JournalError` where the file cannot be opened: no such directory, no permission, no space, damaged,
    not a journal, or written by a newer version. Only a file that is empty or a journal is ever changed.

    Args:
        path: The file, on a local disk; it is created if there is none.
        replay_window: Seconds after its first sending for which an unanswered operation may be sent again: no longer
            than the service remembers a key.
        clock: What tells the time.

    Raises:
        ConfigurationError: `replay_window` is negative or not a number.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, replay_window: float = 86400.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if not replay_window >= 0:
            raise ConfigurationError(f"replay_window must be a number of seconds of at least 0, not {replay_window}")
        self._store = _Store(path)
        self._window = replay_window
        self._clock = clock

    async def __aenter__(self) -> Self:
        try:
            await self._store.enter()
        except Exception as error:
            raise self._error(error, _NOTHING_SENT) from error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._store.leave()

    async def begin(self, *, operation: str, key: str, body: bytes, identity: str, name: str | None) -> Entry:
        """Write an operation down before it is sent, and return its entry as it is now.

        The entry is on disk when this returns. If it is `fresh` or `pending`, the caller may send the operation under
        its key; if it is `answered`, the answer is there. If this is cancelled, it leaves the journal as it was.

        Args:
            operation: The contract's operation id.
            key: The idempotency key.
            body: The canonical body, without credentials.
            identity: What the key stands for: `key`, `operation`, `external_id` or `call`.
            name: What the operation is called, for people.

        Raises:
            IdempotencyConflictError: The journal holds this key for another operation or body.
            OutcomeUnknownError: It was sent, never answered, and the replay window is over.
            JournalError: The journal cannot be written. Like the other two: nothing was sent.
        """
        now = self._clock.time()
        claim = partial(
            _claim, operation=operation, key=key, body=body, identity=identity, name=name, now=now, edge=self._edge(now)
        )
        request = _Request(claim)
        try:
            entry = await self._ask(request, _NOTHING_SENT, operation=operation, key=key)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except anyio.get_cancelled_exc_class():
            if request.results:
                with contextlib.suppress(JournalError):
                    await self.forget(key)
            raise
        return entry

    async def answer(self, key: str, answer: bytes) -> None:
        """Write down the answer to an operation. The first one stays; where the key was dropped, nothing is written.

        Args:
            key: The idempotency key.
            answer: The body of the answer as it was received.

        Raises:
            JournalError: The journal cannot be written; the operation stays pending.
        """
        work = partial(_answer, key=key, answer=answer, now=self._clock.time())
        await self._ask(_Request(work), _NOT_RECORDED, key=key)

    async def forget(self, key: str) -> None:
        """Take back one `begin` whose request provably did nothing: it was refused, or never sent.

        The entry goes when every `begin` of it was taken back and it is not answered. So one task cannot remove what
        another one has sent, nor a rerun what a process that died may have sent.

        Args:
            key: The idempotency key.

        Raises:
            JournalError: The journal cannot be written; the operation stays pending.
        """
        await self._ask(_Request(partial(_forget, key=key)), _STAYS, key=key)

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._ask(_Request(partial(_find, key=key, edge=self._edge(self._clock.time()))), key=key)

    def pending(self) -> AsyncIterator[Entry]:
        """Iterate over what was sent, is not answered and may be sent again; the oldest first."""
        return self._listed("pending")

    def answered(self) -> AsyncIterator[Entry]:
        """Iterate over what was answered; the oldest first."""
        return self._listed("answered")

    def unknown(self) -> AsyncIterator[Entry]:
        """Iterate over what was sent, was not answered in the replay window, and needs a decision; the oldest first."""
        return self._listed("unknown")

    async def drop(self, key: str) -> bool:
        """Remove an entry, whatever its state: the next call of this key is a new operation to the journal.

        Args:
            key: The idempotency key.

        Returns:
            Whether there was one.

        Raises:
            JournalError: The journal cannot be written.
        """
        return await self._ask(_Request(partial(_drop, key=key)), key=key)

    def _edge(self, now: float) -> float:
        """Return the time before which an unanswered operation is past the replay window."""
        return now - self._window

    async def _listed(self, state: State) -> AsyncIterator[Entry]:
        edge, after = self._edge(self._clock.time()), 0
        while page := await self._ask(_Request(partial(_page, state=state, after=after, edge=edge))):
            for _, entry in page:
                yield entry
            after = page[-1][0]

    async def _ask(
        self, request: "_Request[_T]", consequence: str = "", *, operation: str | None = None, key: str | None = None
    ) -> _T:
        """Have a request done; whatever keeps the file from it is a JournalError that tells the consequence."""
        try:
            return await self._store.do(request)
        except ConvertriloError:
            raise
        except Exception as error:
            raise self._error(error, consequence, operation, key) from error

    def _error(
        self, error: Exception, consequence: str, operation: str | None = None, key: str | None = None
    ) -> JournalError:
        reason = _REASONS.get(_code(error)) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        message = f"the journal {self._store.path} cannot be used: {reason}. {consequence}"
        return JournalError(message.rstrip(), operation=operation, idempotency_key=key)


def _look(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT id FROM operations LIMIT 1").fetchone()


def _claim(
    connection: sqlite3.Connection,
    *,
    operation: str,
    key: str,
    body: bytes,
    identity: str,
    name: str | None,
    now: float,
    edge: float,
) -> Entry:
    readable = None if name is None else name.encode(errors="backslashreplace").decode()  # file names may be any bytes
    inserted = connection.execute(
        "INSERT INTO operations (operation, key, identity, name, first_sent_at, body) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (key) DO NOTHING",
        (operation, key, identity, readable, now, body),
    )
    entry = _find(connection, key=key, edge=edge)
    assert entry is not None
    if inserted.rowcount:
        return attrs.evolve(entry, fresh=True)
    if entry.operation != operation or entry.body != body:
        other = "body" if entry.operation == operation else f"operation, {entry.operation}"
        raise IdempotencyConflictError(
            f"the journal holds this key for another {other}. {_NOTHING_SENT}",
            status=409,
            code="idempotency_conflict",
            operation=operation,
            idempotency_key=key,
        )
    if entry.state == "unknown":
        raise OutcomeUnknownError(
            f"it was first sent at {entry.first_sent_at.isoformat()} and never answered, and the service may have "
            f"forgotten its key since: sent again, it could be done twice. {_NOTHING_SENT}",
            find_out=_FIND_OUT,
            operation=operation,
            idempotency_key=key,
        )
    if entry.state == "pending":
        connection.execute("UPDATE operations SET claims = claims + 1 WHERE key = ?", (key,))
    return entry


def _answer(connection: sqlite3.Connection, *, key: str, answer: bytes, now: float) -> None:
    connection.execute(
        "UPDATE operations SET answered_at = ?, answer = ? WHERE key = ? AND answered_at IS NULL", (now, answer, key)
    )


def _forget(connection: sqlite3.Connection, *, key: str) -> None:
    connection.execute("UPDATE operations SET claims = claims - 1 WHERE key = ? AND answered_at IS NULL", (key,))
    connection.execute("DELETE FROM operations WHERE key = ? AND answered_at IS NULL AND claims <= 0", (key,))


def _drop(connection: sqlite3.Connection, *, key: str) -> bool:
    return connection.execute("DELETE FROM operations WHERE key = ?", (key,)).rowcount > 0


def _find(connection: sqlite3.Connection, *, key: str, edge: float) -> Entry | None:
    row = connection.execute(_COLUMNS + "WHERE key = ?", (key,)).fetchone()
    return None if row is None else _entry(row, edge)


def _page(connection: sqlite3.Connection, *, state: State, after: int, edge: float) -> list[tuple[int, Entry]]:
    page: list[tuple[int, Entry]] = []
    size = 0
    with contextlib.closing(connection.execute(_LISTED[state], {"after": after, "edge": edge})) as rows:
        for row in rows:
            entry = _entry(row, edge)
            page.append((row[0], entry))
            size += len(entry.body) + len(entry.answer or b"")
            if len(page) == _PAGE_ENTRIES or size > _PAGE_BYTES:
                break
    return page


def _entry(row: tuple[Any, ...], edge: float) -> Entry:
    _, operation, key, identity, name, first_sent_at, answered_at, body, answer = row
    state: State = "answered" if answered_at is not None else "pending" if first_sent_at >= edge else "unknown"
    return Entry(
        operation=operation,
        key=key,
        identity=identity,
        name=name,
        body=body,
        first_sent_at=datetime.fromtimestamp(first_sent_at, UTC),
        answered_at=None if answered_at is None else datetime.fromtimestamp(answered_at, UTC),
        answer=answer,
        state=state,
    )


class _UnusableError(Exception):
    """A file, or a journal, in a state in which it cannot be used."""


@attrs.define(eq=False)
class _Request(Generic[_T]):
    """What one task wants done in a transaction, and what came of it."""

    work: Callable[[sqlite3.Connection], _T]
    results: list[_T] = attrs.field(factory=list[_T])
    error: Exception | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        """Do the work; an error that is not the database's belongs to this request alone."""
        self.results, self.error = [], None
        try:
            self.results.append(self.work(connection))
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # the waiting task raises it
            self.error = error

    def fail(self, error: Exception) -> None:
        self.results, self.error = [], error


@attrs.define(eq=False)
class _Batch:
    """Requests that share a transaction."""

    requests: list[_Request[Any]] = attrs.field(factory=list[_Request[Any]])
    done: anyio.Event = attrs.field(factory=anyio.Event)
    ran: bool = False

    def fail(self, error: Exception) -> None:
        for request in self.requests:
            request.fail(error)


async def _to_the_end(step: Callable[[], Awaitable[object]]) -> None:
    """Await a repeatable step to its end, and let a cancellation pass only after it."""
    cancelled: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await step()
            break
        except anyio.get_cancelled_exc_class() as error:  # asyncio's own Task.cancel() goes through a shield
            cancelled = error
    if cancelled is not None:
        raise cancelled


class _Store:
    """A SQLite file in which the tasks of one event loop share transactions, and threads do the waiting."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self._users = 0
        self._connection: sqlite3.Connection | None = None
        self._access = threading.Lock()
        self._gathering: _Batch | None = None

    async def enter(self) -> None:
        if self._users == 0:  # primitives of the event loop that runs now
            self._turn = anyio.Lock()
            self._limiter = anyio.CapacityLimiter(1)
            self._gathering = None
        self._users += 1
        try:
            await self.do(_Request(_look))
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        self._users -= 1
        if not self._users:
            await _to_the_end(partial(anyio.to_thread.run_sync, self._close, limiter=self._limiter))

    async def do(self, request: _Request[_T]) -> _T:
        """Have a request done in a batch, and return its result when that is on disk, or raise its error."""
        if not self._users:
            raise _UnusableError(_CLOSED)
        batch = self._gathering
        if batch is not None:
            batch.requests.append(request)
            await _to_the_end(batch.done.wait)
        else:
            batch = self._gathering = _Batch([request])
            await _to_the_end(partial(self._lead, batch))
        if request.error is not None:
            raise request.error
        return request.results[0]

    async def _lead(self, batch: _Batch) -> None:
        async with self._turn:
            if self._gathering is batch:
                self._gathering = None
            try:
                await anyio.to_thread.run_sync(self._run, batch, limiter=self._limiter)
            except Exception as error:  # noqa: BLE001  # whatever it was, nobody may be left waiting
                batch.fail(error)
            batch.done.set()

    def _run(self, batch: _Batch) -> None:
        with self._access:  # a leader that asyncio cancelled comes again while its first thread still runs
            if batch.ran:
                return
            batch.ran = True
            try:
                if not self._users:
                    raise _UnusableError(_CLOSED)
                if self._connection is None:
                    self._connection = _open(self.path)
            except (OSError, sqlite3.Error, _UnusableError) as error:
                batch.fail(error)
                return
            failed = _transact(self._connection, batch.requests)
            if failed and len(batch.requests) > 1 and _code(failed) != sqlite3.SQLITE_BUSY:
                for request in batch.requests:  # alone, so that one that is too big for the disk fails alone
                    _transact(self._connection, [request])

    def _close(self) -> None:
        with self._access:  # who entered meanwhile opens the file again with the next batch
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _transact(connection: sqlite3.Connection, requests: Sequence[_Request[Any]]) -> sqlite3.Error | None:
    """Do requests in one transaction, all or none; return what made it fail."""
    try:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for request in requests:
                request.run(connection)
    except sqlite3.Error as error:
        for request in requests:
            request.fail(error)
        return error
    return None


def _open(path: Path) -> sqlite3.Connection:
    with _creating, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            try:
                _prepare(connection)
            except sqlite3.OperationalError as error:
                # Where two processes turn a new file into a WAL at once, SQLite refuses one without waiting.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _prepare(connection: sqlite3.Connection) -> None:
    """Make a connection to a journal of this version ready, and leave any other file as it is."""
    with connection:
        connection.execute("BEGIN")
        version = _version(connection)
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise _UnusableError("its file system cannot hold it; put it on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves a commit in the drive's own cache
    if version == len(_MIGRATIONS):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for migration in _MIGRATIONS[_version(connection) :]:  # another process may have been first
            for statement in migration:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def _version(connection: sqlite3.Connection) -> int:
    """Return the version of a journal's schema, 0 for a file that is still empty."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (application or version or tables):
        raise _UnusableError("it is another program's database")
    if version > len(_MIGRATIONS):
        raise _UnusableError(
            f"a newer convertrilo wrote it (schema {version}, and this one knows {len(_MIGRATIONS)}); "
            "upgrade convertrilo, or use another file"
        )
    return int(version)


def _code(error: Exception) -> int:
    """Return SQLite's primary code of an error, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
