"""What a journal remembers of jobs that go in batches: in which batch each one is, and who is sending that."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import sqlite3  # most clients do without

TABLES = (
    # A number is never used twice, so that what is left of a batch that was dropped is no member of another one.
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
_MOST_PARAMETERS = 900  # older SQLite takes 999


class Place(NamedTuple):
    """Where a job is."""

    batch: int
    position: int
    digest: bytes
    """What it and its settings were."""
    round: int
    is_free: bool
    """Whether nothing came of the batch: the job may go into another one."""


class Row(NamedTuple):
    """A batch."""

    number: int
    key: str
    round: int
    lacking: set[int]
    """The positions of the members that had credentials, which are not in the operation's body."""
    owner: str | None
    """Who is sending it; `None` if nobody is."""


def find(connection: "sqlite3.Connection", identities: Sequence[bytes]) -> dict[bytes, Place]:
    """Return where those jobs are that are anywhere."""
    places: dict[bytes, Place] = {}
    for start in range(0, len(identities), _MOST_PARAMETERS):
        some = identities[start : start + _MOST_PARAMETERS]
        marks = ",".join("?" * len(some))
        for identity, batch, position, digest, round_number, is_free in connection.execute(f"{_FIND} ({marks})", some):
            places[identity] = Place(batch, position, digest, round_number, bool(is_free))
    return places


def add(
    connection: "sqlite3.Connection",
    *,
    key: str,
    round_number: int,
    lacking: Iterable[int],
    owner: str,
    members: Iterable[tuple[bytes, bytes]],
) -> int:
    """Write a batch down, whose members are in no other one from now on; return its number.

    Args:
        connection: To the journal.
        key: Its idempotency key.
        round_number: How often its members went before, at most.
        lacking: The positions of the members that have credentials.
        owner: Who sends it.
        members: The identity and digest of each, in order.
    """
    number = connection.execute(
        "INSERT OR REPLACE INTO batches (key, round, lacking, owner) VALUES (?, ?, ?, ?)",
        (key, round_number, f"{sum(1 << position for position in lacking):x}", owner),  # a bit for each
    ).lastrowid
    assert number is not None
    connection.executemany(
        "INSERT OR REPLACE INTO members (identity, batch, position, digest) VALUES (?, ?, ?, ?)",
        [(identity, number, position, digest) for position, (identity, digest) in enumerate(members)],
    )
    return number


def row_of(connection: "sqlite3.Connection", number: int) -> Row | None:
    """Return a batch."""
    found = connection.execute("SELECT key, round, lacking, owner FROM batches WHERE number = ?", (number,)).fetchone()
    if found is None:
        return None
    key, round_number, lacking, owner = found
    bits = int(lacking, 16)
    return Row(number, key, round_number, {each for each in range(bits.bit_length()) if bits >> each & 1}, owner)


def take_over(connection: "sqlite3.Connection", number: int, *, old: str | None, new: str | None) -> bool:
    """Let somebody else, or nobody, send a batch; return whether it was still the old one's."""
    done = connection.execute("UPDATE batches SET owner = ? WHERE number = ? AND owner IS ?", (new, number, old))
    return done.rowcount > 0


def let_go_all(connection: "sqlite3.Connection", *, owner: str) -> None:
    """Let anybody send what somebody has not had answered."""
    connection.execute(
        "UPDATE batches SET owner = NULL WHERE owner = ? "
        "AND key IN (SELECT key FROM operations INDEXED BY operations_unanswered WHERE answered_at IS NULL)",
        (owner,),
    )


def free(connection: "sqlite3.Connection", key: str, *, owner: str) -> None:
    """Forget that somebody sent a batch: nothing came of it, and its members may go into others.

    If it is no longer theirs, it stays: whoever took it over may have sent it.
    """
    connection.execute(
        "DELETE FROM operations WHERE key = ? AND answered_at IS NULL "
        "AND EXISTS (SELECT 1 FROM batches WHERE key = operations.key AND owner = ?)",
        (key, owner),
    )
