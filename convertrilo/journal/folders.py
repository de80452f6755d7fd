"""The journal's record of a folder ingest: every object that was listed, its job, and how the job ended."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from convertrilo._json import encode
from convertrilo.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3  # slow to import, and most clients have no journal

TABLES = (
    "CREATE TABLE folder (identity TEXT NOT NULL, generation INTEGER NOT NULL)",
    # `submission` numbers the objects that have a job, in the order in which they were submitted.
    """CREATE TABLE objects (
        id INTEGER PRIMARY KEY,
        external_id TEXT NOT NULL UNIQUE,
        key TEXT NOT NULL,
        size INTEGER,
        submission INTEGER,
        job_id TEXT,
        status TEXT,
        ended INTEGER NOT NULL DEFAULT 0,
        output TEXT,
        error TEXT,
        estimate REAL
    )""",
    "CREATE INDEX objects_without_job ON objects (id) WHERE job_id IS NULL",
    "CREATE INDEX objects_submitted ON objects (submission) WHERE submission IS NOT NULL",
    "CREATE INDEX objects_job ON objects (job_id) WHERE job_id IS NOT NULL AND NOT ended",
)

_PAGE = 1000

UNKNOWN = "unknown"
"""The status of an object for which the service may have created a job, although the journal knows no job."""


class Row(NamedTuple):
    """An object of the folder, as the journal holds it."""

    id: int
    key: str
    size: int | None
    external_id: str
    job_id: str | None
    status: str | None
    """The last status of the job; `None` before the job has one."""
    ended: bool
    """Whether the job has ended, or the object must not get a job."""
    output: str | None
    error: str | None
    estimate: float | None
    """Tokens (neu)."""


_COLUMNS = "id, key, size, external_id, job_id, status, ended, output, error, estimate"


class New(NamedTuple):
    """An object that was listed and passed the filters."""

    key: str
    size: int | None
    external_id: str
    error: str | None
    """Why no job can be created for the object; `None` if a job can be created."""


class Submitted(NamedTuple):
    """The service's answer for one object: its job, or its estimate."""

    external_id: str
    job_id: str | None
    status: str | None
    error: str | None
    estimate: float | None


class Ended(NamedTuple):
    """How the job of an object ended."""

    job_id: str
    status: str | None
    output: str | None
    error: str | None


@attrs.define(kw_only=True)
class Totals:
    """The number of objects in each state, their total size in bytes and their tokens (neu)."""

    listed: int = 0
    size: int = 0
    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    refused: int = 0
    unknown: int = 0
    estimated: float = 0.0
    reserved: float | None = None

    def count(self, state: str, objects: int = 1) -> None:
        """Count objects in a state; a state without a field of its own is not counted."""
        if (name := _FIELD_OF.get(state)) is not None:
            setattr(self, name, getattr(self, name) + objects)


_FIELD_OF = {
    "success": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
    "refused": "refused",
    UNKNOWN: "unknown",
}
"""The field of `Totals` that counts the objects in a state."""


def _run_name(identity: dict[str, Any], generation: int) -> str | None:
    """Return the name of the folder's operations; each run from scratch needs its own, because it reuses all ids."""
    name = identity.get("operation")
    return " ".join([*([name] if name else []), "run", str(generation)]) if generation else name


def begin(db: "sqlite3.Connection", *, identity: dict[str, Any], from_scratch: bool) -> str | None:
    """Start or continue the record of a folder; return the name of its operations, if they have one.

    Args:
        db: The connection to the journal.
        identity: The folder and what is done with it, as JSON.
        from_scratch: Whether to delete all objects first and create every job again.

    Raises:
        ConfigurationError: The journal holds a record of another ingest that has created jobs, or may have.
    """
    known = db.execute("SELECT identity, generation FROM folder").fetchone()
    if known is None:
        db.execute("INSERT INTO folder (identity, generation) VALUES (?, 0)", (json.dumps(identity),))
        return _run_name(identity, 0)
    before, generation = json.loads(known[0]), int(known[1])
    if before == identity and not from_scratch:
        return _run_name(identity, generation)
    if from_scratch or not _is_begun(db, before, generation):  # without jobs, the record may be replaced
        db.execute("DELETE FROM objects")
        generation += from_scratch
        db.execute("UPDATE folder SET identity = ?, generation = ?", (json.dumps(identity), generation))
    else:
        raise ConfigurationError(
            f"the journal holds another ingest: {_difference(before, identity)}. Nothing was sent. "
            "Use another journal, or begin from scratch, which creates every job again"
        )
    return _run_name(identity, generation)


def last_id(db: "sqlite3.Connection") -> int:
    """Return the id of the object that was added last, or 0."""
    (number,) = db.execute("SELECT coalesce(max(id), 0) FROM objects").fetchone()
    return int(number)


_HAS_SUBMITTED = f"""SELECT 1 FROM objects WHERE submission IS NOT NULL
             UNION ALL SELECT 1 FROM objects WHERE job_id IS NULL AND status = '{UNKNOWN}' LIMIT 1"""  # noqa: S608  # no user input

# A journal may also hold operations that do not belong to the folder. A batch belongs to the folder if its first job is
# one of the folder's objects, which are recorded before the batch. An on-demand request belongs to the folder if its
# body is the same. An operation whose answer holds no job does not count.
_OF_THIS_RUN = "(:run IS NULL OR name = :run OR substr(name, 1, length(:run || :round)) = :run || :round)"
_OF_ITS_OBJECTS = """json_valid(CAST(body AS TEXT)) AND EXISTS
    (SELECT 1 FROM objects WHERE external_id = json_extract(CAST(body AS TEXT), '$.jobs[0].externalId'))"""
_HAS_SENT = f"""SELECT 1 FROM operations
            WHERE {_OF_THIS_RUN}
              AND CASE operation
                  WHEN :on_demand THEN body = :listing
                  WHEN :bulk THEN {_OF_ITS_OBJECTS}
                  END
              AND CASE WHEN answered_at IS NULL OR NOT json_valid(CAST(answer AS TEXT)) THEN 1
                  ELSE EXISTS (SELECT 1 FROM json_tree(CAST(answer AS TEXT), '$.jobs')
                               WHERE key = 'jobId' AND atom IS NOT NULL)
                  END
            LIMIT 1"""  # noqa: S608  # no user input


def _is_begun(db: "sqlite3.Connection", identity: dict[str, Any], generation: int) -> bool:
    """Whether the folder has jobs, or may have jobs: a process may end before it records the jobs that it has sent."""
    # Imported here and in `totals`, because a journal without a folder needs neither cattrs nor the models.
    from convertrilo.idempotency import ROUND_MARK
    from convertrilo.operations import CREATE_JOBS_BULK, ON_DEMAND_INGEST_FOLDER

    if db.execute(_HAS_SUBMITTED).fetchone():
        return True
    listing = encode(identity["on_demand"]) if "on_demand" in identity else None
    parameters = {
        "run": _run_name(identity, generation),
        "round": ROUND_MARK,
        "listing": listing,
        "on_demand": ON_DEMAND_INGEST_FOLDER.id,
        "bulk": CREATE_JOBS_BULK.id,
    }
    return db.execute(_HAS_SENT, parameters).fetchone() is not None


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    return "; ".join(
        f"its {name} is {json.dumps(before.get(name))}, not {json.dumps(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name)
    )


def add(db: "sqlite3.Connection", *, objects: Sequence[New], most: int | None) -> list[Row]:
    """Record objects, and return those that were not recorded before.

    Args:
        db: The connection to the journal.
        objects: The objects, in the order in which they were listed.
        most: The maximum number of objects in the record; `None` for no limit.
    """
    left = len(objects)
    if most is not None:
        (count,) = db.execute("SELECT count(*) FROM objects").fetchone()
        left = max(0, most - count)
    added: list[Row] = []
    for each in objects:
        if len(added) == left:
            break
        has_ended = each.error is not None
        inserted = db.execute(
            "INSERT INTO objects (key, size, external_id, error, ended) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (external_id) DO NOTHING RETURNING id",
            (each.key, each.size, each.external_id, each.error, has_ended),
        )
        added += [
            Row(number, each.key, each.size, each.external_id, None, None, has_ended, None, each.error, None)
            for (number,) in inserted
        ]
    return added


def submitted(db: "sqlite3.Connection", *, results: Sequence[Submitted], dry_run: bool) -> None:
    """Record the jobs, or the estimates, of objects.

    Args:
        db: The connection to the journal.
        results: The service's answers; an object that has a job already keeps it.
        dry_run: Whether the results are estimates.
    """
    (last,) = db.execute("SELECT coalesce(max(submission), 0) FROM objects").fetchone()
    for number, each in enumerate(results, last + 1):
        db.execute(
            "UPDATE objects SET job_id = ?, status = ?, error = ?, estimate = coalesce(?, estimate), "
            "submission = CASE WHEN ? IS NULL THEN NULL ELSE ? END WHERE external_id = ? AND job_id IS NULL "
            "AND NOT (? AND status IS ?)",  # an estimate does not tell whether a job exists
            (*each[1:], each.job_id, number, each.external_id, dry_run, UNKNOWN),
        )


def ended(db: "sqlite3.Connection", *, results: Sequence[Ended]) -> None:
    """Record how jobs ended; a result without a status leaves its job open."""
    db.executemany(
        "UPDATE objects SET status = coalesce(?, status), output = ?, error = ?, ended = ? "
        "WHERE job_id = ? AND NOT ended",
        [(each.status, each.output, each.error, each.status is not None, each.job_id) for each in results],
    )


_COUNTS = f"""SELECT CASE WHEN job_id IS NULL AND status = '{UNKNOWN}' THEN '{UNKNOWN}'
                          WHEN job_id IS NULL AND error IS NOT NULL THEN 'refused'
                          WHEN job_id IS NULL THEN 'listed' WHEN ended THEN status ELSE 'submitted' END AS state,
                     count(*), sum(size), sum(estimate) FROM objects GROUP BY state"""  # noqa: S608  # no user input
_RESERVED = f"""SELECT sum(json_extract(CAST(answer AS TEXT), '$.reserved'))
                FROM operations JOIN batches USING (key) WHERE json_valid(CAST(answer AS TEXT))
                AND {_OF_THIS_RUN} AND {_OF_ITS_OBJECTS}"""  # noqa: S608  # no user input


def totals(db: "sqlite3.Connection") -> Totals:
    """Count the objects by state, and add up their sizes, estimates and reserved tokens."""
    from convertrilo.idempotency import ROUND_MARK

    totals = Totals()
    for state, count, size, estimate in db.execute(_COUNTS):
        totals.listed += count
        totals.size += size or 0
        totals.estimated += estimate or 0.0
        if state not in ("listed", "refused", UNKNOWN):
            totals.submitted += count
        totals.count(state, count)
    folder = db.execute("SELECT identity, generation FROM folder").fetchone()
    run = None if folder is None else _run_name(json.loads(folder[0]), int(folder[1]))
    (totals.reserved,) = db.execute(_RESERVED, {"run": run, "round": ROUND_MARK}).fetchone()
    return totals


def page(db: "sqlite3.Connection", *, after: int) -> list[Row]:
    """Return the next objects whose id is above `after`, in the order of their ids."""
    return _rows(db, "id > ?", after)


def page_without_job(db: "sqlite3.Connection", *, after: int, up_to: int) -> list[Row]:
    """Return the next objects that still need a job and whose id is above `after` and at most `up_to`."""
    return _rows(db, "job_id IS NULL AND NOT ended AND id > ? AND id <= ?", after, up_to)


def _rows(db: "sqlite3.Connection", where: str, *values: Any) -> list[Row]:
    query = f"SELECT {_COLUMNS} FROM objects WHERE {where} ORDER BY id LIMIT {_PAGE}"  # noqa: S608  # no user input
    return [Row(*row) for row in db.execute(query, values)]


def unended(db: "sqlite3.Connection", *, after: int, count: int) -> list[tuple[int, str]]:
    """Return the next jobs that have not ended and whose submission number is above `after`, each with its number."""
    query = "SELECT submission, job_id FROM objects WHERE submission > ? AND NOT ended ORDER BY submission LIMIT ?"
    return db.execute(query, (after, count)).fetchall()
