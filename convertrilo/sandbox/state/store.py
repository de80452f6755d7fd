"""The sandbox's database: SQLite, in memory or in a file, and the transactions on it.

Transactions on a file run in a worker thread, because a commit may wait for the disk. Transactions in memory run
directly: creating a job takes 7 microseconds that way, and 87 in a worker thread. Either way they run one at a time.
"""

import random
import sqlite3
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import attrs

from convertrilo._clock import Clock
from convertrilo.sandbox.state.records import JOB_COLUMNS, Job, to_column

T = TypeVar("T")

SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (
    id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, password TEXT NOT NULL,
    available INTEGER NOT NULL CHECK (available >= 0), reserved INTEGER NOT NULL CHECK (reserved >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0), granted INTEGER NOT NULL, banned INTEGER NOT NULL DEFAULT 0,
    CHECK (available + reserved + spent = granted)
) WITHOUT ROWID;
CREATE TABLE sessions (token TEXT PRIMARY KEY, account TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE api_keys (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL, prefix TEXT NOT NULL, scopes TEXT NOT NULL, expires_at REAL, created_at REAL NOT NULL
);
CREATE TABLE answers (
    scope TEXT NOT NULL, key TEXT NOT NULL, operation TEXT NOT NULL, fingerprint BLOB NOT NULL,
    claimed_at REAL NOT NULL, status INTEGER, body BLOB, PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE TABLE jobs (n INTEGER PRIMARY KEY, {", ".join(JOB_COLUMNS)}, CHECK (reserved >= 0));
CREATE UNIQUE INDEX jobs_by_id ON jobs (id);
CREATE INDEX jobs_queued ON jobs (high_priority DESC, queued_at, n) WHERE status = 'queued';
CREATE TABLE uploads (job TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (
    job TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (job, number)
) WITHOUT ROWID;
CREATE TABLE webhooks (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, url TEXT NOT NULL, events TEXT NOT NULL,
    secret TEXT NOT NULL, is_active INTEGER NOT NULL, failure_count INTEGER NOT NULL, last_triggered_at REAL,
    last_failed_at REAL, created_at REAL NOT NULL
);
CREATE TABLE deliveries (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, webhook TEXT, url TEXT NOT NULL, event TEXT NOT NULL, job TEXT,
    body BLOB NOT NULL, attempt INTEGER NOT NULL, due_at REAL, status TEXT, status_code INTEGER, duration_ms INTEGER,
    response_body TEXT, error TEXT, next_retry_at REAL, retried_at REAL, created_at REAL NOT NULL
);
CREATE TABLE drive_files (id TEXT PRIMARY KEY, folder TEXT NOT NULL, name TEXT NOT NULL, size INTEGER) WITHOUT ROWID;
CREATE INDEX drive_files_by_folder ON drive_files (folder, name, id);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_INSERT_JOB = f"INSERT INTO jobs ({', '.join(JOB_COLUMNS)}) VALUES ({', '.join('?' * len(JOB_COLUMNS))})"  # noqa: S608 - names
_SELECT_JOB = f"SELECT {', '.join(JOB_COLUMNS)} FROM jobs "  # noqa: S608 - our own column names


class Ids:
    """Generates ids and secrets: reproducible with a seed, unpredictable without one."""

    def __init__(self, seed: str | None) -> None:
        self._random = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311 - a seed is for tests

    def uuid(self) -> str:
        """Return a new id."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def secret(self) -> str:
        """Return 48 new hex digits."""
        return f"{self._random.getrandbits(192):048x}"


@attrs.frozen(eq=False)
class Tx:
    """One transaction. `now` is its time, in seconds since 1970."""

    db: sqlite3.Connection
    now: float
    ids: Ids
    changed_jobs: list[Job] = attrs.field(factory=list[Job])
    """The jobs whose status the transaction changes."""
    new_deliveries: list[str] = attrs.field(factory=list[str])
    """The ids of the webhook deliveries that the transaction adds."""

    def run(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Execute one statement."""
        return self.db.execute(sql, values)

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        row: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        return row

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        return self.db.execute(sql, values).fetchall()

    def jobs(self, where: str = "ORDER BY n", *values: Any) -> list[Job]:
        """Return the jobs selected by the end of a SELECT statement."""
        return [Job.from_row(row) for row in self.rows(_SELECT_JOB + where, *values)]

    @contextmanager
    def attempt(self) -> Generator[None]:
        """Roll back only the changes of the block if it raises."""
        changed, added = len(self.changed_jobs), len(self.new_deliveries)
        self.db.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK TO attempt")
            del self.changed_jobs[changed:], self.new_deliveries[added:]
            raise
        finally:
            self.db.execute("RELEASE attempt")

    def job(self, job_id: str) -> Job | None:
        """Return the job with this id, or None."""
        row = self.row(_SELECT_JOB + "WHERE id = ?", job_id)
        return None if row is None else Job.from_row(row)

    def add_job(self, job: Job) -> None:
        """Insert a new job."""
        self.run(_INSERT_JOB, *job.to_row())
        self.changed_jobs.append(job)

    def change_job(self, job: Job, **changes: Any) -> Job:
        """Update fields of a job, and return the changed job."""
        columns = ", ".join(f"{name} = ?" for name in changes)
        self.run(f"UPDATE jobs SET {columns} WHERE id = ?", *map(to_column, changes.values()), job.id)  # noqa: S608 - names
        changed = attrs.evolve(job, **changes)
        if "status" in changes:
            self.changed_jobs.append(changed)
        return changed


def _do_nothing(_tx: Tx) -> None:
    pass


class Store:
    """Opens the database and runs transactions.

    Args:
        file: the database file; None keeps the database in memory.
        clock: the source of each transaction's time.
        seed: the seed of generated ids; None makes them unpredictable.
    """

    def __init__(self, file: Path | None, clock: Clock, seed: int | None) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # tests may inspect from a thread other than the server's
        self._writer = anyio.CapacityLimiter(1) if file is not None else None
        self.before_commit: Callable[[Tx], None] = _do_nothing
        """Called within each transaction that changed a job's status, to add its webhook deliveries."""
        self.on_commit: Callable[[Tx], None] = _do_nothing
        """Called in the event loop after each transaction that changed a job's status or added a delivery."""
        self._db = sqlite3.connect(file or ":memory:", timeout=0, isolation_level=None, check_same_thread=False)
        try:
            runs = self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise RuntimeError("the state is in use: another sandbox runs on it") from None
            if isinstance(error, sqlite3.DatabaseError):
                raise RuntimeError(f"the state cannot be read ({error}): use another folder, or remove this") from None
            raise
        self._ids = Ids(None if seed is None else f"{seed}/{runs}")  # a restart must not repeat ids

    def _open(self) -> int:
        """Create or check the schema, and return how many times the database was opened before."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # two sandboxes would run each job twice
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # commits survive a killed process, but not always a power cut
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        elif version != SCHEMA_VERSION:
            raise RuntimeError(
                f"the state has schema {version}, and this version of the sandbox reads {SCHEMA_VERSION}"
            )
        found = self._db.execute("SELECT value FROM meta WHERE name = 'runs'").fetchone()
        runs = int(found[0]) if found else 0
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('runs', ?)", (str(runs + 1),))
        return runs

    async def transaction(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in one transaction, which is rolled back if `work` raises."""
        if self._writer is None:
            result, tx = self._run(work)
        else:
            result, tx = await anyio.to_thread.run_sync(self._run, work, limiter=self._writer)
        if tx.changed_jobs or tx.new_deliveries:
            self.on_commit(tx)
        return result

    def read(self, work: Callable[[Tx], T]) -> T:
        """Run `work`, which must only read, in the calling thread; any thread may call this."""
        return self._run(work)[0]

    def _run(self, work: Callable[[Tx], T]) -> tuple[T, Tx]:
        with self._lock:
            tx = Tx(self._db, self._clock.time(), self._ids)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = work(tx)
                if tx.changed_jobs:
                    self.before_commit(tx)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            return result, tx

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()
