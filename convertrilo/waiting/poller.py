"""One poller for all tasks of a client that wait for jobs: one of the tasks polls, and the others sleep.

The poller has no task of its own. One of the waiting tasks, the leader, does the polling. When the leader's wait ends,
or the leader is cancelled, another waiting task takes over. So polling ends with the last waiter.
"""

import copy
import math
from collections.abc import Iterable

import anyio
import anyio.lowlevel
import attrs

from convertrilo._http.engine import Engine
from convertrilo.errors import ConvertriloError
from convertrilo.models import TERMINAL_STATUSES
from convertrilo.waiting.reader import StatusReader
from convertrilo.waiting.rounds import Rounds
from convertrilo.waiting.watch import AnyStatus, Waiter, Watch

_GRACE = 0.5
"""Seconds for which a leader whose wait is over still waits for the answers to its requests in flight."""


class Poller:
    """Reads the statuses of the jobs that the tasks of a client wait for."""

    def __init__(self, engine: Engine) -> None:
        self._clock = engine.clock
        self._rounds = Rounds(engine)
        self._reader = StatusReader(engine, self._rounds, on_status=self._take, on_error=self._finish)
        self._watches: dict[tuple[bool, str], Watch] = {}
        self._leader: Waiter | None = None
        self._blocked: dict[Waiter, anyio.Event] = {}
        """The waiters whose tasks sleep, each with the event that wakes its task."""
        self._work: anyio.CancelScope | None = None
        """The scope of everything that the leader does."""
        self._nap: anyio.CancelScope | None = None
        """The scope of the leader's sleep until the next read."""
        self._alarm: anyio.CancelScope | None = None
        """The scope of the leader's sleep until the next deadline of a waiter."""
        self._alarm_at = math.inf

    @property
    def trouble(self) -> ConvertriloError | None:
        """Why the last read failed; None if it succeeded."""
        return self._rounds.trouble

    # ---- waiters

    def join(self, waiter: Waiter, job_ids: Iterable[str], *, on_demand: bool) -> None:
        """Add jobs that a waiter waits for."""
        now = self._clock.monotonic()
        for job_id in job_ids:
            watch = Watch(job_id, on_demand, since=now, due=now)
            watch = self._watches.setdefault(watch.key, watch)
            watch.waiters.append(waiter)
            waiter.watches[watch.key] = watch
        _cancel(self._nap)

    def leave(self, waiter: Waiter, *watches: Watch) -> None:
        """Remove jobs that a waiter no longer waits for: by default all of its jobs."""
        for watch in watches or tuple(waiter.watches.values()):
            del waiter.watches[watch.key]
            watch.waiters.remove(waiter)
            if not watch.waiters:
                del self._watches[watch.key]

    def notify(self, job_id: str) -> None:
        """Read a job at once, if a waiter waits for it."""
        for on_demand in (False, True):
            watch = self._watches.get((on_demand, job_id))
            if watch is not None:
                self._rounds.read_first(watch)
                _cancel(self._nap)

    async def wait(self, waiter: Waiter) -> None:
        """Wait until the waiter is ready; lead until then if no other waiter leads."""
        try:
            while not waiter.is_ready:
                if self._clock.monotonic() >= waiter.deadline:
                    waiter.is_late = True
                elif self._leader is None:
                    await self._lead(waiter)
                else:
                    event = self._blocked[waiter] = anyio.Event()
                    if waiter.deadline < self._alarm_at:
                        _cancel(self._alarm)
                    await event.wait()
        finally:
            self._blocked.pop(waiter, None)
            if self._leader is None and self._blocked:
                next(iter(self._blocked.values())).set()

    def _wake(self, waiter: Waiter) -> None:
        if waiter is self._leader and self._work is not None:
            # Requests in flight get a moment to be answered, unless the waiter has no time left.
            grace = 0.0 if waiter.is_late or waiter.callback_error is not None else _GRACE
            self._work.deadline = min(self._work.deadline, anyio.current_time() + grace)
        elif waiter in self._blocked:
            self._blocked[waiter].set()

    # ---- the leader

    async def _lead(self, waiter: Waiter) -> None:
        self._leader = waiter
        self._blocked.pop(waiter, None)
        try:
            async with anyio.create_task_group() as tasks:
                self._work = tasks.cancel_scope
                tasks.start_soon(self._watch_deadlines, waiter)
                await self._poll(waiter)
                tasks.cancel_scope.cancel()
        finally:
            self._leader = None

    async def _watch_deadlines(self, leader: Waiter) -> None:
        while True:
            now = self._clock.monotonic()
            self._alarm_at = math.inf
            for waiter in (leader, *self._blocked):
                if waiter.deadline > now:
                    self._alarm_at = min(self._alarm_at, waiter.deadline)
                else:
                    waiter.is_late = True
                    self._wake(waiter)
            with anyio.CancelScope() as self._alarm:
                await self._clock.sleep(self._alarm_at - now)

    async def _poll(self, leader: Waiter) -> None:
        options = leader.options
        once = attrs.evolve(options, retry=attrs.evolve(options.retry, max_attempts=1))  # the next round is the retry
        await anyio.lowlevel.checkpoint()  # so that tasks that begin to wait at the same time share the first request
        while not leader.is_ready:
            now = self._clock.monotonic()
            at = self._rounds.next_read_at(self._watches.values(), now)
            if at > now:
                with anyio.CancelScope() as self._nap:
                    await self._clock.sleep(at - now)
                continue
            if not self._rounds.queue:
                self._rounds.begin(self._watches.values(), now)
            await self._reader.read_some(leader, once)

    # ---- the statuses that were read

    def _take(self, watch: Watch, status: AnyStatus) -> None:
        if self._rounds.take(watch, status):
            for waiter in watch.waiters:
                waiter.tell(status)
                if waiter.callback_error is not None:
                    self._wake(waiter)
        if status.status in TERMINAL_STATUSES:
            self._finish(watch, None)

    def _finish(self, watch: Watch, error: Exception | None) -> None:
        """End the wait for a job, with an error if the job cannot be read."""
        for waiter in watch.waiters:
            waiter.finished.append((watch, copy.copy(error) if isinstance(error, ConvertriloError) else error))
            self._wake(waiter)
        for waiter in tuple(watch.waiters):
            self.leave(waiter, watch)


def _cancel(scope: anyio.CancelScope | None) -> None:
    if scope is not None:
        scope.cancel()
