"""Rounds of reading: which jobs to read next, and when.

A round reads every job that is due. Between two rounds, the poller rests. A job with news is read at once.
"""

import math
from collections.abc import ValuesView

from convertrilo._http.context import Context
from convertrilo.errors import APIError, ConvertriloError
from convertrilo.waiting.watch import MAX_INTERVAL, AnyStatus, Watch, backoff_after, rest_after

_SLACK = 0.3
"""The fraction of its interval by which a job may be read early, so that it joins the round."""
_MOST_DOUBLINGS = 10


class Rounds:
    """The jobs to read now, and when the next request may be sent.

    Args:
        context: Provides the clock and the random numbers.
    """

    def __init__(self, context: Context) -> None:
        self.queue: dict[Watch, None] = {}
        """The jobs that are still to be read, in order."""
        self.trouble: ConvertriloError | None = None
        """Why the last request failed; None if it was answered."""
        self._context = context
        self._clock = context.clock
        self._is_round = False
        """Whether the queue belongs to a round; otherwise it holds only jobs with news."""
        self._requests = 0
        """How many requests the current or the last round took."""
        self._ended_at = -math.inf
        """When the last round ended."""
        self._quiet_until = -math.inf
        """The time before which no request may be sent."""
        self._failures = 0
        """How many requests in a row have failed."""
        self._is_notified = False
        """Whether the application reports news with `notify`, for example from webhooks."""

    @property
    def is_quiet(self) -> bool:
        """Whether no request may be sent now."""
        return self._quiet_until > self._clock.monotonic()

    def next_read_at(self, watches: ValuesView[Watch], now: float) -> float:
        """Return when to send the next request."""
        if self.queue:
            return max(self._quiet_until, now)
        due = min((each.due for each in tuple(watches)), default=math.inf)  # a copy: see `begin`
        return max(self._quiet_until, self._ended_at + rest_after(self._requests), due)

    def begin(self, watches: ValuesView[Watch], now: float) -> None:
        """Begin a round of the jobs that are due or will be due soon, the longest overdue first."""
        # A copy, because the garbage collector may remove a waiter, and so its jobs, at any moment.
        due = [watch for watch in tuple(watches) if watch.due - now <= watch.interval * _SLACK]
        self.queue = dict.fromkeys(sorted(due, key=lambda watch: watch.due))
        self._is_round = True
        self._requests = 0

    def end_if_done(self) -> None:
        """End the round if all of its jobs are read."""
        if self._is_round and not self.queue:
            self._is_round = False
            self._ended_at = self._clock.monotonic()

    def read_first(self, watch: Watch) -> None:
        """Put a job with news at the head of the queue."""
        watch.due = self._clock.monotonic()  # the next round reads the job again if this read does not succeed
        self.queue = {watch: None, **self.queue}
        self._is_notified = True

    def take(self, watch: Watch, status: AnyStatus) -> bool:
        """Store a job's status and schedule the next read; return whether status or progress changed."""
        is_news = watch.take(status, self._clock.monotonic(), self._context.random)
        if self._is_notified:  # polling only has to find the news that `notify` misses
            watch.interval = MAX_INTERVAL
            watch.due = self._clock.monotonic() + MAX_INTERVAL
        return is_news

    # ---- the pace

    def count_request(self) -> None:
        """Count a request that is about to be sent."""
        self._requests += self._is_round

    def answered(self, retry_after: float | None) -> None:
        """Note that a request was answered, and how many seconds the service asks the client to wait, if it does."""
        self._failures = 0
        self.trouble = None
        if retry_after is not None:
            self._quiet_until = self._clock.monotonic() + retry_after

    def failed(self, error: ConvertriloError) -> None:
        """Back off after a request that failed for a transient reason."""
        self.trouble = error
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        retry_after = error.retry_after if isinstance(error, APIError) else None
        backoff = backoff_after(self._failures, self._context.random)
        self._quiet_until = self._clock.monotonic() + (retry_after or backoff)
