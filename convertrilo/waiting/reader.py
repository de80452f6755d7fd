"""Reading the statuses of many jobs: with `bulkStatus` if the service allows it, otherwise one by one."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeGuard, TypeVar

import anyio

from convertrilo._halving import TOO_MUCH, each_half
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo.errors import APIError, ConvertriloError, RateLimitError, ServerError, TransportError
from convertrilo.models import TERMINAL_STATUSES, BulkStatusResponse, OnDemandStatusResponse, StatusResponse
from convertrilo.operations import BULK_STATUS, JOB_STATUS, ON_DEMAND_STATUS, Operation
from convertrilo.retry import retry_after
from convertrilo.waiting.rounds import Rounds
from convertrilo.waiting.watch import AnyStatus, Waiter, Watch

R = TypeVar("R")

_CONCURRENT_READS = 8
"""The maximum number of concurrent requests for single jobs."""

_NOT_OFFERED = frozenset({403, 404, 405, 410, 501})
"""HTTP statuses which mean that the service does not offer `bulkStatus` to this client."""


class StatusReader:
    """Reads the jobs of a round, and remembers which requests the service accepts.

    Args:
        engine: The client's engine.
        rounds: Knows which jobs to read, and when the next request may be sent.
        on_status: Called with each status that was read.
        on_error: Called with each job that cannot be read, and the error.
    """

    def __init__(
        self,
        engine: Engine,
        rounds: Rounds,
        *,
        on_status: Callable[[Watch, AnyStatus], None],
        on_error: Callable[[Watch, Exception], None],
    ) -> None:
        self._engine = engine
        self._rounds = rounds
        self._on_status = on_status
        self._on_error = on_error
        self._batch_size = engine.poll_batch_size
        """The maximum number of jobs in one `bulkStatus` request; lowered if the service rejects that many."""
        self._bulk_works: bool | None = None
        """Whether the service offers `bulkStatus`; None until that is known."""
        self._bulk_knows_on_demand = True
        """Whether `bulkStatus` reports on-demand jobs."""
        self._refused_ids = 0
        """How many requests for a single job `bulkStatus` has rejected."""

    async def read_some(self, leader: Waiter, once: Options) -> None:
        """Read some jobs of the queue: a batch, or jobs one by one until the queue is empty.

        Args:
            leader: The waiter whose task reads; once the waiter is ready, no more jobs are read.
            once: Options that allow one attempt.
        """
        queue = self._rounds.queue
        batch = list(itertools.islice(filter(self._is_read_in_bulk, queue), self._batch_size))
        if len(batch) > 1:
            for watch in batch:
                del queue[watch]
            await self._read_together(batch, once)
            rest = [each for each in batch if each.waiters and not self._is_read_in_bulk(each)]
            self._rounds.queue.update(dict.fromkeys(rest))
        else:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(_CONCURRENT_READS, len(queue))):
                    tasks.start_soon(self._read_one_by_one, leader, once)
        self._rounds.end_if_done()

    def _is_read_in_bulk(self, watch: Watch) -> bool:
        if watch.alone or self._bulk_works is False or not watch.waiters:
            return False
        return self._bulk_knows_on_demand or not watch.on_demand

    async def _read_one_by_one(self, leader: Waiter, once: Options) -> None:
        rounds = self._rounds
        while rounds.queue and not leader.is_ready and not rounds.is_quiet:
            watch = next(iter(rounds.queue))
            del rounds.queue[watch]
            if watch.waiters:
                await self._read_alone(watch, once)

    async def _read_alone(self, watch: Watch, once: Options) -> None:
        status: AnyStatus
        try:
            if watch.on_demand:
                status = await self._call(ON_DEMAND_STATUS, once, path={"jobId": watch.job_id})
            else:
                status = await self._call(JOB_STATUS, once, path={"id": watch.job_id})
        except Exception as error:  # noqa: BLE001  # raised in the tasks that wait for this job
            self._fail(error, [watch])
        else:
            if watch.on_demand and watch.missing:
                self._bulk_knows_on_demand = False
            self._on_status(watch, status)

    async def _read_together(self, watches: Sequence[Watch], once: Options) -> bool:
        """Read jobs with `bulkStatus`, in as few requests as possible; return whether the service answered them all."""
        size = self._batch_size
        if len(watches) > size:
            parts = [watches[start : start + size] for start in range(0, len(watches), size)]
            return all([await self._read_together(part, once) for part in parts])
        if self._rounds.is_quiet or self._bulk_works is False:
            return False
        try:
            answer = await self._call(BULK_STATUS, once, query={"ids": ",".join(each.job_id for each in watches)})
        except Exception as error:  # noqa: BLE001  # raised in the tasks that wait for these jobs
            status = error.status if isinstance(error, APIError) else 0
            if status in _NOT_OFFERED:
                self._bulk_works = False
            elif status in TOO_MUCH:
                return await self._read_halves(watches, once)
            else:
                self._fail(error, watches)
            return False
        self._bulk_works = True
        self._take_bulk(answer, watches)
        return True

    async def _read_halves(self, watches: Sequence[Watch], once: Options) -> bool:
        """Read each half on its own, to learn whether the service rejects the number of jobs or one of the jobs."""
        if len(watches) == 1:
            watches[0].alone = True
            self._refused_ids += 1
            if self._bulk_works is None and self._refused_ids > 1:
                self._bulk_works = False
            return False
        is_answered = await each_half(watches, partial(self._read_together, once=once))
        if is_answered:
            self._batch_size = min(self._batch_size, len(watches) // 2)
        return is_answered

    def _take_bulk(self, answer: BulkStatusResponse, watches: Sequence[Watch]) -> None:
        found = {status.id: status for status in answer.jobs or ()}
        for watch in watches:
            status = found.get(watch.job_id)
            if status is None:
                watch.alone = watch.missing = True
            elif not watch.on_demand:
                self._on_status(watch, status)
            elif status.status in TERMINAL_STATUSES:
                watch.alone = True  # only `onDemandStatus` has all fields of the final status
            else:
                self._on_status(watch, _as_on_demand(status))

    async def _call(
        self,
        operation: Operation[R],
        once: Options,
        *,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> R:
        self._rounds.count_request()
        answer, headers = await self._engine.call(operation, once, path=path, query=query)
        self._rounds.answered(retry_after(operation.status, headers, self._engine.clock.time()))
        return answer

    def _fail(self, error: Exception, watches: Sequence[Watch]) -> None:
        """Back off after a transient error; any other error ends the wait for these jobs."""
        if _is_transient(error):
            self._rounds.failed(error)
        else:
            for watch in watches:
                self._on_error(watch, error)


def _is_transient(error: Exception) -> TypeGuard[ConvertriloError]:
    if isinstance(error, APIError) and error.status == 408:  # the request arrived too slowly; nothing is wrong with it
        return True
    return isinstance(error, TransportError | RateLimitError | ServerError)


def _as_on_demand(status: StatusResponse) -> OnDemandStatusResponse:
    return OnDemandStatusResponse(
        job_id=status.id,
        external_id=status.external_id,
        metadata=status.metadata,
        source_filename=status.source_filename,
        output_filename=status.output_filename,
        status=status.status,
        progress=status.pct,
        encoder=status.encoder,
        created_at=status.created_at,
        started_at=status.started_at,
    )
