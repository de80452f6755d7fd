"""The rate limit: requests per minute of each account, and the response headers about it."""

import math
from datetime import UTC, datetime
from email.utils import format_datetime

from convertrilo._clock import Clock
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.rules import Rules

_MINUTE = 60


class RateLimit:
    """Counts requests per minute of the clock.

    Args:
        rules: the limit, and the form of `Retry-After`.
        clock: the source of time.
    """

    def __init__(self, rules: Rules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._minute = 0
        self._counts: dict[str, int] = {}

    def count(self, caller: str, headers: dict[str, str]) -> None:
        """Count a request of a caller, and add the rate limit to the response headers.

        Raises:
            Problem: 429 `rate_limit_exceeded`.
        """
        limit = self._rules.requests_per_minute
        if limit is None:
            return
        now = self._clock.time()
        minute = int(now // _MINUTE)
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        count = self._counts[caller] = self._counts.get(caller, 0) + 1
        ends_at = (minute + 1) * _MINUTE
        seconds = str(math.ceil(ends_at - now))
        headers |= {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(max(0, limit - count))}
        headers["x-ratelimit-reset"] = seconds
        if count > limit:
            if self._rules.retry_after == "seconds":
                headers["retry-after"] = seconds
            elif self._rules.retry_after == "date":
                headers["retry-after"] = format_datetime(datetime.fromtimestamp(ends_at, UTC), usegmt=True)
            raise Problem(429, "rate_limit_exceeded", f"An account may make {limit} requests a minute.")
