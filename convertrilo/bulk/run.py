"""`submit_jobs`: reads jobs from an iterable, keeps batches of them in flight, and yields one result per job.

The run works only while its caller waits for the next result, so a caller who stops reading leaves nothing running.
During that time up to `concurrency` batches are in flight, until there are enough results, or some results have been
ready for long enough.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import anyio.lowlevel

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._clock import Clock
from convertrilo._http.engine import Engine
from convertrilo.bulk.batches import checked_settings
from convertrilo.bulk.input import BatchReader, Jobs
from convertrilo.bulk.results import Results, SubmitProgress, SubmittedJob
from convertrilo.bulk.send import BatchSender, SendBatch
from convertrilo.errors import ConvertriloError, Issue, ValidationError
from convertrilo.models import BulkCreateSettings

if TYPE_CHECKING:
    from convertrilo.bulk.ledger import Ledger
    from convertrilo.journal import Journal

_HOLD = 0.5
"""Seconds after which the run hands out the results that are ready before it sends more batches."""

_Work = Callable[[], Awaitable[object]]

OnSubmit = Callable[[SubmitProgress], object]


def submit_jobs(
    client: BaseClient,
    jobs: Jobs,
    *,
    settings: BulkCreateSettings | Mapping[str, Any] | None,
    batch_size: int,
    concurrency: int,
    journal: "Journal | None",
    on_progress: OnSubmit | None = None,
    send_batch: SendBatch | None = None,
) -> AsyncIterator[SubmittedJob]:
    """Submit many jobs; see `AsyncClient.submit_jobs`. With `send_batch`, that function sends the batches."""
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        if not value >= 1:
            raise ValidationError(name, [Issue("", f"must be at least 1, not {value!r}")])
    if isinstance(jobs, Mapping | str) or not (hasattr(jobs, "__iter__") or hasattr(jobs, "__aiter__")):
        kind = type(cast("object", jobs)).__name__
        raise ValidationError("jobs", [Issue("", f"must be an iterable of jobs, not a {kind}")])
    engine, options = engine_of(client)
    reader = BatchReader(jobs, batch_size)
    checked = checked_settings(settings, options.operation)
    results = Results(engine.credentials.api_key, dry_run=checked.dry_run)
    used_journal = None if checked.dry_run else journal or engine.journal  # a dry run creates nothing to remember
    ledger = None if used_journal is None else _make_ledger(engine, used_journal, concurrency)
    sender = BatchSender(engine, options, checked, results, ledger, send_batch)
    pump = _Pump(reader, sender, results, engine.clock, concurrency, on_progress)
    return _Run(engine, journal, ledger, reader, results, pump)


def _make_ledger(engine: Engine, journal: "Journal", concurrency: int) -> "Ledger":
    from convertrilo.bulk.ledger import Ledger  # imports sqlite3

    keep = 2 * concurrency + 2
    return Ledger(journal, service=engine.service, sender=engine.credentials.sender, keep=keep)


class _Run:
    """The iterator that `submit_jobs` returns. Unlike a generator, it need not be closed if the caller stops early."""

    def __init__(
        self,
        engine: Engine,
        journal: "Journal | None",
        ledger: "Ledger | None",
        reader: BatchReader,
        results: Results,
        pump: "_Pump",
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._ledger = ledger
        self._reader = reader
        self._results = results
        self._pump = pump

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SubmittedJob:
        ready, pump = self._results.ready, self._pump
        while not ready:
            if pump.error is not None:
                error, pump.error, pump.is_done = pump.error, None, True
                self._note_state(error)
                raise error
            if pump.is_done:
                raise StopAsyncIteration
            try:
                await self._work()
            except Exception:
                raise
            except BaseException:
                pump.error = ConvertriloError("submit_jobs was cancelled; jobs that were in flight have no results")
                raise
            ready.reverse()  # so that the next result is at the end
        return ready.pop()

    async def _work(self) -> None:
        """Run the pump with the journal open; release the run's batches if the run will send no more of them."""
        async with AsyncExitStack() as stack:
            if self._journal is not None:
                await stack.enter_async_context(self._journal)
            elif self._ledger is not None:
                await self._engine.open_journal()
            if self._ledger is None:
                await self._pump.run()
                return
            is_over = True
            try:
                with self._ledger.running():
                    await self._pump.run()
                is_over = self._pump.error is not None
            finally:
                if is_over:
                    await self._ledger.release_all()

    def _note_state(self, error: Exception) -> None:
        results = self._results
        open_jobs = self._reader.taken - results.submitted - results.failed
        how = "the same jobs and batch_size: the client then sends the same batches under the same keys"
        if self._ledger is not None:
            how = "the same journal: it knows which jobs were submitted, and the client sends the others"
        error.add_note(
            f"submit_jobs has stopped. Its results say that {results.submitted} jobs are submitted and that "
            f"{results.failed} were refused. {open_jobs} more jobs were read from the input and have no result yet. "
            f"Run again with {how}."
        )


class _Pump:
    """Keeps up to `concurrency` batches in flight while the caller waits for a result."""

    def __init__(
        self,
        reader: BatchReader,
        sender: BatchSender,
        results: Results,
        clock: Clock,
        concurrency: int,
        on_progress: OnSubmit | None,
    ) -> None:
        self.error: Exception | None = None
        """The first error, which ends the run once the caller has read the results that are ready."""
        self.is_done = False
        """Whether all batches are sent."""
        self._reader = reader
        self._sender = sender
        self._results = results
        self._clock = clock
        self._concurrency = concurrency
        self._on_progress = on_progress
        self._in_flight = 0
        self._hand_out_at = 0.0

    async def run(self) -> None:
        """Send batches until it is time to hand out results; return when no batch is in flight."""
        self._hand_out_at, enough = self._clock.monotonic() + _HOLD, self._reader.size * self._concurrency
        self._landed = anyio.Event()
        async with anyio.create_task_group() as tasks:
            while self.error is None and len(self._results.ready) < enough and not self._is_time_to_hand_out():
                work = None if self._in_flight >= self._concurrency else await self._next_work()
                if work is not None:
                    self._in_flight += 1
                    tasks.start_soon(self._do, work)
                    await anyio.lowlevel.checkpoint()
                elif self._is_time_to_hand_out():
                    break
                elif self._in_flight:
                    await self._landed.wait()
                else:
                    self.is_done = True
                    break

    def _is_time_to_hand_out(self) -> bool:
        """Whether there are results that have waited long enough."""
        return bool(self._results.ready) and self._clock.monotonic() > self._hand_out_at

    async def _next_work(self) -> _Work | None:
        """Return a function that sends the next batch; None if there is none, or results must be handed out first."""
        try:
            batch = await self._reader.next(self._is_time_to_hand_out)
        except Exception as error:  # noqa: BLE001  # an error of the input, raised once the results are read
            self.error = self.error or error
            return None
        for request, refusal in self._reader.take_refused():
            self._results.add(request, None, None, refusal, None)
        if batch is None:
            return None
        if batch:
            return partial(self._sender.submit, batch, requeue=self._reader.requeue)
        if self._sender.resumer is not None and not self._in_flight:
            return self._sender.resumer.next_resumed(self._sender.send)  # a batch whose other jobs are not in the input
        return None

    async def _do(self, work: _Work) -> None:
        try:
            await work()
            if self._on_progress is not None:
                self._on_progress(SubmitProgress(self._reader.taken, self._results.submitted, self._results.failed))
        except Exception as error:  # noqa: BLE001  # raised once no batch is in flight and the results are read
            self.error = self.error or error
        finally:
            self._in_flight -= 1
            self._landed.set()
            self._landed = anyio.Event()
