"""The report on a folder: counts, and a row for each object, read from the journal on request."""

import csv
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import anyio.to_thread
import attrs

from convertrilo._output_file import check_replaceable, part_path
from convertrilo.journal import Journal, folders


@attrs.frozen(kw_only=True)
class IngestRow:
    """One object of a folder, with its job and how the job ended."""

    key: str
    size: int | None
    """Bytes; `None` if unknown, as for on-demand jobs and in a manifest without sizes."""
    external_id: str
    """The external id of the object's job. If several on-demand jobs share an external id, the later jobs have `#` and
    their job id appended here."""
    job_id: str | None
    status: str
    """`listed`; `refused`, if there is no job, and `error` says why; `unknown`, if there may be a job, and `error` says
    why this is not known; `submitted`; or how the job ended: `success`, `failed` or `canceled`."""
    output: str | None
    """The key or public URL of the encoded file."""
    error: str | None
    estimate: float | None
    """The estimated cost of the job, in tokens (neu)."""


@attrs.frozen(kw_only=True)
class IngestReport:
    """The state of a folder, counted over all runs on its journal."""

    listed: int
    """Objects that were found and passed the filters."""
    passed_over: int
    """Objects that this run found and that did not pass the filters."""
    submitted: int
    """Objects that have a job."""
    succeeded: int
    failed: int
    canceled: int
    refused: int
    """Objects that have no job, because the object or its job was refused."""
    unknown: int
    """Objects that may have a job: the job was sent, and its outcome is not known."""
    size: int
    """Bytes of all objects together."""
    estimated: float
    """The estimated cost of the jobs, in tokens (neu); the service gives no estimate for on-demand jobs."""
    reserved: float | None
    """Tokens (neu) that the service reserved for the jobs since the first run on the journal, or the last run from
    scratch; `None` if the service does not say, as for on-demand jobs and in a dry run."""
    dry_run: bool
    journal: Journal = attrs.field(repr=False, eq=False)

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended, according to the journal."""
        return self.submitted - self.succeeded - self.failed - self.canceled

    async def rows(self) -> AsyncIterator[IngestRow]:
        """Iterate over all objects, in the order in which they were found, a page of the journal at a time.

        Raises:
            JournalError: The journal cannot be read.
        """
        async with self.journal:
            after = 0
            while page := await self.journal.do(partial(folders.page, after=after)):
                for each in page:
                    yield _ingest_row(each)
                after = page[-1].id

    async def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a row for each object to a file, and return its path. The file appears only once it is complete.

        Args:
            path: The file. It is CSV with a header if its name ends in `.csv`, else JSON lines.

        Raises:
            JournalError: The journal cannot be read.
            OSError: The file cannot be written.
        """
        target = Path(path)
        check_replaceable(target)
        part = part_path(target)
        as_csv = target.suffix.lower() == ".csv"
        file = await anyio.to_thread.run_sync(_begin, part, as_csv)
        try:
            with file:
                async with self.journal:
                    after = 0
                    while page := await self.journal.do(partial(folders.page, after=after)):
                        await anyio.to_thread.run_sync(_write, file, page, as_csv)
                        after = page[-1].id
            await anyio.to_thread.run_sync(part.replace, target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        return target


async def read_report(journal: Journal, *, passed_over: int = 0, dry_run: bool = False) -> IngestReport:
    """Return the report on the folder in a journal, with the journal's counts.

    Raises:
        JournalError: The journal cannot be read.
    """
    totals = await journal.do(folders.totals)
    return IngestReport(**attrs.asdict(totals), passed_over=passed_over, dry_run=dry_run, journal=journal)


def check_report_file(path: Path) -> None:
    """Check that a report can be written to this path; an existing file is not changed.

    Raises:
        OSError: The file cannot be written.
    """
    check_replaceable(path)
    part = part_path(path)
    try:
        part.open("x").close()
    except FileExistsError:  # another run is writing it, or a killed run left it
        part.open("a").close()
    else:
        part.unlink()


def _status_of(row: folders.Row) -> str:
    """Return the status that `IngestRow` documents."""
    if row.job_id is None and row.status == folders.UNKNOWN:
        return folders.UNKNOWN
    if row.job_id is None:
        return "listed" if row.error is None else "refused"
    return (row.status if row.ended else None) or "submitted"


def _ingest_row(row: folders.Row) -> IngestRow:
    return IngestRow(
        key=row.key,
        size=row.size,
        external_id=row.external_id,
        job_id=row.job_id,
        status=_status_of(row),
        output=row.output,
        error=row.error,
        estimate=row.estimate,
    )


_COLUMNS = [each.name for each in attrs.fields(IngestRow)]


def _begin(path: Path, as_csv: bool) -> IO[str]:
    file = path.open("w", encoding="utf-8", newline="")
    if as_csv:
        csv.writer(file).writerow(_COLUMNS)
    return file


def _write(file: IO[str], page: Sequence[folders.Row], as_csv: bool) -> None:
    rows: list[dict[str, Any]] = [attrs.asdict(_ingest_row(each)) for each in page]
    if as_csv:
        csv.DictWriter(file, _COLUMNS).writerows(rows)
    else:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
