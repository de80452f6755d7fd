"""The journal's record of keyed operations: its entries, and the SQL that writes and reads them."""

import contextlib
import sqlite3
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import attrs

from convertrilo.errors import IdempotencyConflictError, JournalError, OutcomeUnknownError

State = Literal["pending", "answered", "unknown"]

TABLES = (
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
)

_COLUMNS = "SELECT id, operation, key, identity, name, first_sent_at, answered_at, body, answer FROM operations "
_UNANSWERED = _COLUMNS + "INDEXED BY operations_unanswered WHERE answered_at IS NULL AND id > :after AND first_sent_at "
_LISTED: dict[State, str] = {
    "pending": _UNANSWERED + "BETWEEN :start AND :end ORDER BY id",
    "unknown": _UNANSWERED + "NOT BETWEEN :start AND :end ORDER BY id",
    "answered": _COLUMNS + "WHERE answered_at IS NOT NULL AND id > :after ORDER BY id",
}

_PAGE_ENTRIES = 100
_PAGE_BYTES = 1 << 20

NOTHING_SENT = "Nothing was sent."
_FIND_OUT = (
    "Look for it in the service's dashboard, your webhooks or your own records. If it never happened, `drop` its key "
    "from the journal and call again. If it did, record its `answer` in the journal, or leave the entry: it is not "
    "sent again."
)


class Window(NamedTuple):
    """The replay window, in seconds since the epoch: an operation that was first sent in it may be sent again."""

    now: float
    start: float
    end: float


def _size(value: bytes | None) -> str:
    return "None" if value is None else f"<{len(value)} bytes>"


@attrs.frozen
class Entry:
    """One journal entry: a keyed operation and, once there is one, its answer.

    Attributes:
        operation: The contract's operation id, such as `createJob`.
        key: The idempotency key.
        identity: Where the key comes from: `key` (the caller's own key), `operation` (the caller's name), `external_id`
            (the body), or `call` (a random key for this one call).
        name: The name of the logical operation, if it has one.
        body: The canonical body, without credentials.
        first_sent_at: When the entry was written, just before the operation was first sent.
        answered_at: When the answer was recorded.
        answer: The answer's body as it was received. It may hold temporary permissions, such as an upload URL.
        state: The state at the time of reading: `answered`; `pending`, if the operation may be sent again under its
            key; or `unknown`, if the replay window ended without an answer and the service may have forgotten the key.
        fresh: Whether the call that returned this entry created it.
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
    """Record an operation before it is sent, or return its existing entry: the transaction of `Journal.begin`."""
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
            f"the journal holds this key for another {other}. {NOTHING_SENT}",
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
    """Refuse to resend an operation under another API key.

    The contract does not say whether idempotency keys belong to the account or to the API key.
    """
    (known,) = connection.execute("SELECT sender FROM operations WHERE key = ?", (entry.key,)).fetchone()
    if known != sender:
        raise OutcomeUnknownError(
            f"the operation was first sent at {entry.first_sent_at.isoformat()} with another API key and was never "
            "answered. The service may know its idempotency key under that API key only, so sending it with this API "
            f"key could do it twice. {NOTHING_SENT}",
            find_out=f"Call again with that API key. If that is not possible: {_FIND_OUT}",
            operation=entry.operation,
            idempotency_key=entry.key,
        )


def last_of_other_senders(connection: sqlite3.Connection, *, service: str, sender: str) -> datetime | None:
    """Return the time of the latest first attempt that was made with another API key, or None.

    Raises:
        JournalError: The journal belongs to another service.
    """
    check_service(connection, service)
    (last,) = connection.execute("SELECT max(first_sent_at) FROM operations WHERE sender <> ?", (sender,)).fetchone()
    return None if last is None else datetime.fromtimestamp(last, UTC)


def unknown_outcome(entry: Entry) -> OutcomeUnknownError:
    """Return the error for an operation that was not answered within the replay window."""
    return OutcomeUnknownError(
        f"the operation was first sent at {entry.first_sent_at.isoformat()} and was never answered, and the service "
        f"may have forgotten its key since then, so sending it again could do it twice. {NOTHING_SENT}",
        find_out=_FIND_OUT,
        operation=entry.operation,
        idempotency_key=entry.key,
    )


def check_service(connection: sqlite3.Connection, service: str) -> None:
    """Refuse a journal of another service, so that a sandbox's answers are never taken for the real service's."""
    known = connection.execute("SELECT service FROM services").fetchone()
    if known is None:
        connection.execute("INSERT INTO services VALUES (?)", (service,))
    elif known != (service,):
        raise JournalError(
            f"the journal belongs to {known[0]}, and the client uses {service}; use another file. {NOTHING_SENT}"
        )


def record_answer(connection: sqlite3.Connection, *, key: str, answer: bytes, now: float) -> None:
    """Record the answer to an operation, unless it is answered or its entry was dropped."""
    connection.execute(
        "UPDATE operations SET answered_at = ?, answer = ? WHERE key = ? AND answered_at IS NULL", (now, answer, key)
    )


def forget_operation(connection: sqlite3.Connection, *, key: str) -> None:
    """Take back one claim of an unanswered operation, and delete its entry with the last claim."""
    connection.execute("UPDATE operations SET claims = claims - 1 WHERE key = ? AND answered_at IS NULL", (key,))
    connection.execute("DELETE FROM operations WHERE key = ? AND answered_at IS NULL AND claims <= 0", (key,))


def drop_operation(connection: sqlite3.Connection, *, key: str) -> bool:
    """Delete an entry in any state; return whether there was one."""
    return connection.execute("DELETE FROM operations WHERE key = ?", (key,)).rowcount > 0


def find_operation(connection: sqlite3.Connection, *, key: str, window: Window) -> Entry | None:
    """Return the entry with a key, or None."""
    row = connection.execute(_COLUMNS + "WHERE key = ?", (key,)).fetchone()
    return None if row is None else _entry(row, window)


def page_of_entries(
    connection: sqlite3.Connection, *, state: State, after: int, window: Window
) -> list[tuple[int, Entry]]:
    """Return the next entries in a state whose row id is above `after`, each with its row id, the oldest first."""
    page: list[tuple[int, Entry]] = []
    size = 0
    with contextlib.closing(
        connection.execute(_LISTED[state], {"after": after, "start": window.start, "end": window.end})
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
