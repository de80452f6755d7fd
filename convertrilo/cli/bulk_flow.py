"""The work of `convertrilo bulk`: submit the lines of a file with `submit_jobs`, and print a result for each."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any, cast

import anyio.to_thread
import attrs
import click

from convertrilo.bulk.ledger import last_sent_by_another_key
from convertrilo.cli import failures
from convertrilo.cli.output import Output, note, print_line, readable, tokens_text
from convertrilo.cli.progress import StepProgress, show_steps
from convertrilo.cli.service import ServiceTarget
from convertrilo.cli.stdin import arriving_lines
from convertrilo.client import AsyncClient
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    JobRefusedError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from convertrilo.journal import Journal

_READ_BYTES = 1 << 16

ShowStep = Callable[[StepProgress], None]
JobFacts = dict[str, Any]
"""The printed facts about one job, under the field names of the wire."""


@attrs.frozen(kw_only=True)
class BulkOptions:
    """The options of `convertrilo bulk`, under the names that click gives them."""

    confirm: bool
    dry_run: bool
    waits: bool
    timeout: float
    """Seconds."""
    quiet: bool
    output: Output
    service: ServiceTarget

    @property
    def waits_for_jobs(self) -> bool:
        """Whether jobs are created and waited for."""
        return self.waits and not self.dry_run


class NumberedJob(dict[str, Any]):
    """One job of the file, with its line number."""

    line = 0


class JobLines:
    """Parses the lines of the file into jobs, and reports bad lines as failures.

    Args:
        report: Counts the jobs, and reports bad lines.
        dry_run: Whether no job is created, so that jobs need no externalId.
    """

    def __init__(self, report: "BulkReport", *, dry_run: bool) -> None:
        self._report = report
        self._needs_external_id = not dry_run
        self._line = 0

    async def read_file(self, file: Path) -> AsyncIterator[NumberedJob]:
        """Yield the jobs of a file."""
        with file.open("rb") as opened:
            # Many lines per call: handing one to a thread costs more than parsing it.
            while lines := await anyio.to_thread.run_sync(opened.readlines, _READ_BYTES):
                for job in self.parse(lines):
                    yield job
        self._report.all_lines_read = True

    def parse(self, lines: Iterable[bytes]) -> Iterator[NumberedJob]:
        """Yield the jobs of the next lines; a line that holds no valid job is reported as a failure and skipped."""
        for line in lines:
            self._line += 1
            if not line.strip():
                continue
            self._report.jobs_read += 1
            try:
                job = self._job(line)
            except ValueError as error:
                self._report.bad_line(self._line, str(error))
                continue
            yield job

    def _job(self, line: bytes) -> NumberedJob:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("is not a JSON object")
        job = NumberedJob(cast("dict[str, Any]", value))
        job.line = self._line
        if self._needs_external_id and not job.get("externalId"):
            raise ValueError("has no externalId: add one, or a rerun would create this job twice")
        return job


class BulkReport:
    """Counts the jobs by outcome, and prints a result for each.

    Args:
        options: The command's options.
    """

    def __init__(self, options: BulkOptions) -> None:
        self._options = options
        self.jobs_read = 0
        self.all_lines_read = False
        self.submitted: int = 0
        self.done: int = 0
        self.failed: int = 0
        self.unfinished: int = 0
        self._estimate = 0.0

    def bad_line(self, line: int, why: str) -> None:
        """Report a line that holds no valid job."""
        self.failed += 1
        self._print({"line": line, "code": "invalid_line", "error": why})

    def job_submitted(self, job: JobFacts, *, will_wait: bool) -> None:
        """Count a job that now exists, and print it unless the command will wait for its end."""
        self.submitted += 1
        self._estimate += job["estimate"] or 0.0
        if not will_wait:
            self._print(job)

    def job_done(self, job: JobFacts) -> None:
        """Report a job that has succeeded."""
        self.done += 1
        self._print(job)

    def job_failed(self, job: JobFacts, error: ConvertriloError) -> None:
        """Report a job that was refused or has failed."""
        self.failed += 1
        code = error.code if isinstance(error, JobRefusedError) else ""
        self._print({**job, "code": code or None, "error": error.message})

    def job_unfinished(self, job: JobFacts, error: WaitTimeoutError) -> None:
        """Report a job that is still running when the wait has timed out."""
        self.unfinished += 1
        self._print({**job, "error": error.message})

    def _print(self, job: JobFacts) -> None:
        job = {name: value for name, value in job.items() if value is not None}
        if self._options.output.is_for_programs:
            self._options.output.print_item(job)
        elif "error" in job:
            note(f"line {job['line']}: {readable(job['error'])}")

    def step(self) -> StepProgress:
        """Return the progress of the whole file."""
        finished = self.done + self.failed if self._options.waits_for_jobs else self.submitted + self.failed
        total = self.jobs_read if self.all_lines_read else None
        amount = f"{self.jobs_read:,} read, {self.submitted:,} submitted, {self.done:,} done, {self.failed:,} failed"
        return StepProgress("submitting", finished, total, amount, "{:,.1f} jobs".format)

    def print_summary(self) -> None:
        """Print the number of jobs by outcome, and their estimated price."""
        if self._options.quiet:
            return
        what = "would be created" if self._options.dry_run else "submitted"
        done = f", {self.done:,} succeeded" if self._options.waits_for_jobs else ""
        counts = f"{self.submitted:,} {what}{done}, {self.failed:,} failed"
        summary = f"{counts}; {tokens_text(self._estimate)} tokens estimated"
        (note if self._options.output.is_for_programs else print_line)(summary)


class BulkCommand:
    """One run of `convertrilo bulk`: submits the jobs, and waits for them with --wait.

    Args:
        file: The JSON Lines file; `-` is stdin.
        journal: The journal that --journal names; `None` uses the file's default journal.
        options: The command's options.
    """

    def __init__(self, file: Path, journal: Journal | None, options: BulkOptions) -> None:
        self._file = file
        self._options = options
        needs_default = journal is None and not options.dry_run
        self._default_journal = options.service.default_journal(file) if needs_default else None
        self._journal = journal if self._default_journal is None else Journal(self._default_journal)
        self._report = BulkReport(options)
        self._lines = JobLines(self._report, dry_run=options.dry_run)
        self._to_wait_for: dict[str, JobFacts] = {}

    def run(self) -> None:
        """Submit the jobs, print a result for each and a summary, and set the exit code.

        Raises:
            click.exceptions.Exit: A job was refused, has failed, or is still running.
        """
        self._options.service.run(self._work, how_to_resume=self._how_to_resume, journal=self._journal)
        self._report.print_summary()
        if self._report.failed:
            raise click.exceptions.Exit(failures.JOB_FAILED)
        if self._report.unfinished:
            raise click.exceptions.Exit(failures.NO_ANSWER)

    async def _work(self, client: AsyncClient) -> None:
        if self._default_journal is not None:
            await _check_api_key(client, self._default_journal)
        with show_steps(quiet=self._options.quiet) as show:
            try:
                await self._submit(client, show)
                show(self._report.step())
                await self._wait(client, show)
            except ConvertriloError as error:
                if failures.can_be_resumed(error):
                    error.add_note(self._how_to_resume())
                raise

    async def _submit(self, client: AsyncClient, show: ShowStep) -> None:
        if str(self._file) != "-":
            await self._submit_jobs(client, self._lines.read_file(self._file), show)
            return
        unclear: list[NumberedJob] = []
        async with arriving_lines() as arriving:
            async for lines in arriving:  # submit what has arrived, rather than wait for more from a slow pipe
                await self._submit_jobs(client, list(self._lines.parse(lines)), show, unclear)
        self._report.all_lines_read = True
        # Resending a batch of an earlier run takes all of its jobs, and their lines may have arrived separately.
        await self._submit_jobs(client, unclear, show)

    async def _submit_jobs(
        self,
        client: AsyncClient,
        jobs: "list[NumberedJob] | AsyncIterator[NumberedJob]",
        show: ShowStep,
        unclear: list[NumberedJob] | None = None,
    ) -> None:
        """Submit jobs, and report the result of each.

        Args:
            client: The client.
            jobs: The jobs.
            show: Shows the progress.
            unclear: If given, takes the jobs whose outcome is unknown, to be submitted once more.
        """
        settings = {"confirm": self._options.confirm, "dryRun": self._options.dry_run}
        async for result in client.submit_jobs(jobs, settings=settings):
            request = cast("NumberedJob", result.request)
            if unclear is not None and isinstance(result.error, OutcomeUnknownError):
                unclear.append(request)
                continue
            job: JobFacts = {
                "line": request.line,
                "externalId": result.external_id,
                "jobId": result.job_id,
                "status": result.status,
                "estimate": result.estimate,
            }
            if result.error is not None:
                self._report.job_failed(job, result.error)
            elif self._options.waits_for_jobs and result.job_id is not None:
                self._report.job_submitted(job, will_wait=True)
                self._to_wait_for[result.job_id] = job
            else:
                self._report.job_submitted(job, will_wait=False)
            show(self._report.step())

    async def _wait(self, client: AsyncClient, show: ShowStep) -> None:
        if not self._to_wait_for:
            return
        async for result in client.wait_for_jobs(self._to_wait_for, timeout=self._options.timeout):
            job = self._to_wait_for[result.job_id]
            if result.status is not None:
                job |= {"status": result.status.status, "downloadUrl": result.status.download_url}
            if isinstance(result.error, WaitTimeoutError):
                self._report.job_unfinished(job, result.error)
            elif isinstance(result.error, ConvertriloError):
                self._report.job_failed(job, result.error)
            else:
                self._report.job_done(job)
            show(self._report.step())

    def _how_to_resume(self) -> str:
        return f"{self._report.submitted:,} jobs are submitted; repeat the command to continue, no job is created twice"


async def _check_api_key(client: AsyncClient, path: Path) -> None:
    """Check that the default journal was used with the client's API key only.

    Otherwise the journal's answers may belong to the jobs of another account.

    Raises:
        ConfigurationError: The journal holds operations of another API key.
        JournalError: The journal cannot be used, or belongs to another service.
    """
    async with Journal(path) as journal:
        last = await last_sent_by_another_key(client, journal)
    if last is not None:
        raise ConfigurationError(
            f"the journal {path} was last used with another API key at {last.isoformat(timespec='seconds')}, and the "
            "contract does not say whether both keys belong to one account; nothing was sent. If they do, repeat the "
            f"command with --journal {quote(str(path))}: no job is created twice. If they do not, name another file "
            "with --journal"
        )
