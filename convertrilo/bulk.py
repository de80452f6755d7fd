"""Many jobs, by the million: an iterable of them in, frozen batches out to the service, a result for each one back."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import attrs

from convertrilo import operations as rows
from convertrilo._batches import Batch, Item, Request, Settings, checked_settings
from convertrilo.client import AsyncClient, engine_of
from convertrilo.errors import ConvertriloError, DecodeError, Issue, JobRefusedError, ValidationError
from convertrilo.models import BulkCreateItem, BulkCreateResponse, BulkCreateSettings

if TYPE_CHECKING:
    from convertrilo.journal import Journal


@attrs.define
class SubmittedJob:
    """What became of one job of `submit_jobs`: it has a `job_id`, or an `error`."""

    request: Request
    """The job as it was given."""
    external_id: str | None
    job_id: str | None
    status: str | None
    error: ConvertriloError | None
    """`JobRefusedError` with the service's code; `ValidationError` where the job was not even sent."""
    estimate: float | None
    """What it is expected to cost, in tokens (neu)."""
    batch: str | None
    """The idempotency key of the batch that it went out in."""


@attrs.frozen
class SubmitProgress:
    """How far `submit_jobs` is, in jobs."""

    taken: int
    """How many were taken from the input."""
    submitted: int
    """How many exist now, or did before."""
    failed: int
    """How many have an error for a result."""


OnSubmit = Callable[[SubmitProgress], object]
Jobs = Iterable[Request] | AsyncIterable[Request]


def submit_jobs(
    client: AsyncClient,
    jobs: Jobs,
    *,
    settings: BulkCreateSettings | Mapping[str, Any] | None,
    batch_size: int,
    concurrency: int,
    journal: "Journal | None",
    on_progress: OnSubmit | None,
) -> AsyncIterator[SubmittedJob]:
    """Submit many jobs; see `AsyncClient.submit_jobs`."""
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        if not value >= 1:
            raise ValidationError(name, [Issue("", f"must be at least 1, not {value!r}")])
    if isinstance(jobs, Mapping | str):
        raise ValidationError("jobs", [Issue("", f"must be an iterable of jobs, not a {type(jobs).__name__}")])
    run = _Run(client, jobs, checked_settings(settings), batch_size, concurrency, journal, on_progress)
    return run.results()


class _Run:
    """One call of `submit_jobs`.

    It works in rounds of at most `concurrency` batches, and only while its caller waits for the next result: what is
    not read any further leaves nothing running.
    """

    def __init__(
        self,
        client: AsyncClient,
        jobs: Jobs,
        settings: Settings,
        batch_size: int,
        concurrency: int,
        journal: "Journal | None",
        on_progress: OnSubmit | None,
    ) -> None:
        self._engine, self._options = engine_of(client)
        self._journal = self._engine.journal if journal is None else journal
        self._jobs = jobs
        self._settings = settings
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._on_progress = on_progress
        self._taken = self._submitted = self._failed = 0
        self._results: list[SubmittedJob] = []
        self._error: Exception | None = None

    async def results(self) -> AsyncIterator[SubmittedJob]:
        source = self._source()
        more = True
        while more:
            self._results = []
            async with anyio.create_task_group() as tasks:
                for _ in range(self._concurrency):
                    batch = await self._next_batch(source)
                    if batch is None:
                        more = False
                        break
                    tasks.start_soon(self._send, batch)
                    await anyio.lowlevel.checkpoint()
            for result in self._results:
                yield result
            if self._error is not None:
                raise self._error

    async def _source(self) -> AsyncIterator[Request]:
        if isinstance(self._jobs, AsyncIterable):
            async for job in self._jobs:
                yield job
        else:
            for job in self._jobs:
                yield job

    async def _next_batch(self, source: AsyncIterator[Request]) -> Batch | None:
        items: list[Item] = []
        async for job in source:
            self._taken += 1
            try:
                items.append(Item(job))
            except ValidationError as error:
                self._take(SubmittedJob(job, None, None, None, error, None, None))
            if len(items) == self._batch_size:
                break
        return Batch(items, self._settings) if items else None

    async def _send(self, batch: Batch) -> None:
        try:
            answer = await self._engine.send_frozen(
                rows.CREATE_JOBS_BULK,
                self._options,
                wire=batch.wire,
                content=batch.content,
                bare=batch.bare,
                identity=batch.identity,
                journal=self._journal,
            )
        except Exception as error:  # noqa: BLE001  # raised once the results are read
            self._error = self._error or error
            return
        for result in _results(batch, answer):
            self._take(result)
        if self._on_progress is not None:
            self._on_progress(SubmitProgress(self._taken, self._submitted, self._failed))

    def _take(self, result: SubmittedJob) -> None:
        if result.error is None:
            self._submitted += 1
        else:
            self._failed += 1
        self._results.append(result)


def _results(batch: Batch, answer: BulkCreateResponse) -> Iterator[SubmittedJob]:
    found = {
        each.index if each.index is not None else position: each for position, each in enumerate(answer.jobs or ())
    }
    key = batch.identity.key
    for index, item in enumerate(batch.items):
        made = found.get(index, _NOTHING_SAID)
        error: ConvertriloError | None = None
        if made is _NOTHING_SAID:
            error = DecodeError("the answer does not say what became of this job")
        elif made.error is not None:
            error = _refusal(made.error, key)
        estimate = None if made.estimate is None else made.estimate.neu
        yield SubmittedJob(item.request, item.external_id, made.job_id, made.status, error, estimate, key)


_NOTHING_SAID = BulkCreateItem()


def _refusal(text: str, key: str) -> JobRefusedError:
    code, _, message = text.partition(":")
    return JobRefusedError(message.strip(), code=code, operation="createJobsBulk", idempotency_key=key)
