"""What a journal remembers of uploads in parts: which parts have arrived, and what was in each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    import sqlite3  # most clients do without

TABLE = """CREATE TABLE parts (
    job TEXT NOT NULL,
    number INTEGER NOT NULL,
    upload TEXT NOT NULL,
    digest BLOB NOT NULL,
    etag TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID"""

MARK = 0
"""The number under which it is noted that the service was asked to put the parts together; parts count from 1."""


class SentPart(NamedTuple):
    """A part that has arrived."""

    digest: bytes
    """SHA-256 of its bytes: only the same bytes need not be sent again."""
    etag: str
    """What the service calls it."""


@attrs.frozen
class SentParts:
    """What has arrived of one upload."""

    upload: str | None = None
    """The service's name of the upload; `None` if nothing is known."""
    parts: Mapping[int, SentPart] = attrs.field(factory=dict[int, SentPart])
    is_marked: bool = False
    """Whether the service was asked to put them together."""


def find(connection: "sqlite3.Connection", *, job: str) -> SentParts:
    """Return what has arrived of a job's upload."""
    rows = connection.execute("SELECT number, upload, digest, etag FROM parts WHERE job = ?", (job,)).fetchall()
    if not rows:
        return SentParts()
    parts = {number: SentPart(digest, etag) for number, _, digest, etag in rows}
    return SentParts(rows[0][1], parts, parts.pop(MARK, None) is not None)


def add(connection: "sqlite3.Connection", *, job: str, upload: str, number: int, part: SentPart) -> None:
    """Note a part; parts of another upload of the same job are forgotten."""
    connection.execute("DELETE FROM parts WHERE job = ? AND upload <> ?", (job, upload))
    connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", (job, number, upload, *part))


def forget(connection: "sqlite3.Connection", *, job: str) -> None:
    """Forget a job's upload."""
    connection.execute("DELETE FROM parts WHERE job = ?", (job,))
