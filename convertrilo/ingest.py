"""A folder in S3, every video of it encoded once: listed, submitted in batches, followed to the end, and reported.

The journal holds the run. Whatever ends it, the same call goes on with it: what was listed is not listed as new, what
was submitted is not submitted again, and an object that has come since, or has changed, is the only new work.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from convertrilo._folder_record import FolderRecord
from convertrilo._folder_rows import Ended, New, Row, Submitted, Totals
from convertrilo._manifests import read_manifest
from convertrilo._model import field_specs, fit_to_show
from convertrilo._objects import Page, S3Object, Shard, chooser, external_id, is_text, parse_shard
from convertrilo._redaction import Hide, hider
from convertrilo._remote import Found, Place, Service
from convertrilo._reports import IngestReport, IngestRow
from convertrilo._results import SubmittedJob
from convertrilo._together import together
from convertrilo.bulk import submit_jobs
from convertrilo.client import AsyncClient, engine_of
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import ConvertriloError, Issue, JobRefusedError, ValidationError, WaitTimeoutError
from convertrilo.idempotency import bare_of
from convertrilo.journal import Journal
from convertrilo.models import TERMINAL_STATUSES, BulkCreateSettings, JobCreateRequest, S3FolderSource, StatusResponse
from convertrilo.s3 import Folder, Listed, list_objects, open_folder
from convertrilo.waiting import JobResult

__all__ = ["IngestProgress", "IngestReport", "IngestRow", "ingest_folder"]

_FOLLOWERS = 10
_WINDOW = 100
"""Jobs that each of the followers waits for at a time; the poller asks for those of all of them together."""
_ROUNDS = 3
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
    done: int
    """How many of the jobs have succeeded, as far as they are waited for."""
    failed: int
    """How many were refused, or have a job that failed or was canceled."""
    is_listed: bool
    """Whether `listed` is all of them."""


OnIngest = Callable[[IngestProgress], object]


async def ingest_folder(
    client: AsyncClient,
    source: str | S3FolderSource,
    template: JobCreateRequest | Mapping[str, Any],
    *,
    journal: Journal | str | os.PathLike[str],
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_size: int | None = None,
    max_size: int | None = None,
    modified_since: datetime | None = None,
    max_files: int | None = None,
    shard: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    anonymous: bool = False,
    wait: bool = False,
    timeout: float = 7 * 86400.0,
    dry_run: bool = False,
    from_scratch: bool = False,
    batch_size: int = 500,
    concurrency: int = 4,
    engine: "IngestEngine | None" = None,
    on_progress: OnIngest | None = None,
) -> IngestReport:
    """Have every video of a folder in S3 encoded, once (`createJobsBulk`, `bulkStatus`); return what became of it.

    Each object's job has an `external_id` made of bucket, key and ETag (see docs/INGEST.md), so the same object is the
    same job for ever and a changed one is a new job. Run again on the same journal, it goes on; memory does not grow
    with the folder. Several processes may work on one journal at once.

    The service reads the objects itself, with the credentials that the folder is listed with: they are in the body of
    each request, and nowhere on disk. AWS's temporary credentials have no place there.

    Args:
        client: Whom to ask. It needs no journal of its own.
        source: `s3://bucket/prefix`, or a folder with its endpoint, region and credentials. Without credentials those
            of AWS's standard chain are used, and without those none.
        template: What to make of each video: a job without `external_id` and source. Unless it says `confirm=False`,
            the jobs are queued at once.
        journal: Where the run is written down; a path, or a journal that the client may use too. It holds one folder.
        include: Patterns (`*`, `?`, `[…]`) one of which the key must match; by default, the endings of videos.
        exclude: Patterns that the key must not match.
        min_size: Least bytes of an object.
        max_size: Most bytes of an object.
        modified_since: Only objects that were last modified then or later.
        max_files: How many objects the journal may hold in all.
        shard: `i/n`, with i from 0 to n-1: only this share of the folder, for machines that share the work, each with
            a journal of its own.
        manifest: A file that says which objects there are, instead of a listing: an S3 Inventory's `manifest.json`, or
            CSV, JSON lines or plain keys.
        anonymous: Whether to list without credentials, whatever there are, and to send none.
        wait: Whether to follow the jobs until all have ended.
        timeout: Seconds after which that is given up; the report then has `unfinished` jobs.
        dry_run: Whether to list and estimate only (the contract's `dryRun`): nothing is created.
        from_scratch: Whether to forget what the journal knows, and make every job anew.
        batch_size: Jobs of a request; fewer once the service finds that many too many.
        concurrency: How many requests are under way at once.
        engine: Who lists the pages and sends the batches, instead of this process: `convertrilo.dask.DaskEngine`. Its
            workers use the credentials of their own environment, and the source must name none.
        on_progress: Called with an `IngestProgress` whenever there is news.

    Raises:
        ValidationError: An argument or a manifest's line is not what is allowed.
        ConfigurationError: The journal holds another folder or template, the extra `s3` is not installed, or AWS's
            credentials cannot be used.
        TransferError: The folder cannot be listed.
        JournalError: The journal cannot be used.
        ConvertriloError: The service refuses a request as a whole, or does not answer. What was done until then is in
            the journal; the same call goes on from there.
    """
    model = _checked(template)
    if wait and model.confirm is False:
        raise ValidationError("wait", [Issue("", "would wait for ever: the template says confirm=False")])
    if not 0 < timeout < math.inf:
        raise ValidationError("timeout", [Issue("", f"must be a number of seconds above 0, not {timeout!r}")])
    if max_files is not None and max_files < 1:
        raise ValidationError("max_files", [Issue("", f"must be at least 1, not {max_files}")])
    share = None if shard is None else parse_shard(shard)
    is_wanted = chooser(
        include=include,
        exclude=exclude,
        min_size=min_size,
        max_size=max_size,
        modified_since=modified_since,
        shard=share,
    )
    if engine is None:
        folder = await open_folder(source, anonymous=anonymous)
        folder.source("")  # to hear at once of credentials that cannot be sent
    else:
        folder = await _without_credentials(source)
    book = journal if isinstance(journal, Journal) else Journal(journal, clock=engine_of(client)[0].clock)
    async with book:
        record = FolderRecord(book)
        await record.begin(_identity(folder, model, share, engine), from_scratch=from_scratch)
        elsewhere = None if engine is None else _Elsewhere(client, engine, folder, anonymous=anonymous)
        run = _Run(client, folder, model, record, on_progress, elsewhere, max_files=max_files, dry_run=dry_run)
        await run.begin()
        outgoing, incoming = anyio.create_memory_object_stream[list[Row]](_PAGES_AHEAD)
        steps = [
            partial(run.find, is_wanted, manifest, outgoing),
            partial(run.submit, incoming, batch_size=batch_size, concurrency=concurrency),
        ]
        if wait and not dry_run:
            steps.append(partial(run.follow, timeout))
        with outgoing, incoming:
            async with nullcontext() if engine is None else engine:
                await together(steps)
        return await run.report()


def _checked(template: JobCreateRequest | Mapping[str, Any]) -> JobCreateRequest:
    model = template if isinstance(template, JobCreateRequest) else from_request(JobCreateRequest, template)
    issues = [
        Issue(name, "must not be set: it is each object's own")
        for name in ("external_id", "source_url", "source_s3", "original_filename")
        if getattr(model, name) is not None
    ]
    if issues:
        raise ValidationError("template", issues)
    return model


async def _without_credentials(source: str | S3FolderSource) -> Folder:
    """Return a folder that others read, with credentials of their own."""
    if isinstance(source, S3FolderSource) and (source.access_key_id or source.secret_access_key):
        raise ValidationError(
            "source",
            [Issue("access_key_id", "must not be set with an engine: its workers have credentials themselves")],
        )
    return await open_folder(source, anonymous=True)


def _identity(
    folder: Folder, template: JobCreateRequest, share: Shard | None, engine: "IngestEngine | None"
) -> dict[str, Any]:
    """Return what is done with which folder: what must not change on the way."""
    return {
        "source": f"s3://{folder.bucket}/{folder.prefix}",
        "endpoint": folder.endpoint,
        "region": folder.region,
        "template": bare_of(to_wire(template)),
        "shard": None if share is None else str(share),
        "engine": engine is not None,  # batches of one way go out without credentials, and must not go the other way
    }


class IngestEngine(Protocol):
    """What lists pages and sends batches elsewhere; it may do so twice. Entered while a folder is worked on."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any: ...

    async def find(self, place: Place, service: Service, after: str | None, token: str | None) -> Found:
        """List one page, as `_remote.find` does."""
        ...

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch, as `_remote.send` does."""
        ...


class _Elsewhere:
    """The two steps of the work that an engine does."""

    def __init__(self, client: AsyncClient, engine: IngestEngine, folder: Folder, *, anonymous: bool) -> None:
        inner, options = engine_of(client)
        self._engine = engine
        self._folder = folder
        self._anonymous = anonymous
        self._service = Service(client.base_url, inner.credentials.sender, options.retry)

    @property
    def _place(self) -> Place:
        folder = self._folder
        return Place(folder.bucket, folder.prefix, folder.endpoint, folder.region, folder.path_style, self._anonymous)

    async def ask(self, after: str | None, token: str | None) -> Listed:
        """List one page."""
        listed, self._folder.region = await self._engine.find(self._place, self._service, after, token)
        return listed

    async def carry(self, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch."""
        return await self._engine.send(self._place, self._service, key, body, last_resend)


class _Run:
    """One run on a folder's journal."""

    def __init__(
        self,
        client: AsyncClient,
        folder: Folder,
        template: JobCreateRequest,
        record: FolderRecord,
        on_progress: OnIngest | None,
        elsewhere: _Elsewhere | None,
        *,
        max_files: int | None,
        dry_run: bool,
    ) -> None:
        self._elsewhere = elsewhere
        self._client = client if not record.generation else client.with_options(operation=f"run {record.generation}")
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
        self._estimated = 0
        self._passed_over = 0
        self._is_listed = False
        self._is_submitted = False
        self._news = anyio.Event()
        self._ready = anyio.Event()  # the first page was read, so that the bucket's region is known
        self._ends: list[JobResult] = []
        self._is_writing = False

    async def begin(self) -> None:
        """Learn what earlier runs have done."""
        self._totals = attrs.evolve(await self._record.totals(), refused=0)  # which may go again
        self._last_known = await self._record.last_id()

    # ---- listing

    async def find(
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
                    await list_objects(self._client, self._folder, take, ask=ask)
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

    async def submit(
        self, incoming: MemoryObjectReceiveStream[list[Row]], *, batch_size: int, concurrency: int
    ) -> None:
        """Submit what has no job yet, and write down what came of it."""
        settings = None
        if self._dry_run:
            settings = BulkCreateSettings(dry_run=True)
        elif self._template.confirm is None:
            settings = BulkCreateSettings(confirm=True)
        results = submit_jobs(
            self._client,
            _Requests(self._record, self._last_known, incoming, self._job, self._ready),
            settings=settings,
            batch_size=batch_size,
            concurrency=concurrency,
            journal=self._record.journal,
            on_progress=None,
            carry=None if self._elsewhere is None else self._elsewhere.carry,
        )
        waiting: list[SubmittedJob] = []
        async for result in results:
            waiting.append(result)
            if len(waiting) >= _RESULTS:
                await self._put(waiting)
                waiting = []
        await self._put(waiting)
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
            Submitted(each.external_id, each.job_id, each.status, self._reason(each.error), each.estimate)
            for each in results
            if each.external_id is not None
        ]
        await self._record.submitted(said)
        for each in said:
            if each.error is not None:
                self._totals.refused += 1
            else:
                self._totals.submitted += 1
        self._news.set()
        self._news = anyio.Event()
        self._tell()

    def _reason(self, error: ConvertriloError | None) -> str | None:
        if error is None:
            return None
        code = error.code if isinstance(error, JobRefusedError) else ""
        return self._hide(error.message if code in ("", error.message) else f"{code}: {error.message}")

    def _hide(self, text: str) -> str:
        secrets = self._folder.source("")
        hide: Hide = hider(text, filter(None, (secrets.access_key_id, secrets.secret_access_key)))
        return hide(text)

    # ---- waiting

    async def follow(self, timeout: float) -> None:
        """Wait for the jobs, a window of them at a time, and write down how each one ends."""
        self._deadline = self._clock.monotonic() + timeout
        self._choosing = anyio.Lock()
        for _ in range(_ROUNDS):
            self._after = self._unread = 0
            await together([self._follow] * _FOLLOWERS)
            if not self._unread:
                break

    async def _follow(self) -> None:
        while job_ids := await self._next_window():
            left = self._deadline - self._clock.monotonic()
            if left <= 0:
                return
            async for result in self._client.wait_for_jobs(job_ids, timeout=left):
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
            totals = self._totals
            self._on_progress(
                IngestProgress(
                    listed=totals.listed,
                    submitted=totals.submitted,
                    done=totals.succeeded,
                    failed=totals.refused + totals.failed + totals.canceled,
                    is_listed=self._is_listed,
                )
            )

    async def report(self) -> IngestReport:
        """Return what became of the folder, counted in the journal."""
        totals = await self._record.totals()
        return IngestReport(
            **attrs.asdict(totals), passed_over=self._passed_over, dry_run=self._dry_run, journal=self._record.journal
        )


_COUNTED = {"success": "succeeded", "failed": "failed", "canceled": "canceled"}


class _EnoughError(Exception):
    """There are as many objects as are wanted."""


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
    ) -> None:
        self._record = record
        self._last_known = last_known
        self._ready = ready
        self._incoming = incoming
        self._make = make
        self._after = 0
        self._rows: deque[Row] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobCreateRequest:
        while not self._rows:
            self._rows.extend(each for each in await self._more() if not each.ended)
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
