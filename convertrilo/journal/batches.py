"""The journal's record of bulk batches: which batch each job is in, and which run owns the batch."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3  # slow to import, and most clients have no journal

TABLES = (
    # AUTOINCREMENT never reuses a number, so that the members of a deleted batch never become members of another one.
    """CREATE TABLE batches (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        round INTEGER NOT NULL,
        lacking TEXT NOT NULL,
        owner TEXT
    )""",
    """CREATE TABLE members (
        identity BLOB PRIMARY KEY,
        batch INTEGER NOT NULL,
        position INTEGER NOT NULL,
        digest BLOB NOT NULL
    ) WITHOUT ROWID""",
)

_FIND = (
    "SELECT m.identity, m.batch, m.position, m.digest, coalesce(b.round, 0), o.id IS NULL FROM members AS m "
    "LEFT JOIN batches AS b ON b.number = m.batch LEFT JOIN operations AS o ON o.key = b.key WHERE m.identity IN"
)
_MAX_PARAMETERS = 900  # older versions of SQLite accept 999


class Membership(NamedTuple):
    """The batch that a job is in, and its position there."""

    batch: int
    position: int
    digest: bytes
    """The digest of the job and its settings when it joined the batch."""
    round: int
    is_free: bool
    """Whether the batch was discarded, so that the job may join another batch."""


class BatchRow(NamedTuple):
    """A batch in the journal."""

    number: int
    key: str
    round: int
    needs_credentials: set[int]
    """The positions of the members that have credentials: the operation's body in the journal does not hold them."""
    owner: str | None
    """The run that may send the batch; `None` if any run may claim it."""


def find(connection: "sqlite3.Connection", identities: Sequence[bytes]) -> dict[bytes, Membership]:
    """Return the memberships of the jobs that are in a batch, by their identities."""
    memberships: dict[bytes, Membership] = {}
    for start in range(0, len(identities), _MAX_PARAMETERS):
        chunk = identities[start : start + _MAX_PARAMETERS]
        marks = ",".join("?" * len(chunk))
        for identity, batch, position, digest, round_number, is_free in connection.execute(f"{_FIND} ({marks})", chunk):
            memberships[identity] = Membership(batch, position, digest, round_number, bool(is_free))
    return memberships


def add(
    connection: "sqlite3.Connection",
    *,
    key: str,
    round_number: int,
    needs_credentials: Iterable[int],
    owner: str,
    members: Iterable[tuple[bytes, bytes]],
) -> int:
    """Record a batch and its members, which leave their earlier batches; return its number.

    Args:
        connection: The connection to the journal.
        key: The idempotency key.
        round_number: The highest number of earlier batches that any of its members was in.
        needs_credentials: The positions of the members with credentials.
        owner: The run that sends the batch.
        members: The identity and the digest of each member, in order.
    """
    number = connection.execute(
        "INSERT OR REPLACE INTO batches (key, round, lacking, owner) VALUES (?, ?, ?, ?)",
        (key, round_number, f"{sum(1 << position for position in needs_credentials):x}", owner),  # a bit mask
    ).lastrowid
    assert number is not None
    connection.executemany(
        "INSERT OR REPLACE INTO members (identity, batch, position, digest) VALUES (?, ?, ?, ?)",
        [(identity, number, position, digest) for position, (identity, digest) in enumerate(members)],
    )
    return number


def row_of(connection: "sqlite3.Connection", number: int) -> BatchRow | None:
    """Return a batch, or None."""
    found = connection.execute("SELECT key, round, lacking, owner FROM batches WHERE number = ?", (number,)).fetchone()
    if found is None:
        return None
    key, round_number, mask, owner = found
    bits = int(mask, 16)
    needs_credentials = {position for position in range(bits.bit_length()) if bits >> position & 1}
    return BatchRow(number, key, round_number, needs_credentials, owner)


def take_over(connection: "sqlite3.Connection", number: int, *, old: str | None, new: str | None) -> bool:
    """Compare-and-swap the batch's owner; return whether the old owner still had it."""
    done = connection.execute("UPDATE batches SET owner = ? WHERE number = ? AND owner IS ?", (new, number, old))
    return done.rowcount > 0


def release_all(connection: "sqlite3.Connection", *, owner: str) -> None:
    """Give up the ownership of all unanswered batches of an owner."""
    connection.execute(
        "UPDATE batches SET owner = NULL WHERE owner = ? "
        "AND key IN (SELECT key FROM operations INDEXED BY operations_unanswered WHERE answered_at IS NULL)",
        (owner,),
    )


def discard(connection: "sqlite3.Connection", key: str, *, owner: str) -> None:
    """Delete the operation of a batch that the service did not process, so that its members may join other batches.

    The operation stays if another owner has taken the batch over, because that owner may have sent it.
    """
    connection.execute(
        "DELETE FROM operations WHERE key = ? AND answered_at IS NULL "
        "AND EXISTS (SELECT 1 FROM batches WHERE key = operations.key AND owner = ?)",
        (key, owner),
    )
