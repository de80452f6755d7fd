"""One poller for all tasks of a client that wait for jobs: whom it asks for, in which requests, and when.

No task of its own runs it. One of the tasks that wait drives it, the leader; when its wait is over, or it is cancelled,
another one takes over. So polling ends with the last waiter, and outlives nobody.
"""

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import anyio
import anyio.lowlevel
import attrs

from convertrilo import operations as rows
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo.errors import APIError, ConvertriloError, RateLimitError, ServerError, TransportError
from convertrilo.models import TERMINAL_STATUSES, BulkStatusResponse, OnDemandStatusResponse, StatusResponse
from convertrilo.operations import Operation
from convertrilo.retry import retry_after

AnyStatus = StatusResponse | OnDemandStatusResponse
Random = Callable[[], float]

MIN_INTERVAL = 0.5
MAX_INTERVAL = 15.0
_AGE_SHARE = 1 / 6
_JITTER = 0.2
_SLACK = 0.3
_SINGLE_READS = 8  # at the same time
_GRACE = 0.5

# What the service may answer when it minds how many are asked for, or does not have the operation for us.
_TOO_MANY = frozenset({400, 413, 414, 422, 431})
_NOT_AT_ALL = frozenset({403, 404, 405, 410, 501})


def interval(*, age: float, quiet: float, left: float | None, random: Random) -> float:
    """Return the seconds until a job is to be read again, from 0.4 to 15.

    A young job may end soon: it is read again after a share of its age. One whose progress says when it ends is read
    then, if that is earlier; and if it was wrong, after a share of the time for which the progress has stood still.

    Args:
        age: Seconds since the job was first asked for.
        quiet: Seconds since its status or progress changed.
        left: Seconds until it ends, by its progress so far; `None` if that is not known.
        random: Returns a number from 0 to 1.
    """
    wait = age * _AGE_SHARE
    if left is not None:
        wait = min(wait, max(left, quiet / 2))
    return min(max(wait, MIN_INTERVAL), MAX_INTERVAL) * (1 - _JITTER * random())


def percent_of(status: AnyStatus) -> float | None:
    """Return how far a job is, in percent."""
    return status.pct if isinstance(status, StatusResponse) else status.progress


@attrs.define(eq=False)
class Watch:
    """One job that somebody waits for."""

    job_id: str
    on_demand: bool
    since: float
    due: float
    """When to read it next."""
    interval: float = 0.0
    waiters: list["Waiter"] = attrs.field(factory=list["Waiter"])
    status: AnyStatus | None = None
    """The last one that was read."""
    changed_at: float = 0.0
    first_progress: tuple[float, float] = (0.0, math.inf)
    """When it had made how much progress first."""
    alone: bool = False
    """Whether `bulkStatus` has nothing to say of it."""
    missing: bool = False
    """Whether `bulkStatus` does not know it."""

    @property
    def key(self) -> tuple[bool, str]:
        """What it is found by."""
        return self.on_demand, self.job_id

    def take(self, status: AnyStatus, now: float, random: Random) -> bool:
        """Note a status and when to read the next one; return whether it is news."""
        before, percent = self.status, percent_of(status)
        is_news = before is None or (before.status, percent_of(before)) != (status.status, percent)
        self.status = status
        if is_news:
            self.changed_at = now
        left = self._left(percent, now) if status.status == "running" and percent is not None else None
        self.interval = interval(age=now - self.since, quiet=now - self.changed_at, left=left, random=random)
        self.due = now + self.interval
        return is_news

    def _left(self, percent: float, now: float) -> float | None:
        began, first = self.first_progress
        if percent > first:
            return (now - began) * (100 - percent) / (percent - first)
        if percent < first:
            self.first_progress = now, percent
        return None


@attrs.define(eq=False)
class Waiter:
    """One call that waits, for one job or many."""

    options: Options
    timeout: float
    deadline: float
    on_progress: Callable[[Any], object] | None
    watches: dict[tuple[bool, str], Watch] = attrs.field(factory=dict[tuple[bool, str], Watch])
    """The jobs that it still waits for."""
    finished: deque[tuple[Watch, Exception | None]] = attrs.field(factory=deque[tuple[Watch, Exception | None]])
    """The jobs whose wait is over; with an error, if that is why."""
    is_late: bool = False
    callback_error: Exception | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to tell its caller."""
        return bool(self.finished) or self.is_late or self.callback_error is not None

    def hear(self, status: AnyStatus) -> None:
        """Tell the callback, whose error belongs into its own task, not into the leader's."""
        if self.on_progress is None or self.callback_error is not None:
            return
        try:
            self.on_progress(status)
        except Exception as error:  # noqa: BLE001  # raised again where the callback came from
            self.callback_error = error


class Poller:
    """Reads the statuses that the tasks of a client wait for."""

    def __init__(self, engine: Engine) -> None:
        self.trouble: ConvertriloError | None = None
        """Why the last read did not work; `None` if it did."""
        self._engine = engine
        self._clock = engine.clock
        self._watches: dict[tuple[bool, str], Watch] = {}
        self._leader: Waiter | None = None
        self._blocked: dict[Waiter, anyio.Event] = {}
        # What the leader does: all of it, its sleep until the next read, and its sleep until the next deadline.
        self._work: anyio.CancelScope | None = None
        self._nap: anyio.CancelScope | None = None
        self._alarm: anyio.CancelScope | None = None
        self._alarm_at = math.inf
        self._quiet_until = -math.inf  # as the service asked
        self._round_ended = -math.inf
        self._round: dict[Watch, None] = {}  # what is yet to be read in this round, in order
        self._in_round = False  # or it is a job that something has happened to
        self._requests = 0  # of this round, or the last one
        self._failures = 0
        self._is_notified = False
        # What was learned about the service.
        self._batch_size = engine.poll_batch_size  # fewer when the service refuses that many
        self._bulk_works: bool | None = None
        self._bulk_knows_on_demand = True
        self._refused_ids = 0

    # ---- coming and going

    def join(self, waiter: Waiter, job_ids: Iterable[str], *, on_demand: bool) -> None:
        """Let a waiter wait for jobs."""
        now = self._clock.monotonic()
        for job_id in job_ids:
            watch = Watch(job_id, on_demand, since=now, due=now)
            watch = self._watches.setdefault(watch.key, watch)
            watch.waiters.append(waiter)
            waiter.watches[watch.key] = watch
        _cancel(self._nap)

    def leave(self, waiter: Waiter, *watches: Watch) -> None:
        """Let a waiter wait for these jobs no more; for none at all, if none is named."""
        for watch in watches or tuple(waiter.watches.values()):
            del waiter.watches[watch.key]
            watch.waiters.remove(waiter)
            if not watch.waiters:
                del self._watches[watch.key]

    def notify(self, job_id: str) -> None:
        """Have a job read at once, if somebody waits for it."""
        for on_demand in (False, True):
            watch = self._watches.get((on_demand, job_id))
            if watch is not None:
                watch.due = self._clock.monotonic()  # should this read fail, or its leader leave, so is the next one
                self._round = {watch: None, **self._round}
                self._is_notified = True
                _cancel(self._nap)

    async def wait(self, waiter: Waiter) -> None:
        """Return when a job of the waiter's is over, or its time is up; lead, if nobody does."""
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
            # What is asked already shall not have been asked in vain, if it is answered soon.
            grace = 0.0 if waiter.is_late or waiter.callback_error is not None else _GRACE
            self._work.deadline = min(self._work.deadline, anyio.current_time() + grace)
        elif waiter in self._blocked:
            self._blocked[waiter].set()

    # ---- what the leader does

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
        await anyio.lowlevel.checkpoint()  # jobs that are waited for from the same moment are asked for together
        while not leader.is_ready:
            now = self._clock.monotonic()
            at = max(self._quiet_until, now if self._round else self._next_round())
            if at > now:
                with anyio.CancelScope() as self._nap:
                    await self._clock.sleep(at - now)
                continue
            if not self._round:
                self._begin_round(now)
            await self._read_some(leader, once)

    def _next_round(self) -> float:
        """Return when to begin a round; the more requests the last one cost, the longer is the rest after it."""
        rest = min(MIN_INTERVAL * self._requests, MAX_INTERVAL)
        return max(
            self._round_ended + rest, min((each.due for each in tuple(self._watches.values())), default=math.inf)
        )

    def _begin_round(self, now: float) -> None:
        """Begin with what has waited longest; what will be due soon is read as well, as that costs little more."""
        due = [watch for watch in tuple(self._watches.values()) if watch.due - now <= watch.interval * _SLACK]
        self._round = dict.fromkeys(sorted(due, key=lambda watch: watch.due))
        self._in_round = True
        self._requests = 0

    async def _read_some(self, leader: Waiter, once: Options) -> None:
        """Read some jobs of the round: in one request, or in a few at a time."""
        batch = list(itertools.islice(filter(self._goes_together, self._round), self._batch_size))
        if len(batch) > 1:
            for watch in batch:
                del self._round[watch]
            await self._read_together(batch, once)
            self._round.update(dict.fromkeys(each for each in batch if each.waiters and not self._goes_together(each)))
        else:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(_SINGLE_READS, len(self._round))):
                    tasks.start_soon(self._read_singly, leader, once)
        if self._in_round and not self._round:
            self._in_round = False
            self._round_ended = self._clock.monotonic()

    async def _read_singly(self, leader: Waiter, once: Options) -> None:
        while self._round and not leader.is_ready and not self._is_quiet:
            watch = next(iter(self._round))
            del self._round[watch]
            if watch.waiters:
                await self._read_alone(watch, once)

    def _goes_together(self, watch: Watch) -> bool:
        if watch.alone or self._bulk_works is False or not watch.waiters:
            return False
        return self._bulk_knows_on_demand or not watch.on_demand

    @property
    def _is_quiet(self) -> bool:
        """Whether the service must not be asked now."""
        return self._quiet_until > self._clock.monotonic()

    async def _read_together(self, watches: Sequence[Watch], once: Options) -> bool:
        """Read jobs by `bulkStatus`, in as few requests as the service allows; return whether it answered for all."""
        size = self._batch_size
        if len(watches) > size:
            parts = [watches[start : start + size] for start in range(0, len(watches), size)]
            return all([await self._read_together(part, once) for part in parts])
        if self._is_quiet or self._bulk_works is False:
            return False
        try:
            answer = await self._ask(rows.BULK_STATUS, once, query={"ids": ",".join(each.job_id for each in watches)})
        except Exception as error:  # noqa: BLE001  # whoever waits for these jobs hears of it
            status = error.status if isinstance(error, APIError) else 0
            if status in _NOT_AT_ALL:
                self._bulk_works = False
            elif status in _TOO_MANY:
                return await self._after_refusal(watches, once)
            else:
                self._fail(error, watches)
            return False
        self._bulk_works = True
        self._take_bulk(answer, watches)
        return True

    async def _after_refusal(self, watches: Sequence[Watch], once: Options) -> bool:
        """Find out whether the service minds how many they are, or one of them, or all of it."""
        half = len(watches) // 2
        if half == 0:
            watches[0].alone = True
            self._refused_ids += 1
            if self._bulk_works is None and self._refused_ids > 1:
                self._bulk_works = False
            return False
        first = await self._read_together(watches[:half], once)
        second = await self._read_together(watches[half:], once)
        if first and second:
            self._batch_size = min(self._batch_size, half)
        return first and second

    def _take_bulk(self, answer: BulkStatusResponse, watches: Sequence[Watch]) -> None:
        found = {status.id: status for status in answer.jobs or ()}
        for watch in watches:
            status = found.get(watch.job_id)
            if status is None:
                watch.alone = watch.missing = True
            elif not watch.on_demand:
                self._take(watch, status)
            elif status.status in TERMINAL_STATUSES:
                watch.alone = True  # its own status says more
            else:
                self._take(watch, _as_on_demand(status))

    async def _read_alone(self, watch: Watch, once: Options) -> None:
        row: Operation[Any] = rows.ON_DEMAND_STATUS if watch.on_demand else rows.JOB_STATUS
        try:
            status = await self._ask(row, once, path={"jobId" if watch.on_demand else "id": watch.job_id})
        except Exception as error:  # noqa: BLE001  # whoever waits for this job hears of it
            self._fail(error, [watch])
        else:
            if watch.on_demand and watch.missing:
                self._bulk_knows_on_demand = False
            self._take(watch, status)

    async def _ask(self, row: Operation[Any], once: Options, **arguments: Any) -> Any:
        self._requests += self._in_round
        answer, headers = await self._engine.call(row, once, **arguments)
        self._failures = 0
        self.trouble = None
        told = retry_after(row.status, headers, self._clock.time())
        if told is not None:
            self._quiet_until = self._clock.monotonic() + told
        return answer

    # ---- what comes of it

    def _take(self, watch: Watch, status: AnyStatus) -> None:
        is_news = watch.take(status, self._clock.monotonic(), self._engine.random)
        if self._is_notified:  # webhooks arrive, so that polling is for those that get lost
            watch.interval = MAX_INTERVAL
            watch.due = self._clock.monotonic() + MAX_INTERVAL
        if is_news:
            for waiter in watch.waiters:
                waiter.hear(status)
                if waiter.callback_error is not None:
                    self._wake(waiter)
        if status.status in TERMINAL_STATUSES:
            self._finish(watch, None)

    def _fail(self, error: Exception, watches: Sequence[Watch]) -> None:
        """Be quiet for a while, if the trouble may pass; if not, the wait for these jobs is over."""
        if _may_pass(error):
            self.trouble = error
            self._failures = min(self._failures + 1, 10)
            told = error.retry_after if isinstance(error, APIError) else None
            backoff = min(MAX_INTERVAL, MIN_INTERVAL * 2**self._failures) * self._engine.random()
            self._quiet_until = self._clock.monotonic() + (told or max(MIN_INTERVAL, backoff))
        else:
            for watch in watches:
                self._finish(watch, error)

    def _finish(self, watch: Watch, error: Exception | None) -> None:
        for waiter in watch.waiters:
            waiter.finished.append((watch, copy.copy(error) if isinstance(error, ConvertriloError) else error))
            self._wake(waiter)
        for waiter in tuple(watch.waiters):
            self.leave(waiter, watch)


def _may_pass(error: Exception) -> TypeGuard[ConvertriloError]:
    if isinstance(error, APIError) and error.status == 408:  # the request came too slowly, by no fault of its own
        return True
    return isinstance(error, TransportError | RateLimitError | ServerError)


def _cancel(scope: anyio.CancelScope | None) -> None:
    if scope is not None:
        scope.cancel()


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
