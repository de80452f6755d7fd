"""What became of a folder: counts, and a row for each object, read from the journal as it is asked for."""

import csv
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import anyio.to_thread
import attrs

from convertrilo._output_file import check_place, part_of
from convertrilo.ingest.record import FolderRecord
from convertrilo.journal import Journal
from convertrilo.journal.folders import UNKNOWN, Row


@attrs.frozen(kw_only=True)
class IngestRow:
    """One object of a folder, and what became of it."""

    key: str
    size: int | None
    """Bytes, where that is known."""
    external_id: str
    """The job's; where on-demand jobs have the same one, the later ones have `#` and their own id behind it here."""
    job_id: str | None
    status: str
    """`listed`, `refused` (there is no job, and `error` says why), `unknown` (there may be one, and `error` says why
    that is open), `submitted`, or how the job ended: `success`, `failed`, `canceled`."""
    output: str | None
    """Where the service put the encoded file."""
    error: str | None
    estimate: float | None
    """What the job is expected to cost, in tokens (neu)."""


@attrs.frozen(kw_only=True)
class IngestReport:
    """What became of a folder so far, in all runs on its journal together."""

    listed: int
    """Objects that were found and wanted."""
    passed_over: int
    """Objects that this run found and that were not wanted."""
    submitted: int
    """Objects that have a job."""
    succeeded: int
    failed: int
    canceled: int
    refused: int
    """Objects that have no job because something is wrong with them, or with their job."""
    unknown: int
    """Objects that may have a job or not: it was sent, and what came of it is not known."""
    size: int
    """Bytes of all objects."""
    estimated: float
    """What the jobs are expected to cost, in tokens (neu), as far as the service says: not of on-demand jobs."""
    reserved: float | None
    """What the service says that it has reserved for the jobs, in tokens (neu), on this journal since it was begun, or
    begun from scratch; `None` where it says nothing, as of on-demand jobs and of a dry run."""
    dry_run: bool
    journal: Journal = attrs.field(repr=False, eq=False)

    @property
    def unfinished(self) -> int:
        """Jobs of which this journal does not know the end."""
        return self.submitted - self.succeeded - self.failed - self.canceled

    async def rows(self) -> AsyncIterator[IngestRow]:
        """Iterate over all objects, in the order in which they were found.

        Raises:
            JournalError: The journal cannot be read.
        """
        async with self.journal:
            record = FolderRecord(self.journal)
            after = 0
            while page := await record.page(after):
                for each in page:
                    yield _row(each)
                after = page[-1].id

    async def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a row for each object to a file, which is there only once it is whole, and return its path.

        Args:
            path: The file; as CSV with a header if its name ends in `.csv`, else as JSON lines.

        Raises:
            JournalError: The journal cannot be read.
            OSError: The file cannot be written.
        """
        target = Path(path)
        check_place(target)
        part = part_of(target)
        as_csv = target.suffix.lower() == ".csv"
        file = await anyio.to_thread.run_sync(_begin, part, as_csv)
        try:
            with file:
                async with self.journal:
                    record = FolderRecord(self.journal)
                    after = 0
                    while page := await record.page(after):
                        await anyio.to_thread.run_sync(_write, file, page, as_csv)
                        after = page[-1].id
            await anyio.to_thread.run_sync(part.replace, target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        return target


def try_out(path: Path) -> None:
    """Find out whether a report can be written to a file, before there is one; what is there stays as it is.

    Raises:
        OSError: It cannot.
    """
    check_place(path)
    part = part_of(path)
    try:
        part.open("x").close()
    except FileExistsError:  # another run's, or one that was killed has left it
        part.open("a").close()
    else:
        part.unlink()


def status_of(row: Row) -> str:
    """Return where an object stands."""
    if row.job_id is None and row.status == UNKNOWN:
        return UNKNOWN
    if row.job_id is None:
        return "listed" if row.error is None else "refused"
    return (row.status if row.ended else None) or "submitted"


def _row(row: Row) -> IngestRow:
    return IngestRow(
        key=row.key,
        size=row.size,
        external_id=row.external_id,
        job_id=row.job_id,
        status=status_of(row),
        output=row.output,
        error=row.error,
        estimate=row.estimate,
    )


_NAMES = [each.name for each in attrs.fields(IngestRow)]


def _begin(path: Path, as_csv: bool) -> IO[str]:
    file = path.open("w", encoding="utf-8", newline="")
    if as_csv:
        csv.writer(file).writerow(_NAMES)
    return file


def _write(file: IO[str], page: Sequence[Row], as_csv: bool) -> None:
    rows: list[dict[str, Any]] = [attrs.asdict(_row(each)) for each in page]
    if as_csv:
        csv.DictWriter(file, _NAMES).writerows(rows)
    else:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
