"""What `convertrilo bulk` does: hands the lines of a file to `submit_jobs`, and prints what comes back."""

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, cast

import anyio.to_thread
import click

from convertrilo._base_client import engine_of
from convertrilo.cli import failures
from convertrilo.cli.output import Output, note, print_line, readable, tokens_text
from convertrilo.cli.progress import Step, steps
from convertrilo.cli.service import Service
from convertrilo.cli.stdin import arriving_lines
from convertrilo.client import AsyncClient
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    JobRefusedError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from convertrilo.journal.entries import last_of_other_senders
from convertrilo.journal.journal import Journal

_READ_BYTES = 1 << 16


class _Line(dict[str, Any]):
    """A job, and in which line of the file it is."""

    number = 0


class Bulk:
    """One run of `convertrilo bulk`."""

    def __init__(self, file: Path, journal: Journal | None, options: dict[str, Any]) -> None:
        self._file = file
        self._dry_run: bool = options["dry_run"]
        self._settings = {"confirm": options["confirm"], "dryRun": self._dry_run}
        self._waits: bool = options["waits"] and not self._dry_run
        self._timeout: float = options["timeout"]
        self._quiet: bool = options["quiet"]
        self._output: Output = options["output"]
        self._service: Service = options["service"]
        needs_default = journal is None and not self._dry_run  # which makes nothing
        self._default_journal = self._service.journal_of(file) if needs_default else None
        self._journal = journal if self._default_journal is None else Journal(self._default_journal)
        self._number = self._taken = self._submitted = self._done = self._failed = self._unfinished = 0
        self._estimate = 0.0
        self._is_read = False

    def run(self) -> None:
        """Submit the jobs and print what becomes of each; the exit code says whether all went well.

        Raises:
            click.exceptions.Exit: Not all did.
        """
        self._service.run(self._work, state=self._how_to_go_on, journal=self._journal)
        what = "would be created" if self._dry_run else "submitted"
        done = f", {self._done:,} succeeded" if self._waits else ""
        counts = f"{self._submitted:,} {what}{done}, {self._failed:,} failed"
        summary = f"{counts}; {tokens_text(self._estimate)} tokens estimated"
        if not self._quiet:
            (note if self._output.is_for_programs else print_line)(summary)
        if self._failed:
            raise click.exceptions.Exit(failures.JOB_FAILED)
        if self._unfinished:
            raise click.exceptions.Exit(failures.NO_ANSWER)

    async def _work(self, client: AsyncClient) -> None:
        if self._default_journal is not None:
            await self._check_account(client, self._default_journal)
        with steps(quiet=self._quiet) as show:
            try:
                await self._submit(client, show)
            except ConvertriloError as error:
                if failures.leaves_work(error):
                    error.add_note(self._how_to_go_on())
                raise

    async def _check_account(self, client: AsyncClient, path: Path) -> None:
        """Check that a journal nobody has named is this account's, or its answers would be another one's jobs.

        Raises:
            ConfigurationError: It holds what was sent with another API key.
            JournalError: It cannot be used, or is another service's.
        """
        engine, _ = engine_of(client)
        work = partial(last_of_other_senders, service=engine.service, sender=engine.credentials.sender)
        async with Journal(path) as journal:
            last = await journal.do(work, "Nothing was sent.")
        if last is not None:
            raise ConfigurationError(
                f"{path} holds what was sent with another API key, last at {last.isoformat(timespec='seconds')}, and "
                "nobody says whether that is a key of the same account; nothing was sent. If it is, --journal "
                f"{quote(str(path))} goes on with what is there, and makes no job twice; if it is another account's, "
                "--journal must name another file for this one"
            )

    async def _submit(self, client: AsyncClient, show: Any) -> None:
        made: dict[str, dict[str, Any]] = {}
        if str(self._file) == "-":
            unclear: list[_Line] = []
            async with arriving_lines() as arriving:
                async for lines in arriving:  # what has come by a slow pipe does not wait for more
                    await self._submit_all(client, list(self._jobs(lines)), made, show, unclear)
            self._is_read = True
            # A batch of an earlier run may need all of its jobs to go out again, and their lines may have come apart.
            await self._submit_all(client, unclear, made, show)
        else:
            await self._submit_all(client, self._jobs_of_file(), made, show)
        show(self._step())
        if not made:
            return
        async for result in client.wait_for_jobs(made, timeout=self._timeout):
            job = made[result.job_id]
            if result.status is not None:
                job |= {"status": result.status.status, "downloadUrl": result.status.download_url}
            if isinstance(result.error, WaitTimeoutError):
                self._unfinished += 1
                self._tell({**job, "error": result.error.message})
            elif isinstance(result.error, ConvertriloError):
                self._fail(job, result.error)
            else:
                self._done += 1
                self._tell(job)
            show(self._step())

    async def _submit_all(
        self,
        client: AsyncClient,
        jobs: Any,
        made: dict[str, dict[str, Any]],
        show: Any,
        unclear: list[_Line] | None = None,
    ) -> None:
        """Submit jobs, and tell what comes of each.

        Those that are to be waited for are told of later, from `made`; and those of which it is not known what came,
        if they are to go once more, from `unclear`.
        """
        async for each in client.submit_jobs(jobs, settings=self._settings):
            line = cast("_Line", each.request)
            if unclear is not None and isinstance(each.error, OutcomeUnknownError):
                unclear.append(line)
                continue
            job: dict[str, Any] = {"line": line.number, "externalId": each.external_id, "jobId": each.job_id}
            job |= {"status": each.status, "estimate": each.estimate}
            if each.error is not None:
                self._fail(job, each.error)
            else:
                self._submitted += 1
                self._estimate += each.estimate or 0.0
                if self._waits and each.job_id is not None:
                    made[each.job_id] = job
                else:
                    self._tell(job)
            show(self._step())

    async def _jobs_of_file(self) -> AsyncIterator[_Line]:
        with self._file.open("rb") as file:
            # In pieces, as a thread costs more than a line.
            while lines := await anyio.to_thread.run_sync(file.readlines, _READ_BYTES):
                for job in self._jobs(lines):
                    yield job
        self._is_read = True

    def _jobs(self, lines: Iterable[bytes]) -> Iterator[_Line]:
        """Return the jobs of the next lines; one that is no job, or would be one twice, is a failure of its own."""
        for line in lines:
            self._number += 1
            if not line.strip():
                continue
            self._taken += 1
            try:
                job = self._job(self._number, line)
            except ValueError as error:
                self._failed += 1
                self._tell({"line": self._number, "code": "invalid_line", "error": str(error)})
                continue
            yield job

    def _job(self, number: int, line: bytes) -> _Line:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError("is no JSON object")
        job = _Line(cast("dict[str, Any]", value))
        job.number = number
        if not self._dry_run and not job.get("externalId"):
            raise ValueError("has no externalId: give it one, or a rerun would make it twice")
        return job

    def _fail(self, job: dict[str, Any], error: ConvertriloError) -> None:
        self._failed += 1
        code = error.code if isinstance(error, JobRefusedError) else ""
        self._tell({**job, "code": code or None, "error": error.message})

    def _tell(self, job: Mapping[str, Any]) -> None:
        job = {name: value for name, value in job.items() if value is not None}
        if self._output.is_for_programs:
            self._output.line(job)
        elif "error" in job:
            note(f"line {job['line']}: {readable(job['error'])}")

    def _step(self) -> Step:
        done = self._done + self._failed if self._waits else self._submitted + self._failed
        amount = f"{self._taken:,} read, {self._submitted:,} submitted, {self._done:,} done, {self._failed:,} failed"
        return Step("submitting", done, self._taken if self._is_read else None, amount, "{:,.1f} jobs".format)

    def _how_to_go_on(self) -> str:
        return f"{self._submitted:,} jobs are submitted; the same command again goes on, and makes none of them twice"
