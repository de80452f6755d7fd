"""The rate limit: so many requests a minute for each account, and what the answers' headers say of it."""

import math
from datetime import UTC, datetime
from email.utils import format_datetime

from convertrilo._clock import Clock
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.rules import Rules

_MINUTE = 60


class RateLimit:
    """Counts requests in minutes of the clock.

    Args:
        rules: how many a minute has room for, and how a refusal says when to come again.
        clock: what tells one minute from the next.
    """

    def __init__(self, rules: Rules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._minute = 0
        self._counts: dict[str, int] = {}

    def count(self, who: str, headers: dict[str, str]) -> None:
        """Count a request, and write into the answer's headers how many more there may be.

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
        count = self._counts[who] = self._counts.get(who, 0) + 1
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
