"""One run over a folder: listing, submitting and following at once, each written down as it happens."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Self

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.redaction import Hide, hider
from convertrilo._model import field_specs, fit_to_show
from convertrilo._tasks import together
from convertrilo.bulk import submit_jobs
from convertrilo.bulk.results import SubmittedJob
from convertrilo.errors import (
    ConvertriloError,
    DecodeError,
    IdempotencyConflictError,
    JobRefusedError,
    OutcomeUnknownError,
    WaitTimeoutError,
)
from convertrilo.ingest.listing import Folder, UnorderedError, list_objects
from convertrilo.ingest.manifest import read_manifest
from convertrilo.ingest.objects import Page, S3Object, external_id, is_text
from convertrilo.ingest.record import FolderRecord
from convertrilo.ingest.remote import Elsewhere
from convertrilo.ingest.report import IngestReport
from convertrilo.journal.folders import UNKNOWN, Ended, New, Row, Submitted, Totals
from convertrilo.models import TERMINAL_STATUSES, BulkCreateSettings, JobCreateRequest, StatusResponse
from convertrilo.waiting import JobResult, wait_for_jobs

_FOLLOWERS = 10
_WINDOW = 100
"""Jobs that each of the followers waits for at a time; the poller asks for those of all of them together."""
ROUNDS = 3
"""How often jobs are waited for whose status could not be read, for a reason that seemed to be no passing one."""
_RESULTS = 500
"""Results that are written down together."""
_PAGES_AHEAD = 4
"""Pages that the listing may be ahead of the submission."""


@attrs.frozen(kw_only=True)
class IngestProgress:
    """How far a folder is, in objects; all runs on its journal together."""

    listed: int
    """How many were found and are wanted."""
    submitted: int
    """How many of them have a job; of a dry run, how many have an estimate."""
    succeeded: int
    """How many of the jobs have, as far as they are waited for."""
    failed: int
    """How many were refused, have a job that failed or was canceled, or may have one that is not known."""
    is_listed: bool
    """Whether `listed` is all of them."""


OnIngest = Callable[[IngestProgress], object]


class FolderRun:
    """One run on a folder's journal."""

    def __init__(
        self,
        client: BaseClient,
        folder: Folder,
        template: JobCreateRequest,
        record: FolderRecord,
        on_progress: OnIngest | None,
        elsewhere: Elsewhere | None,
        *,
        max_files: int | None,
        dry_run: bool,
    ) -> None:
        self._elsewhere = elsewhere
        self._client = client if record.run is None else client.with_options(operation=record.run)
        self._clock = engine_of(client)[0].clock
        self._folder = folder
        self._template = template
        self._record = record
        self._on_progress = on_progress
        self._max_files = max_files
        self._dry_run = dry_run
        fields = {each.name: getattr(template, each.name) for each in field_specs(JobCreateRequest)}
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._totals = Totals()
        self._passed_over = 0
        self._is_listed = False
        self._is_submitted = False
        self._news = anyio.Event()
        self._ready = anyio.Event()  # the first page was read, so that the bucket's region is known
        self._ends: list[JobResult] = []
        self._is_writing = False

    async def begin(self) -> None:
        """Learn what earlier runs have done."""
        self._totals = attrs.evolve(await self._record.totals(), refused=0, unknown=0)  # which may go again
        self._last_known = await self._record.last_id()

    async def work(
        self,
        is_wanted: Callable[[S3Object], bool],
        *,
        manifest: str | os.PathLike[str] | None,
        batch_size: int,
        concurrency: int,
        timeout: float | None,
    ) -> None:
        """List and submit; and follow the jobs for so many seconds, if any are given."""
        rows, new = anyio.create_memory_object_stream[list[Row]](_PAGES_AHEAD)
        results, said = anyio.create_memory_object_stream[SubmittedJob](_RESULTS)
        steps = [
            partial(self._find, is_wanted, manifest, rows),
            partial(self._submit, new, results, batch_size=batch_size, concurrency=concurrency),
            partial(self._note, said),
        ]
        if timeout is not None and not self._dry_run:
            steps.append(partial(self._follow_all, timeout))
        with rows, new, results, said:
            async with self._elsewhere or nullcontext():
                await together(steps)

    # ---- listing

    async def _find(
        self,
        is_wanted: Callable[[S3Object], bool],
        manifest: str | os.PathLike[str] | None,
        outgoing: MemoryObjectSendStream[list[Row]],
    ) -> None:
        """Write down what there is, and hand what is new to the submission."""
        take = partial(self._take, is_wanted=is_wanted, outgoing=outgoing)
        with outgoing:
            try:
                if manifest is None:
                    ask = None if self._elsewhere is None else self._elsewhere.ask
                    listing = partial(list_objects, self._client, self._folder, take, ask=ask)
                    try:
                        await listing()
                    except UnorderedError:
                        self._passed_over = 0  # all comes again, and what is written down is not new
                        await listing(concurrency=1)
                else:
                    await read_manifest(manifest, self._folder.bucket, take)
            except _EnoughError:
                pass
            self._is_listed = True
            self._ready.set()
            self._tell()

    async def _take(
        self, page: Page, *, is_wanted: Callable[[S3Object], bool], outgoing: MemoryObjectSendStream[list[Row]]
    ) -> None:
        wanted = [
            self._new(each.key, each.size, external_id(self._folder.bucket, each)) for each in page if is_wanted(each)
        ]
        self._passed_over += len(page) - len(wanted)
        rows = await self._record.add(wanted, self._max_files) if wanted else []
        self._totals.listed += len(rows)
        self._ready.set()
        await outgoing.send(rows)
        self._tell()
        if self._max_files is not None and self._totals.listed >= self._max_files:
            raise _EnoughError

    def _new(self, key: str, size: int | None, name: str) -> New:
        if is_text(key):
            return New(key, size, name, None)
        readable = key.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return New(readable, size, name, "the key is not valid UTF-8, and the API takes no other")

    # ---- submission

    async def _submit(
        self,
        new: MemoryObjectReceiveStream[list[Row]],
        results: MemoryObjectSendStream[SubmittedJob],
        *,
        batch_size: int,
        concurrency: int,
    ) -> None:
        """Submit what has no job yet, and hand on what comes of it."""
        settings = None
        if self._dry_run:
            settings = BulkCreateSettings(dry_run=True)
        elif self._template.confirm is None:
            settings = BulkCreateSettings(confirm=True)
        submitted = submit_jobs(
            self._client,
            _Requests(self._record, self._last_known, new, self._job, self._ready, self._folder),
            settings=settings,
            batch_size=batch_size,
            concurrency=concurrency,
            journal=self._record.journal,
            on_progress=None,
            send_batch=None if self._elsewhere is None else self._elsewhere.carry,
        )
        with results:
            async for result in submitted:
                try:
                    results.send_nowait(result)
                except anyio.WouldBlock:
                    await results.send(result)

    async def _note(self, said: MemoryObjectReceiveStream[SubmittedJob]) -> None:
        """Write down what came of the jobs; what comes meanwhile is written together."""
        async for result in said:
            results = [result]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(results) < _RESULTS:
                    results.append(said.receive_nowait())
            await self._put(results)
        self._is_submitted = True
        self._news.set()

    def _job(self, row: Row) -> JobCreateRequest:
        return JobCreateRequest(
            **self._fields,
            external_id=row.external_id,
            source_s3=self._folder.source(row.key),
            extra=self._template.extra,
        )

    async def _put(self, results: Sequence[SubmittedJob]) -> None:
        said = [
            Submitted(each.external_id, each.job_id, self._status(each), self._reason(each.error), each.estimate)
            for each in results
            if each.external_id is not None
        ]
        await self._record.submitted(said, dry_run=self._dry_run)
        for each in said:
            if each.job_id is None and each.status == UNKNOWN:
                self._totals.unknown += 1
            elif each.error is not None:
                self._totals.refused += 1
            else:
                self._totals.submitted += 1
        self._news.set()
        self._news = anyio.Event()
        self._tell()

    def _status(self, result: SubmittedJob) -> str | None:
        """Return what is known of a job: without an id there may be one all the same, if its error leaves that open.

        So does an answer that does not mention it, and a key that the service knows with another body.
        """
        error = result.error
        if result.job_id is not None:
            return result.status
        if self._dry_run or error is None:
            return None
        return UNKNOWN if _is_known(error) or isinstance(error, OutcomeUnknownError | DecodeError) else None

    def _reason(self, error: ConvertriloError | None) -> str | None:
        if error is None:
            return None
        if _is_known(error):
            return self._hide(
                f"{error.message}: sent before with other credentials, it seems; with those, run it again"
            )
        code = error.code if isinstance(error, JobRefusedError) else ""
        return self._hide(error.message if code in ("", error.message) else f"{code}: {error.message}")

    def _hide(self, text: str) -> str:
        secrets = self._folder.source("")
        hide: Hide = hider(text, filter(None, (secrets.access_key_id, secrets.secret_access_key)))
        return hide(text)

    # ---- waiting

    async def _follow_all(self, timeout: float) -> None:
        """Wait for the jobs, a window of them at a time, and write down how each one ends."""
        self._deadline = self._clock.monotonic() + timeout
        self._choosing = anyio.Lock()
        for _ in range(ROUNDS):
            self._after = self._unread = 0
            await together([self._follow] * _FOLLOWERS)
            if not self._unread:
                break

    async def _follow(self) -> None:
        while job_ids := await self._next_window():
            left = self._deadline - self._clock.monotonic()
            if left <= 0:
                return
            results = wait_for_jobs(self._client, job_ids, timeout=left, raise_errors=False, on_progress=None)
            async for result in results:
                if not isinstance(result.error, WaitTimeoutError):
                    self._ends.append(result)
                    await self._write_ends()

    async def _next_window(self) -> list[str]:
        async with self._choosing:
            while True:
                is_last, news = self._is_submitted, self._news
                jobs = await self._record.unended(self._after, _WINDOW)
                if is_last or len(jobs) == _WINDOW:
                    self._after = jobs[-1][0] if jobs else self._after
                    return [job_id for _, job_id in jobs]
                await news.wait()

    async def _write_ends(self) -> None:
        """Write down the ends that are known; those that come meanwhile are written by whoever writes now."""
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self._ends:
                results, self._ends = self._ends, []
                await self._record.ended([self._end(each) for each in results])
                for each in results:
                    status = None if each.status is None else each.status.status
                    if status in _COUNTED:
                        setattr(self._totals, _COUNTED[status], getattr(self._totals, _COUNTED[status]) + 1)
                self._tell()
        finally:
            self._is_writing = False

    def _end(self, result: JobResult) -> Ended:
        status = result.status
        if status is None or status.status not in TERMINAL_STATUSES:
            self._unread += 1
            return Ended(result.job_id, None, None, None if result.error is None else self._hide(str(result.error)))
        message = None if status.failure_message is None else self._hide(status.failure_message)
        return Ended(result.job_id, status.status, _output(status), message)

    # ---- telling

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(progress_of(self._totals, is_listed=self._is_listed))

    async def report(self) -> IngestReport:
        """Return what became of the folder, counted in the journal."""
        totals = await self._record.totals()
        return IngestReport(
            **attrs.asdict(totals), passed_over=self._passed_over, dry_run=self._dry_run, journal=self._record.journal
        )


_COUNTED = {"success": "succeeded", "failed": "failed", "canceled": "canceled"}


def progress_of(totals: Totals, *, is_listed: bool) -> IngestProgress:
    """Return how far a folder is, by what was counted."""
    return IngestProgress(
        listed=totals.listed,
        submitted=totals.submitted,
        succeeded=totals.succeeded,
        failed=totals.refused + totals.unknown + totals.failed + totals.canceled,
        is_listed=is_listed,
    )


class _EnoughError(Exception):
    """There are as many objects as are wanted."""


def _is_known(error: ConvertriloError) -> bool:
    """Whether the service knows a batch with another body; of a conflict within the journal nothing was sent."""
    return isinstance(error, IdempotencyConflictError) and error.attempts > 0


def _output(status: StatusResponse) -> str | None:
    """Return where a job's output is. Its download URL is a permission, and no place."""
    if status.output is None:
        return None
    return status.output.key or (None if status.output.public_url is None else fit_to_show(status.output.public_url))


class _Requests:
    """The jobs of the objects that have none: first those that earlier runs have left, then those that are new.

    No generator: who does not read it to its end need not close it.
    """

    def __init__(
        self,
        record: FolderRecord,
        last_known: int,
        incoming: MemoryObjectReceiveStream[list[Row]],
        make: Callable[[Row], JobCreateRequest],
        ready: anyio.Event,
        folder: Folder,
    ) -> None:
        self._record = record
        self._last_known = last_known
        self._ready = ready
        self._folder = folder
        self._incoming = incoming
        self._make = make
        self._after = 0
        self._rows: deque[Row] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobCreateRequest:
        while not self._rows:
            self._rows.extend(each for each in await self._more() if not each.ended)
            await self._folder.renew_keys()
        return self._make(self._rows.popleft())

    async def _more(self) -> Sequence[Row]:
        await self._ready.wait()
        if self._after < self._last_known:
            rows = await self._record.page_without_job(self._after, self._last_known)
            self._after = rows[-1].id if rows else self._last_known
            return rows
        try:
            return await self._incoming.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
