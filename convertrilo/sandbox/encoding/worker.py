"""The queue: jobs start in order, those with high priority first, and a limited number run at once."""

import itertools
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from convertrilo.sandbox.encoding.job_encoder import Ending, JobEncoder
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import MediaError
from convertrilo.sandbox.state.records import CANCELED, CREATED, RUNNING, Job
from convertrilo.sandbox.state.store import Store, Tx

_BATCH = 50
"""Jobs that the instant encoder ends in one transaction, which takes one or two milliseconds."""

_log = logging.getLogger("convertrilo.sandbox")


@attrs.define(eq=False)
class _RunningJob:
    scope: anyio.CancelScope
    percent: Callable[[], float]


class Worker:
    """Takes jobs from the queue and encodes them.

    Args:
        store: holds the queue.
        encoder: encodes each job.
        limit: how many jobs run at once.
    """

    def __init__(self, store: Store, encoder: JobEncoder, *, limit: int) -> None:
        self._store = store
        self._encoder = encoder
        self._limit = limit
        self.busy: int = 0
        """How many tasks are active; a task of the instant encoder may be waiting for the clock."""
        self._running: dict[str, _RunningJob] = {}
        self._woken = anyio.Event()
        self._queue_worked = anyio.Event()

    def percent(self, job_id: str) -> float:
        """Return the progress of a running job in percent."""
        running = self._running.get(job_id)
        return round(running.percent(), 1) if running else 0.0

    def jobs_changed(self, jobs: Sequence[Job]) -> None:
        """React to status changes: stop the encode of a canceled job, drop unused sources, and wake the queue."""
        for job in jobs:
            if job.status == CREATED:
                continue
            self._woken.set()
            if job.ended:
                running = self._running.get(job.id)
                if running is None:
                    self._encoder.drop_source(job)
                elif job.status == CANCELED:
                    running.scope.cancel()

    async def wait_until_idle(self) -> None:
        """Wait until no job is queued or running."""
        while True:
            worked = self._queue_worked
            if not await self._store.transaction(_has_open_jobs):
                return
            await worked.wait()

    # ---- the queue

    async def run(self) -> None:
        """Run queued jobs until cancelled; a cancellation ends all encodes and leaves no files behind."""
        async with anyio.create_task_group() as encodes:
            while True:
                self._woken = anyio.Event()
                with self._counted():
                    while len(self._running) < self._limit:
                        if self._encoder.is_immediate and await self._store.transaction(self._finish_batch):
                            await anyio.lowlevel.checkpoint()
                        elif not await self._start_next(encodes):
                            break
                self._queue_worked.set()
                self._queue_worked = anyio.Event()
                await self._woken.wait()

    @contextmanager
    def _counted(self) -> Generator[None]:
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def _finish_batch(self, tx: Tx) -> bool:
        """Start and end queued jobs up to the first with a destination; return whether there were any."""
        jobs = list(itertools.takewhile(lambda job: job.destination is None, _queued(tx, _BATCH)))
        for job in jobs:
            job = lifecycle.start(tx, job, self._encoder.name)
            try:
                ending = self._encoder.encode_immediately(job)
            except MediaError as error:
                lifecycle.fail(tx, job, str(error))
            else:
                ending(tx, job)
        return bool(jobs)

    async def _start_next(self, encodes: anyio.abc.TaskGroup) -> bool:
        def start(tx: Tx) -> Job | None:
            jobs = _queued(tx, 1)
            return lifecycle.start(tx, jobs[0], self._encoder.name) if jobs else None

        job = await self._store.transaction(start)
        if job is None:
            return False
        self._running[job.id] = _RunningJob(anyio.CancelScope(), partial(self._encoder.elapsed, job))
        encodes.start_soon(self._work_on, job)
        return True

    # ---- one job

    async def _work_on(self, job: Job) -> None:
        running = self._running[job.id]
        try:
            with running.scope, self._counted():
                await self._encode(job, running)
            if running.scope.cancelled_caught:
                self._encoder.drop_output(job)  # the output may have been finished just before
            self._encoder.drop_source(job)  # not reached if the sandbox stops: the job runs again later
        finally:
            del self._running[job.id]
            self._woken.set()

    async def _encode(self, job: Job, running: _RunningJob) -> None:
        async def on_progress(percent: float) -> None:
            running.percent = lambda: percent

        ending: Ending
        try:
            ending = await self._encoder.encode(job, on_progress)
        except MediaError as error:
            ending = partial(lifecycle.fail, message=str(error))
        except Exception:  # noqa: BLE001 - a defect of the sandbox must not stop the queue
            _log.exception("job %s failed because of a defect in the sandbox", job.id)
            ending = partial(lifecycle.fail, message="the sandbox failed; its log says why")

        def end(tx: Tx) -> bool:
            now = tx.job(job.id)
            if now is None or now.status != RUNNING:  # canceled in the meantime
                return False
            ending(tx, now)
            return True

        if not await self._store.transaction(end):
            self._encoder.drop_output(job)


def _queued(tx: Tx, limit: int) -> list[Job]:
    return tx.jobs("WHERE status = 'queued' ORDER BY high_priority DESC, queued_at, n LIMIT ?", limit)


def _has_open_jobs(tx: Tx) -> bool:
    return tx.row("SELECT 1 FROM jobs WHERE status IN ('queued', 'running') LIMIT 1") is not None
