"""The second step of a run: submit a job for each object that has none, and record what the service answers."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from convertrilo._base_client import BaseClient
from convertrilo._model import field_specs
from convertrilo.bulk import submit_jobs
from convertrilo.bulk.results import SubmittedJob
from convertrilo.errors import (
    ConvertriloError,
    DecodeError,
    IdempotencyConflictError,
    JobRefusedError,
    OutcomeUnknownError,
)
from convertrilo.ingest.progress import IF_NOT_RECORDED, ProgressTracker, SubmittedSignal
from convertrilo.ingest.remote import RemoteRunner
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.journal import Journal, folders
from convertrilo.models import BulkCreateSettings, JobCreateRequest

RESULTS = 500
"""The maximum number of results that wait to be recorded, and that one transaction records."""


class JobRequests:
    """Iterates over the requests for objects that have no job: objects from earlier runs first, then new objects.

    This is not a generator, so a reader that stops early need not close it.
    """

    def __init__(
        self,
        folder: S3Folder,
        template: JobCreateRequest,
        journal: Journal,
        new_rows: MemoryObjectReceiveStream[list[folders.Row]],
        *,
        last_known_id: int,
        region_is_known: anyio.Event,
    ) -> None:
        self._folder = folder
        fields = {each.name: getattr(template, each.name) for each in field_specs(JobCreateRequest)}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._extra = template.extra
        self._journal = journal
        self._new_rows = new_rows
        self._last_known_id = last_known_id
        self._region_is_known = region_is_known
        self._after = 0
        self._rows: deque[folders.Row] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobCreateRequest:
        while not self._rows:
            self._rows.extend(each for each in await self._next_rows() if not each.ended)
            await self._folder.renew_keys()
        row = self._rows.popleft()
        return JobCreateRequest(
            **self._fields,
            external_id=row.external_id,
            source_s3=self._folder.source(row.key),
            extra=self._extra,
        )

    async def _next_rows(self) -> Sequence[folders.Row]:
        await self._region_is_known.wait()
        if self._after < self._last_known_id:
            page = partial(folders.page_without_job, after=self._after, up_to=self._last_known_id)
            rows = await self._journal.do(page)
            self._after = rows[-1].id if rows else self._last_known_id
            return rows
        try:
            return await self._new_rows.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


async def submit(
    client: BaseClient,
    requests: JobRequests,
    journal: Journal,
    runner: RemoteRunner | None,
    results: MemoryObjectSendStream[SubmittedJob],
    *,
    settings: BulkCreateSettings | None,
    batch_size: int,
    concurrency: int,
) -> None:
    """Submit the requests, send each result to the stream, and close the stream."""
    submitted = submit_jobs(
        client,
        requests,
        settings=settings,
        batch_size=batch_size,
        concurrency=concurrency,
        journal=journal,
        send_batch=None if runner is None else runner.send_batch,
    )
    with results:
        async for result in submitted:
            try:
                results.send_nowait(result)
            except anyio.WouldBlock:
                await results.send(result)


class ResultRecorder:
    """Records the results of submissions, several in one transaction, and counts them."""

    def __init__(
        self,
        journal: Journal,
        tracker: ProgressTracker,
        submitted: SubmittedSignal,
        hide: Callable[[str], str],
        *,
        dry_run: bool,
    ) -> None:
        self._journal = journal
        self._tracker = tracker
        self._submitted = submitted
        self._hide = hide
        self._dry_run = dry_run

    async def record_all(self, results: MemoryObjectReceiveStream[SubmittedJob]) -> None:
        """Record results until the stream ends; results that arrive during a transaction share the next transaction."""
        async for result in results:
            waiting = [result]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(waiting) < RESULTS:
                    waiting.append(results.receive_nowait())
            await self._record(waiting)
        self._submitted.complete()

    async def _record(self, results: Sequence[SubmittedJob]) -> None:
        submissions = [
            folders.Submitted(
                each.external_id, each.job_id, self._status(each), self._reason(each.error), each.estimate
            )
            for each in results
            if each.external_id is not None
        ]
        await self._journal.do(partial(folders.submitted, results=submissions, dry_run=self._dry_run), IF_NOT_RECORDED)
        totals = self._tracker.totals
        for each in submissions:
            if each.job_id is None and each.status == folders.UNKNOWN:
                totals.unknown += 1
            elif each.error is not None:
                totals.refused += 1
            else:
                totals.submitted += 1
        self._submitted.notify()
        self._tracker.notify()

    def _status(self, result: SubmittedJob) -> str | None:
        """Return the status of a job; `unknown` if there is no job id but the service may have created a job.

        The service may have created a job if the error says so, if the answer does not mention the job, or if the
        service knows the idempotency key with another body.
        """
        error = result.error
        if result.job_id is not None:
            return result.status
        if self._dry_run or error is None:
            return None
        is_open = _is_known_with_another_body(error) or isinstance(error, OutcomeUnknownError | DecodeError)
        return folders.UNKNOWN if is_open else None

    def _reason(self, error: ConvertriloError | None) -> str | None:
        if error is None:
            return None
        if _is_known_with_another_body(error):
            advice = "it was probably sent before with other credentials; run it again with those credentials"
            return self._hide(f"{error.message}: {advice}")
        code = error.code if isinstance(error, JobRefusedError) else ""
        return self._hide(error.message if code in ("", error.message) else f"{code}: {error.message}")


def _is_known_with_another_body(error: ConvertriloError) -> bool:
    """Whether the service knows the batch's key with another body; for a conflict in the journal, nothing was sent."""
    return isinstance(error, IdempotencyConflictError) and error.attempts > 0
