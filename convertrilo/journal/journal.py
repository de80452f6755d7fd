"""The durable record of keyed operations: written down before the request is sent, completed by its answer.

A `Journal` is one SQLite file. What it has confirmed survives the death of the process and of the machine: every change
is on disk (`synchronous=FULL`) before the call returns. Many tasks and several processes can use one file at once.
"""

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import anyio
import anyio.lowlevel
import attrs

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._store.sqlite import Request, SharedFile, reason
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    IdempotencyConflictError,
    JournalError,
    OutcomeUnknownError,
)
from convertrilo.journal import batches as _claims
from convertrilo.journal import folders as _folder_rows
from convertrilo.journal import uploads
from convertrilo.journal.uploads import SentPart, SentParts

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
            sender TEXT NOT NULL,
            first_sent_at REAL NOT NULL,
            answered_at REAL,
            claims INTEGER NOT NULL DEFAULT 1,
            body BLOB NOT NULL,
            answer BLOB
        )""",
        "CREATE INDEX operations_unanswered ON operations (id) WHERE answered_at IS NULL",
        "CREATE TABLE services (service TEXT NOT NULL)",
        uploads.TABLE,
        *_folder_rows.TABLES,
        *_claims.TABLES,
    ),
)
"""The statements that lead from each version of the schema to the next."""

_COLUMNS = "SELECT id, operation, key, identity, name, first_sent_at, answered_at, body, answer FROM operations "
_UNANSWERED = _COLUMNS + "INDEXED BY operations_unanswered WHERE answered_at IS NULL AND id > :after AND first_sent_at "
_LISTED: dict[State, str] = {
    "pending": _UNANSWERED + "BETWEEN :edge AND :ahead ORDER BY id",
    "unknown": _UNANSWERED + "NOT BETWEEN :edge AND :ahead ORDER BY id",
    "answered": _COLUMNS + "WHERE answered_at IS NOT NULL AND id > :after ORDER BY id",
}
_CLOCKS_DIFFER = 300.0
"""Seconds by which the clock may have been ahead at the first sending, though by no more than the window's own length;
if it was more, the window cannot be trusted."""

_PAGE_ENTRIES = 100
_PAGE_BYTES = 1 << 20

_NOTHING_SENT = "Nothing was sent."
_NOT_RECORDED = (
    "The service's answer is not recorded: the operation stays pending, and within the replay window the same call "
    "gets the same answer again, under the same key."
)
_SENT_AGAIN = "What it does not know of is sent again, which is harmless."
_STAYS = "The operation stays pending, which is harmless: its key still makes one job of it."
_FIND_OUT = (
    "Look for it in the service's dashboard, your webhooks or your own records. If it never happened, `drop` its key "
    "from the journal and call again; if it did, write its `answer` down there, or leave it: it is not sent again."
)


class Window(NamedTuple):
    """When an operation must have been sent first, to be sent again: seconds since the epoch."""

    now: float
    start: float
    end: float


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
        self._store = SharedFile(path, application_id=_APPLICATION_ID, migrations=_MIGRATIONS)
        self.replay_window = replay_window
        """Seconds after its first sending for which an unanswered operation may be sent again."""
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

    async def begin(
        self, *, service: str, sender: str = "", operation: str, key: str, body: bytes, identity: str, name: str | None
    ) -> Entry:
        """Write an operation down before it is sent, and return its entry as it is now.

        The entry is on disk when this returns. If it is `fresh` or `pending`, the caller may send the operation under
        its key; if it is `answered`, the answer is there. If this is cancelled, it leaves the journal as it was.

        Args:
            service: Where it is sent. A journal is for one service: the first that it is used with.
            sender: Tells one API key from another, without being one: the service may know a key from one of them only.
            operation: The contract's operation id.
            key: The idempotency key.
            body: The canonical body, without credentials.
            identity: What the key stands for: `key`, `operation`, `external_id` or `call`.
            name: What the operation is called, for people.

        Raises:
            IdempotencyConflictError: The journal holds this key for another operation or body.
            OutcomeUnknownError: It was sent and never answered, and the replay window is over, or the sender another.
            JournalError: The journal cannot be written, or is another service's. Like the other two: nothing was sent.
        """
        claim = partial(
            claim_operation,
            operation=operation,
            key=key,
            body=body,
            identity=identity,
            name=name,
            window=self.open_window(),
            service=service,
            sender=sender,
        )
        request = Request(claim)
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
        await self._ask(Request(work), _NOT_RECORDED, key=key)

    async def forget(self, key: str) -> None:
        """Take back one `begin` whose request provably did nothing: it was refused, or never sent.

        The entry goes when every `begin` of it was taken back and it is not answered. So one task cannot remove what
        another one has sent, nor a rerun what a process that died may have sent.

        Args:
            key: The idempotency key.

        Raises:
            JournalError: The journal cannot be written; the operation stays pending.
        """
        await self._ask(Request(partial(_forget, key=key)), _STAYS, key=key)

    async def get(self, key: str) -> Entry | None:
        """Return the entry of a key, or None.

        Raises:
            JournalError: The journal cannot be read.
        """
        return await self._ask(Request(partial(find_operation, key=key, window=self.open_window())), key=key)

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
        return await self._ask(Request(partial(_drop, key=key)), key=key)

    async def sent_parts(self, job_id: str, *, service: str) -> SentParts:
        """Return what has arrived of an upload in parts that was not finished.

        Args:
            job_id: The job.
            service: Where it is sent, as in `begin`.

        Raises:
            JournalError: The journal cannot be used, or is another service's. Nothing was sent.
        """

        def find(connection: sqlite3.Connection) -> SentParts:
            check_service(connection, service)
            return uploads.find(connection, job=job_id)

        return await self._ask(Request(find), _NOTHING_SENT)

    async def add_part(self, job_id: str, upload: str, number: int, part: SentPart) -> None:
        """Write down a part that has arrived.

        Args:
            job_id: The job.
            upload: What the service calls this upload (`uploadId`); what is known of another one is forgotten.
            number: Which part.
            part: What it is recognised by.

        Raises:
            JournalError: The journal cannot be written.
        """
        work = partial(uploads.add, job=job_id, upload=upload, number=number, part=part)
        await self._ask(Request(work), _SENT_AGAIN)

    async def forget_parts(self, job_id: str) -> None:
        """Forget what has arrived of a job's upload in parts: the next one begins anew.

        Args:
            job_id: The job.

        Raises:
            JournalError: The journal cannot be written.
        """
        await self._ask(Request(partial(uploads.forget, job=job_id)))

    def open_window(self) -> Window:
        """Return when an operation must have been sent first, to be sent again now."""
        now = self._clock.time()
        return Window(now, now - self.replay_window, now + min(_CLOCKS_DIFFER, self.replay_window))

    async def _listed(self, state: State) -> AsyncIterator[Entry]:
        window, after = self.open_window(), 0
        while page := await self._ask(Request(partial(_page, state=state, after=after, window=window))):
            for _, entry in page:
                yield entry
            after = page[-1][0]

    async def do(self, work: Callable[[sqlite3.Connection], _T], consequence: str = "") -> _T:
        """Have work of this package done in a transaction, and return its result when that is on disk.

        Args:
            work: What to do.
            consequence: What it means if it cannot be done.

        Raises:
            JournalError: The journal cannot be used.
        """
        return await self._ask(Request(work), consequence)

    async def _ask(
        self, request: "Request[_T]", consequence: str = "", *, operation: str | None = None, key: str | None = None
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
        message = f"the journal {self._store.path} cannot be used: {reason(error)}. {consequence}"
        return JournalError(message.rstrip(), operation=operation, idempotency_key=key)


def claim_operation(
    connection: sqlite3.Connection,
    *,
    operation: str,
    key: str,
    body: bytes,
    identity: str,
    name: str | None,
    window: Window,
    service: str,
    sender: str,
) -> Entry:
    """Write an operation down, or find what is known of it: the transaction of `Journal.begin`."""
    check_service(connection, service)
    readable = None if name is None else name.encode(errors="backslashreplace").decode()  # file names may be any bytes
    inserted = connection.execute(
        "INSERT INTO operations (operation, key, identity, name, sender, first_sent_at, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
        (operation, key, identity, readable, sender, window.now, body),
    )
    entry = find_operation(connection, key=key, window=window)
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
        raise unknown_outcome(entry)
    if entry.state == "pending":
        check_sender(connection, entry, sender)
        connection.execute("UPDATE operations SET claims = claims + 1 WHERE key = ?", (key,))
    return entry


def check_sender(connection: sqlite3.Connection, entry: Entry, sender: str) -> None:
    """Keep what was sent from being sent with another API key: nobody says whether keys are the account's or its."""
    (known,) = connection.execute("SELECT sender FROM operations WHERE key = ?", (entry.key,)).fetchone()
    if known != sender:
        raise OutcomeUnknownError(
            f"it was first sent at {entry.first_sent_at.isoformat()}, with another API key, and never answered; the "
            f"service may know its key from that one only: sent with this one, it could be done twice. {_NOTHING_SENT}",
            find_out=f"Call again with that API key. If that cannot be: {_FIND_OUT}",
            operation=entry.operation,
            idempotency_key=entry.key,
        )


def last_of_other_senders(connection: sqlite3.Connection, *, service: str, sender: str) -> datetime | None:
    """Return when anything was last sent for the first time with another API key, or None.

    Raises:
        JournalError: The journal is another service's.
    """
    check_service(connection, service)
    (last,) = connection.execute("SELECT max(first_sent_at) FROM operations WHERE sender <> ?", (sender,)).fetchone()
    return None if last is None else datetime.fromtimestamp(last, UTC)


def unknown_outcome(entry: Entry) -> OutcomeUnknownError:
    """Make the error of an operation that was not answered in the replay window."""
    return OutcomeUnknownError(
        f"it was first sent at {entry.first_sent_at.isoformat()} and never answered, and the service may have "
        f"forgotten its key since: sent again, it could be done twice. {_NOTHING_SENT}",
        find_out=_FIND_OUT,
        operation=entry.operation,
        idempotency_key=entry.key,
    )


def check_service(connection: sqlite3.Connection, service: str) -> None:
    """Keep answers of one service, a sandbox say, from being taken for another's."""
    known = connection.execute("SELECT service FROM services").fetchone()
    if known is None:
        connection.execute("INSERT INTO services VALUES (?)", (service,))
    elif known != (service,):
        raise JournalError(
            f"the journal is that of {known[0]}, and this is {service}; use another file. {_NOTHING_SENT}"
        )


def _answer(connection: sqlite3.Connection, *, key: str, answer: bytes, now: float) -> None:
    connection.execute(
        "UPDATE operations SET answered_at = ?, answer = ? WHERE key = ? AND answered_at IS NULL", (now, answer, key)
    )


def _forget(connection: sqlite3.Connection, *, key: str) -> None:
    connection.execute("UPDATE operations SET claims = claims - 1 WHERE key = ? AND answered_at IS NULL", (key,))
    connection.execute("DELETE FROM operations WHERE key = ? AND answered_at IS NULL AND claims <= 0", (key,))


def _drop(connection: sqlite3.Connection, *, key: str) -> bool:
    return connection.execute("DELETE FROM operations WHERE key = ?", (key,)).rowcount > 0


def find_operation(connection: sqlite3.Connection, *, key: str, window: Window) -> Entry | None:
    """Return the entry of a key, or None."""
    row = connection.execute(_COLUMNS + "WHERE key = ?", (key,)).fetchone()
    return None if row is None else _entry(row, window)


def _page(connection: sqlite3.Connection, *, state: State, after: int, window: Window) -> list[tuple[int, Entry]]:
    page: list[tuple[int, Entry]] = []
    size = 0
    with contextlib.closing(
        connection.execute(_LISTED[state], {"after": after, "edge": window.start, "ahead": window.end})
    ) as rows:
        for row in rows:
            entry = _entry(row, window)
            page.append((row[0], entry))
            size += len(entry.body) + len(entry.answer or b"")
            if len(page) == _PAGE_ENTRIES or size > _PAGE_BYTES:
                break
    return page


def _entry(row: tuple[Any, ...], window: Window) -> Entry:
    _, operation, key, identity, name, first_sent_at, answered_at, body, answer = row
    is_open = window.start <= first_sent_at <= window.end
    state: State = "answered" if answered_at is not None else "pending" if is_open else "unknown"
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
