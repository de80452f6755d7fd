"""What `convertrilo ingest` does: hands the options to `ingest_folder`, shows how it goes, and sums up."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from convertrilo.cli import failures
from convertrilo.cli.encode_flow import metadata_of
from convertrilo.cli.options import ENCODING
from convertrilo.cli.progress import Step, steps
from convertrilo.cli.service import Service
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, wire_name
from convertrilo.errors import ConvertriloError, Issue, ValidationError
from convertrilo.ingest import IngestProgress, IngestReport, ingest_folder
from convertrilo.ingest.report import check_writable
from convertrilo.ingest.s3_folder import parse_url
from convertrilo.models import JobCreateRequest, S3FolderOutput, S3FolderSource

_FILTERS = ("exclude", "min_size", "max_size", "max_files", "shard", "manifest", "anonymous", "dry_run", "from_scratch")
_COUNTS = ("listed", "passed_over", "submitted", "succeeded", "failed", "canceled", "refused", "unknown", "unfinished")
_SUMS = ("size", "estimated", "reserved", "dry_run")


class Ingestion:
    """One run of `convertrilo ingest`."""

    def __init__(self, source: str, modified_since: datetime | None, options: dict[str, Any]) -> None:
        folder = parse_url(source)
        self._source = S3FolderSource(
            bucket=folder.bucket, prefix=folder.prefix, endpoint=options["endpoint"], region=options["region"]
        )
        wire = {wire_name(name): options[name] for name in ENCODING}
        self._template = from_request(JobCreateRequest, {**wire, "metadata": metadata_of(options["metadata"])})
        self._waits: bool = options["waits"]
        self._how: dict[str, Any] = {name: options[name] for name in _FILTERS}
        self._how |= {"include": options["include"] or None, "journal": options["journal_file"]}
        self._how |= {"wait": self._waits, "timeout": options["timeout"]}
        output = options["output_s3"]
        self._how |= {"on_demand": options["on_demand"]}
        self._how |= {"output": from_request(S3FolderOutput, output) if output else None}
        if modified_since is not None:
            zoned = modified_since.tzinfo is not None
            self._how["modified_since"] = modified_since if zoned else modified_since.replace(tzinfo=UTC)
        self._report: Path | None = options["report"]
        self._output = options["output"]
        self._quiet: bool = options["quiet"]
        self._service: Service = options["service"]
        self._at: IngestProgress | None = None

    def run(self) -> None:
        """Ingest, show how it goes, and print the summary; the exit code says whether all went well.

        Raises:
            click.exceptions.Exit: Not all did.
            ValidationError: The report cannot be written.
        """
        if self._report is not None:
            if not self._report.parent.is_dir():
                raise click.UsageError(f"there is no folder {self._report.parent}")
            with _as_the_options(self._report):
                check_writable(self._report)
        report = self._service.run(self._work, state=self._how_to_go_on)
        summary = {wire_name(name): getattr(report, name) for name in (*_COUNTS, *_SUMS)}
        summary |= {"journal": str(self._how["journal"]), "report": self._report and str(self._report)}
        self._output.show(summary, quiet=self._quiet)
        if report.refused or report.unknown or report.failed or report.canceled:
            raise click.exceptions.Exit(failures.JOB_FAILED)
        if self._waits and report.unfinished:
            raise click.exceptions.Exit(failures.NO_ANSWER)

    async def _work(self, client: AsyncClient) -> IngestReport:
        with steps(quiet=self._quiet) as show:

            def note(at: IngestProgress) -> None:
                self._at = at
                show(self._step(at))

            try:
                report = await ingest_folder(client, self._source, self._template, on_progress=note, **self._how)
            except ConvertriloError as error:
                if failures.leaves_work(error):
                    error.add_note(self._how_to_go_on())
                raise
        if self._report is not None:
            try:
                with _as_the_options(self._report):
                    await report.write(self._report)
            except ValidationError as error:
                error.add_note(self._how_to_go_on())
                raise
        return report

    def _step(self, at: IngestProgress) -> Step:
        done = (at.succeeded if self._waits else at.submitted) + at.failed
        amount = f"{at.listed:,} listed, {at.submitted:,} submitted, {at.succeeded:,} succeeded, {at.failed:,} failed"
        return Step("ingesting", done, at.listed if at.is_listed else None, amount, "{:,.1f} files".format)

    def _how_to_go_on(self) -> str:
        at = self._at
        known = "" if at is None else f"{at.listed:,} objects are listed and {at.submitted:,} submitted; "
        return f"{known}run the same command again to go on: {self._how['journal']} knows what is done"


@contextmanager
def _as_the_options(report: Path) -> Generator[None]:
    """Let a report that cannot be written be an option that is not right."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ValidationError("report", [Issue(str(report), f"cannot be written: {why}")]) from error
