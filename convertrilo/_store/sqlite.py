"""A SQLite file that many tasks and processes share: every change is on disk before the call returns.

A commit costs a disk sync and two thread switches, so tasks share commits. The first task opens a group of requests and
waits for the previous group to finish. Tasks that arrive until then join the new group. One transaction runs the group.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import attrs

_T = TypeVar("_T")

_LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process that holds the lock; normally a process holds it for one commit."""

_REASONS = {
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_LOCK_TIMEOUT:g} s",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; its directory must exist and be writable",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy, or move it away and start with a new one",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be written or read",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite file, or it is damaged",
    sqlite3.SQLITE_READONLY: "it is read-only",
}
_CLOSED = "it is not open; use it inside `async with`"

# Closing any descriptor of a file releases all locks of the process on that file, SQLite's included. So no thread may
# open a file with SQLite while another thread creates it.
_creating = threading.Lock()


class _Schema(NamedTuple):
    application_id: int
    migrations: Sequence[Sequence[str]]


def _read_schema(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


class UnusableError(Exception):
    """The file cannot be used; the message says why."""


@attrs.define(eq=False)
class Request(Generic[_T]):
    """A function that a task runs in a transaction, with its result or its error."""

    work: Callable[[sqlite3.Connection], _T]
    results: list[_T] = attrs.field(factory=list[_T])
    error: Exception | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        """Run the function. A database error fails the whole group, any other error only this request."""
        self.results, self.error = [], None
        try:
            self.results.append(self.work(connection))
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # the waiting task raises it
            self.error = error

    def fail(self, error: Exception) -> None:
        """Replace the outcome with an error."""
        self.results, self.error = [], error


@attrs.define(eq=False)
class _Group:
    """Requests that share a transaction."""

    requests: list[Request[Any]] = attrs.field(factory=list[Request[Any]])
    done: anyio.Event = attrs.field(factory=anyio.Event)
    ran: bool = False

    def fail(self, error: Exception) -> None:
        for request in self.requests:
            request.fail(error)


async def _run_to_end(step: Callable[[], Awaitable[object]]) -> None:
    """Await a repeatable step to its end, and raise a cancellation only after it."""
    cancelled: BaseException | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await step()
            break
        except anyio.get_cancelled_exc_class() as error:  # asyncio's own Task.cancel() ignores the shield
            cancelled = error
    if cancelled is not None:
        raise cancelled


class SharedFile:
    """A SQLite file in which the tasks of one event loop share transactions that run in worker threads.

    Args:
        path: The file. It is created if it does not exist, readable by its owner only.
        application_id: Marks a file as one of this kind, so that another program's SQLite file is never used.
        migrations: The statements that lead from each version of the schema to the next.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, application_id: int, migrations: Sequence[Sequence[str]]
    ) -> None:
        self.path = Path(path).resolve()
        self._schema = _Schema(application_id, migrations)
        self._users = 0
        self._connection: sqlite3.Connection | None = None
        self._access = threading.Lock()
        self._open_group: _Group | None = None

    async def enter(self) -> None:
        """Register a user of the file; the first user opens the file."""
        if self._users == 0:  # these belong to the running event loop
            self._turn = anyio.Lock()
            self._limiter = anyio.CapacityLimiter(1)
            self._open_group = None
        self._users += 1
        try:
            await self.do(Request(_read_schema))
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Unregister a user of the file; the last user closes the file."""
        self._users -= 1
        if not self._users:
            await _run_to_end(partial(anyio.to_thread.run_sync, self._close, limiter=self._limiter))

    async def do(self, request: Request[_T]) -> _T:
        """Run a request in a shared transaction, and return its result once it is on disk, or raise its error."""
        if not self._users:
            raise UnusableError(_CLOSED)
        group = self._open_group
        if group is not None:
            group.requests.append(request)
            await _run_to_end(group.done.wait)
        else:
            group = self._open_group = _Group([request])
            await _run_to_end(partial(self._lead, group))
        if request.error is not None:
            raise request.error
        return request.results[0]

    async def _lead(self, group: _Group) -> None:
        async with self._turn:
            if self._open_group is group:
                self._open_group = None
            try:
                await anyio.to_thread.run_sync(self._run, group, limiter=self._limiter)
            except anyio.get_cancelled_exc_class():
                raise  # _run_to_end calls this method again
            except Exception as error:  # noqa: BLE001  # the waiting tasks must wake up after any error
                group.fail(error)
            except BaseException as error:  # KeyboardInterrupt ends this task; the others must not hang
                group.fail(UnusableError(f"{type(error).__name__} interrupted the write"))
                group.done.set()
                raise
            group.done.set()

    def _run(self, group: _Group) -> None:
        with self._access:  # a task cancelled by asyncio calls this again while its first thread still runs
            if group.ran:
                return
            group.ran = True
            try:
                if not self._users:
                    raise UnusableError(_CLOSED)
                if self._connection is None:
                    self._connection = _open(self.path, self._schema)
            except (OSError, sqlite3.Error, UnusableError) as error:
                group.fail(error)
                return
            failed = _transact(self._connection, group.requests)
            if failed and len(group.requests) > 1 and error_code(failed) != sqlite3.SQLITE_BUSY:
                for request in group.requests:  # one by one, so that only the request that is too big fails
                    _transact(self._connection, [request])

    def _close(self) -> None:
        with self._access:  # if another task has entered, its first request opens the file again
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def _transact(connection: sqlite3.Connection, requests: Sequence[Request[Any]]) -> sqlite3.Error | None:
    """Run requests in one transaction; return the error that rolled all of them back, or None."""
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


def _open(path: Path, schema: _Schema) -> sqlite3.Connection:
    with _creating, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    try:
        while True:
            try:
                _prepare(connection, schema)
            except sqlite3.OperationalError as error:
                # If two processes switch a new file to WAL mode at once, SQLite refuses one of them without waiting.
                if error_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def _prepare(connection: sqlite3.Connection, schema: _Schema) -> None:
    """Configure a connection and migrate its file; never change a file of another program."""
    with connection:
        connection.execute("BEGIN")
        version = _version(connection, schema)
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise UnusableError("its file system does not support WAL mode; put the file on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # otherwise macOS leaves a commit in the drive's cache
    if version == len(schema.migrations):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for migration in schema.migrations[_version(connection, schema) :]:  # another process may have been first
            for statement in migration:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.application_id}")
        connection.execute(f"PRAGMA user_version = {len(schema.migrations)}")


def _version(connection: sqlite3.Connection, schema: _Schema) -> int:
    """Return the version of a file's schema; 0 for an empty file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != schema.application_id and (application or version or tables):
        raise UnusableError("it is another program's database")
    if version > len(schema.migrations):
        raise UnusableError(
            f"a newer convertrilo wrote it (schema {version}, this version knows {len(schema.migrations)}); "
            "upgrade convertrilo, or use another file"
        )
    return int(version)


def error_code(error: Exception) -> int:
    """Return SQLite's primary error code, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def reason(error: Exception) -> str:
    """Return a readable reason why a file cannot be used."""
    return _REASONS.get(error_code(error)) or getattr(error, "strerror", None) or str(error) or type(error).__name__
