"""The work of `convertrilo ingest`: run `ingest_folder`, show its progress, and print a summary."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import click

from convertrilo.cli import failures
from convertrilo.cli.options import ENCODING, parse_metadata
from convertrilo.cli.output import Output
from convertrilo.cli.progress import StepProgress, show_steps
from convertrilo.cli.service import ServiceTarget
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, wire_name
from convertrilo.errors import ConvertriloError, Issue, ValidationError
from convertrilo.ingest import IngestProgress, IngestReport, ingest_folder
from convertrilo.ingest.report import check_report_file
from convertrilo.ingest.s3_folder import parse_url
from convertrilo.models import JobCreateRequest, S3FolderOutput, S3FolderSource

_COUNTS = ("listed", "passed_over", "submitted", "succeeded", "failed", "canceled", "refused", "unknown", "unfinished")
_TOTALS = ("size", "estimated", "reserved", "dry_run")


@attrs.frozen(kw_only=True)
class IngestOptions:
    """The options of `convertrilo ingest`, under the names that click gives them, without those in `ENCODING`."""

    journal_file: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    min_size: int | None
    max_size: int | None
    modified_since: datetime | None
    max_files: int | None
    shard: str | None
    manifest: Path | None
    endpoint: str | None
    region: str | None
    anonymous: bool
    on_demand: bool
    output_s3: Mapping[str, Any] = attrs.field(repr=False)
    """In the wire's shape, with credentials; empty if there is none."""
    dry_run: bool
    from_scratch: bool
    waits: bool
    timeout: float
    """Seconds."""
    report: Path | None
    quiet: bool
    output: Output
    service: ServiceTarget


class IngestCommand:
    """One run of `convertrilo ingest`.

    Args:
        source: The folder, as `s3://bucket/prefix`.
        encoding: The options in `ENCODING`, and `metadata`.
        options: The other options.

    Raises:
        click.UsageError: The metadata is wrong.
        ValidationError: The contract does not allow a value.
    """

    def __init__(self, source: str, encoding: Mapping[str, Any], options: IngestOptions) -> None:
        folder = parse_url(source)
        self._source = S3FolderSource(
            bucket=folder.bucket, prefix=folder.prefix, endpoint=options.endpoint, region=options.region
        )
        wire = {wire_name(name): encoding[name] for name in ENCODING}
        self._template = from_request(JobCreateRequest, {**wire, "metadata": parse_metadata(encoding["metadata"])})
        self._s3_output = from_request(S3FolderOutput, options.output_s3) if options.output_s3 else None
        self._options = options
        self._progress: IngestProgress | None = None

    def run(self) -> None:
        """Ingest the folder, show the progress, print the summary, and set the exit code.

        Raises:
            click.exceptions.Exit: An object was refused or is unknown, or a job failed or is still running.
            ValidationError: The report cannot be written.
        """
        options = self._options
        if options.report is not None:
            if not options.report.parent.is_dir():
                raise click.UsageError(f"there is no folder {options.report.parent}")
            with _write_errors_as_usage(options.report):
                check_report_file(options.report)
        report = options.service.run(self._work, how_to_resume=self._how_to_resume)
        summary = {wire_name(name): getattr(report, name) for name in (*_COUNTS, *_TOTALS)}
        summary |= {"journal": str(options.journal_file), "report": options.report and str(options.report)}
        options.output.show(summary, quiet=options.quiet)
        if report.refused or report.unknown or report.failed or report.canceled:
            raise click.exceptions.Exit(failures.JOB_FAILED)
        if options.waits and report.unfinished:
            raise click.exceptions.Exit(failures.NO_ANSWER)

    async def _work(self, client: AsyncClient) -> IngestReport:
        try:
            report = await self._ingest(client)
        except ConvertriloError as error:
            if failures.can_be_resumed(error):
                error.add_note(self._how_to_resume())
            raise
        if self._options.report is not None:
            try:
                with _write_errors_as_usage(self._options.report):
                    await report.write(self._options.report)
            except ValidationError as error:
                error.add_note(self._how_to_resume())
                raise
        return report

    async def _ingest(self, client: AsyncClient) -> IngestReport:
        options = self._options
        with show_steps(quiet=options.quiet) as show:

            def on_progress(at: IngestProgress) -> None:
                self._progress = at
                show(self._step(at))

            return await ingest_folder(
                client,
                self._source,
                self._template,
                journal=options.journal_file,
                include=options.include or None,
                exclude=options.exclude,
                min_size=options.min_size,
                max_size=options.max_size,
                modified_since=_in_utc(options.modified_since),
                max_files=options.max_files,
                shard=options.shard,
                manifest=options.manifest,
                anonymous=options.anonymous,
                on_demand=options.on_demand,
                output=self._s3_output,
                wait=options.waits,
                timeout=options.timeout,
                dry_run=options.dry_run,
                from_scratch=options.from_scratch,
                on_progress=on_progress,
            )

    def _step(self, at: IngestProgress) -> StepProgress:
        done = (at.succeeded if self._options.waits else at.submitted) + at.failed
        amount = f"{at.listed:,} listed, {at.submitted:,} submitted, {at.succeeded:,} succeeded, {at.failed:,} failed"
        return StepProgress("ingesting", done, at.listed if at.is_listed else None, amount, "{:,.1f} files".format)

    def _how_to_resume(self) -> str:
        at = self._progress
        known = "" if at is None else f"{at.listed:,} objects are listed and {at.submitted:,} submitted; "
        return f"{known}repeat the command to continue: {self._options.journal_file} records what is done"


def _in_utc(moment: datetime | None) -> datetime | None:
    """Return a moment with a time zone, by default UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@contextmanager
def _write_errors_as_usage(report: Path) -> Generator[None]:
    """Turn an `OSError` about the report into a `ValidationError` of the option."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ValidationError("report", [Issue(str(report), f"cannot be written: {why}")]) from error
