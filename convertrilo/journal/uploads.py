"""The journal's record of multipart uploads: which parts were uploaded, and the digest of each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    import sqlite3  # slow to import, and most clients have no journal

TABLE = """CREATE TABLE parts (
    job TEXT NOT NULL,
    number INTEGER NOT NULL,
    upload TEXT NOT NULL,
    digest BLOB NOT NULL,
    etag TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID"""

FINALIZE_MARK = 0
"""The part number of the row which records that `finalizeStream` was about to be sent; real parts count from 1."""


class SentPart(NamedTuple):
    """An uploaded part."""

    digest: bytes
    """The SHA-256 of its bytes. A part with the same digest need not be sent again."""
    etag: str
    """The ETag that the service answered with."""


@attrs.frozen
class SentParts:
    """The uploaded parts of one upload."""

    upload_id: str | None = None
    """The service's id of the upload (`uploadId`); `None` if the journal has no parts of it."""
    parts: Mapping[int, SentPart] = attrs.field(factory=dict[int, SentPart])
    is_finalizing: bool = False
    """Whether `finalizeStream` may have been sent."""


def find(connection: "sqlite3.Connection", *, job: str) -> SentParts:
    """Return the uploaded parts of a job's upload."""
    rows = connection.execute("SELECT number, upload, digest, etag FROM parts WHERE job = ?", (job,)).fetchall()
    if not rows:
        return SentParts()
    parts = {number: SentPart(digest, etag) for number, _, digest, etag in rows}
    return SentParts(rows[0][1], parts, parts.pop(FINALIZE_MARK, None) is not None)


def add(connection: "sqlite3.Connection", *, job: str, upload: str, number: int, part: SentPart) -> None:
    """Record an uploaded part; parts of another upload of the same job are deleted."""
    connection.execute("DELETE FROM parts WHERE job = ? AND upload <> ?", (job, upload))
    connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", (job, number, upload, *part))


def forget(connection: "sqlite3.Connection", *, job: str) -> None:
    """Delete all parts of a job's upload."""
    connection.execute("DELETE FROM parts WHERE job = ?", (job,))
