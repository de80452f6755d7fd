"""A job that calls wait for, a call that waits for jobs, and how often the poller reads a job.

All times are seconds of the client's monotonic clock.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from convertrilo._http.context import Options
from convertrilo.models import OnDemandStatusResponse, StatusResponse

AnyStatus = StatusResponse | OnDemandStatusResponse
Random = Callable[[], float]

MIN_INTERVAL = 0.5
MAX_INTERVAL = 15.0
_AGE_SHARE = 1 / 6
_JITTER = 0.2


def interval(*, age: float, quiet: float, left: float | None, random: Random) -> float:
    """Return the seconds until the next read of a job, from 0.4 to 15.

    A young job may end soon, so it is read again after a fraction of its age. If the job's progress predicts an earlier
    end, it is read at that time; if the prediction was wrong, after half of the time without progress.

    Args:
        age: Seconds since the wait for the job began.
        quiet: Seconds since the job's status or progress changed.
        left: Seconds until the job ends as its progress predicts, or None without a prediction.
        random: Returns a number from 0 to 1.
    """
    wait = age * _AGE_SHARE
    if left is not None:
        wait = min(wait, max(left, quiet / 2))
    return min(max(wait, MIN_INTERVAL), MAX_INTERVAL) * (1 - _JITTER * random())


def rest_after(requests: int) -> float:
    """Return the seconds to rest after a round with this number of requests: the more requests, the longer."""
    return min(MIN_INTERVAL * requests, MAX_INTERVAL)


def backoff_after(failures: int, random: Random) -> float:
    """Return the seconds to wait after this number of failed requests in a row."""
    return max(MIN_INTERVAL, min(MAX_INTERVAL, MIN_INTERVAL * 2.0**failures) * random())


def percent_of(status: AnyStatus) -> float | None:
    """Return the progress of a job, in percent."""
    return status.pct if isinstance(status, StatusResponse) else status.progress


@attrs.define(eq=False)
class Watch:
    """A job that at least one call waits for."""

    job_id: str
    on_demand: bool
    since: float
    """When the wait began."""
    due: float
    """When to read the job next."""
    interval: float = 0.0
    """Seconds between the last read and `due`."""
    waiters: list["Waiter"] = attrs.field(factory=list["Waiter"])
    status: AnyStatus | None = None
    """The status that was read last."""
    changed_at: float = 0.0
    """When the status or progress changed."""
    first_progress: tuple[float, float] = (0.0, math.inf)
    """When the first progress was read, and how much it was, in percent."""
    alone: bool = False
    """Whether the job must be read on its own, because `bulkStatus` does not report it."""
    missing: bool = False
    """Whether `bulkStatus` did not find the job."""

    @property
    def key(self) -> tuple[bool, str]:
        """The kind of the job, and its id."""
        return self.on_demand, self.job_id

    def take(self, status: AnyStatus, now: float, random: Random) -> bool:
        """Store a status and schedule the next read; return whether status or progress changed."""
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
        """Predict the seconds until the job ends, from its progress so far."""
        began, first = self.first_progress
        if percent > first:
            return (now - began) * (100 - percent) / (percent - first)
        if percent < first:
            self.first_progress = now, percent
        return None


@attrs.define(eq=False)
class Waiter:
    """One call that waits for one job or many."""

    options: Options
    timeout: float
    deadline: float
    on_progress: Callable[[Any], object] | None
    """Takes a `StatusResponse`, or an `OnDemandStatusResponse` if the waiter's jobs are on-demand."""
    watches: dict[tuple[bool, str], Watch] = attrs.field(factory=dict[tuple[bool, str], Watch])
    """The jobs that the call still waits for."""
    finished: deque[tuple[Watch, Exception | None]] = attrs.field(factory=deque[tuple[Watch, Exception | None]])
    """The jobs whose wait is over, each with the error that ended the wait, if any."""
    is_late: bool = False
    """Whether the deadline has passed."""
    callback_error: Exception | None = None
    """What `on_progress` raised."""

    @property
    def is_ready(self) -> bool:
        """Whether the waiting task has something to return or raise."""
        return bool(self.finished) or self.is_late or self.callback_error is not None

    def tell(self, status: AnyStatus) -> None:
        """Call `on_progress`; keep its error for the waiter's own task, because this may be another waiter's task."""
        if self.on_progress is None or self.callback_error is not None:
            return
        try:
            self.on_progress(status)
        except Exception as error:  # noqa: BLE001  # raised in the waiting task
            self.callback_error = error
