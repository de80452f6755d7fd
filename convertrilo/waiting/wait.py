"""Waiting for one job, or for many as they finish. Every wait has a timeout."""

import math
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol, Self, cast

import anyio
import attrs

from convertrilo._base_client import BaseClient, engine_of
from convertrilo.errors import Issue, JobCanceledError, JobFailedError, ValidationError, WaitTimeoutError
from convertrilo.models import OnDemandStatusResponse, StatusResponse
from convertrilo.waiting.poller import Poller
from convertrilo.waiting.watch import AnyStatus, Waiter, Watch


class HasJobId(Protocol):
    """Anything with a job's id, such as a webhook event."""

    @property
    def job_id(self) -> str | None:
        """The id of the job, or None if there is no job."""
        ...


@attrs.frozen
class JobResult:
    """The result of `wait_for_jobs` for one job."""

    job_id: str
    status: StatusResponse | None
    """The status that was read last, or None if none was read."""
    error: Exception | None
    """None if the job succeeded; otherwise the error that `wait_for_job` raises."""


async def wait_for_job(
    client: BaseClient,
    job_id: str,
    *,
    timeout: float,
    on_progress: Callable[[StatusResponse], object] | None = None,
) -> StatusResponse:
    """Wait until a job has succeeded; see `AsyncClient.wait_for_job`."""
    return cast("StatusResponse", await _wait_for_one(client, job_id, timeout, on_progress, on_demand=False))


async def wait_for_on_demand(
    client: BaseClient,
    job_id: str,
    *,
    timeout: float,
    on_progress: Callable[[OnDemandStatusResponse], object] | None = None,
) -> OnDemandStatusResponse:
    """Wait until an on-demand job has succeeded; see `AsyncClient.wait_for_on_demand`."""
    return cast("OnDemandStatusResponse", await _wait_for_one(client, job_id, timeout, on_progress, on_demand=True))


async def _wait_for_one(
    client: BaseClient, job_id: str, timeout: float, on_progress: Callable[[Any], object] | None, *, on_demand: bool
) -> AnyStatus:
    poller, waiter = _join(client, [job_id], timeout, on_progress, on_demand=on_demand)
    try:
        await poller.wait(waiter)
        watch, error = _next_result(poller, waiter)
    finally:
        poller.leave(waiter)
    if error is not None:
        raise error
    assert watch.status is not None
    return watch.status


def wait_for_jobs(
    client: BaseClient,
    job_ids: Iterable[str],
    *,
    timeout: float,
    raise_errors: bool = False,
    on_progress: Callable[[StatusResponse], object] | None = None,
) -> AsyncIterator[JobResult]:
    """Wait for many jobs; see `AsyncClient.wait_for_jobs`."""
    if isinstance(job_ids, str):
        raise ValidationError("job_ids", [Issue("", "must be an iterable of job ids, not a string")])
    ids = list(dict.fromkeys(job_ids))
    return _JobResults(*_join(client, ids, timeout, on_progress, on_demand=False), raise_errors=raise_errors)


class _JobResults:
    """An iterator over jobs as they finish. Unlike a generator, it need not be closed if the caller stops early."""

    def __init__(self, poller: Poller, waiter: Waiter, *, raise_errors: bool) -> None:
        self._poller = poller
        self._waiter = waiter
        self._raise_errors = raise_errors
        self._turn = anyio.Lock()  # tasks may share the results; only one of them waits at a time

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobResult:
        async with self._turn:
            if not (self._waiter.watches or self._waiter.finished):
                raise StopAsyncIteration
            await self._poller.wait(self._waiter)
            watch, error = _next_result(self._poller, self._waiter)
        if error is not None and self._raise_errors:
            raise error
        return JobResult(watch.job_id, cast("StatusResponse | None", watch.status), error)

    def __del__(self) -> None:
        self._poller.leave(self._waiter)


def _join(
    client: BaseClient,
    job_ids: list[str],
    timeout: float,
    on_progress: Callable[[Any], object] | None,
    *,
    on_demand: bool,
) -> tuple[Poller, Waiter]:
    if not 0 < timeout < math.inf:
        raise ValidationError("timeout", [Issue("", f"must be a number of seconds above 0, not {timeout!r}")])
    for job_id in job_ids:
        if not job_id or "," in job_id:
            raise ValidationError("job_id", [Issue("", f"is not a job id: {job_id!r}")])
    engine, options = engine_of(client)
    poller = engine.shared(Poller) or engine.share(Poller(engine))
    waiter = Waiter(options, timeout, engine.clock.monotonic() + timeout, on_progress)
    poller.join(waiter, job_ids, on_demand=on_demand)
    return poller, waiter


def _next_result(poller: Poller, waiter: Waiter) -> tuple[Watch, Exception | None]:
    """Return a job whose wait is over, and its error, or None if the job succeeded.

    Raises:
        Exception: What the waiter's `on_progress` raised.
    """
    if waiter.callback_error is not None:
        poller.leave(waiter)
        waiter.finished.clear()
        raised, waiter.callback_error = waiter.callback_error, None  # its traceback refers to the waiter
        raise raised
    if not waiter.finished:
        watch = next(iter(waiter.watches.values()))
        poller.leave(waiter, watch)
        return watch, _too_late(poller, waiter, watch)
    watch, error = waiter.finished.popleft()
    status = watch.status
    if error is not None or status is None or status.status == "success":
        return watch, error
    if status.status == "canceled":
        return watch, JobCanceledError(f"job {watch.job_id} was canceled", job_id=watch.job_id, status=status)
    reason = status.failure_message or "the service gives no reason"
    return watch, JobFailedError(f"job {watch.job_id} failed: {reason}", job_id=watch.job_id, status=status)


def _too_late(poller: Poller, waiter: Waiter, watch: Watch) -> WaitTimeoutError:
    message = f"job {watch.job_id} has no known status after {waiter.timeout:g} seconds"
    if watch.status is not None:
        message = f"job {watch.job_id} is still {watch.status.status} after {waiter.timeout:g} seconds"
    if poller.trouble is not None:
        message += f"; the last attempt to read its status failed: {poller.trouble.message}"
    error = WaitTimeoutError(message, job_id=watch.job_id, status=watch.status)
    error.__cause__ = poller.trouble
    return error


def notify(client: BaseClient, event: HasJobId | str) -> None:
    """Read the status of a job at once; see `AsyncClient.notify`."""
    job_id = event if isinstance(event, str) else event.job_id
    poller = engine_of(client)[0].shared(Poller)
    if job_id is not None and poller is not None:
        poller.notify(job_id)
