"""The rate limiter: how fast the service accepts requests, learned from its answers. Pure: the time is an argument.

A service counts requests in windows. If its headers say how many requests are left and when the window ends, the
limiter keeps to these numbers. If the service only refuses requests (429), the limiter learns the window from the
refusals: how many requests were accepted before a refusal, and how long it took until a request was accepted again.
From then on, the limiter allows no more requests than that in each window, and now and then one request more as a test.
"""

import math

from convertrilo.retry import Allowance

_LOOK_AGAIN = 0.05
"""Seconds between two checks while the limiter waits for an answer that may say more."""

_LEAST_WAIT = 0.001
"""The shortest wait in seconds, because some clocks cannot advance by less."""

_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds between two probes of a service that refuses requests without a Retry-After; the pause doubles each time."""

_SAME_WINDOW = 2.0
"""Seconds by which two reports of the same window's end may differ, because services round."""

_LONGEST_WINDOW = 120.0
"""The longest window in seconds that the limiter assumes when it learns from refusals."""

_LONGEST_RETRY_AFTER = 3600.0
"""The longest wait in seconds that the limiter accepts from the service; after that, it tries a request."""

_ENOUGH = 20
"""Requests that the service must have accepted in a window before the limiter learns the window's size from them."""

_SLOWER, _FASTER = 1.25, 0.95
"""Factors for the time between two requests if the service has no windows: after a refusal, after many successes."""

_IDLE = 5.0
"""Seconds without a request after which earlier requests say nothing about a limit."""

_SURE = 4
"""Consecutive refusals without a Retry-After that mean a limit."""

_BEFORE_MORE = 150
"""Requests without a refusal, and at least two windows of them, before the limiter tries one request more. This keeps
refusals rare."""

_BEFORE_ALL = 2_000
"""Requests without a refusal before the limiter forgets what it has learned from refusals."""


class RateLimiter:
    """Delays the client's requests that the service would refuse; at first, it delays no request."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._last_end = -math.inf
        self._left = math.inf  # requests left in this window, by the latest answer
        self._ends = math.inf
        self._has_headers = False  # the service sends rate-limit headers
        # What the limiter has learned from refusals:
        self._limit = math.inf
        self._proven = math.inf  # requests that were accepted in one window before
        self._began = 0.0  # of the window
        self._accepted = 0  # in this window
        self._accepted_since_refusal = 0
        self._refused_in_a_row = 0
        self._more_from = math.inf
        self._is_over = False  # the window should be over, and no request was accepted since
        self._over_since: float | None = None
        self._is_vague = False  # there was a refusal after too few accepted requests to learn from
        self._spacing = 0.0  # seconds between two requests of a service without windows (a token bucket)
        self._next_at = -math.inf
        self._pause = _PAUSE
        self._look_at = -math.inf  # when to probe next, after a refusal without a Retry-After

    def wait(self, now: float) -> float:
        """Return 0 if a request may be sent now, or else the seconds after which to ask again.

        Args:
            now: Monotonic seconds.
        """
        if now >= self._ends:
            self._over_since, self._ends, self._left = self._ends, math.inf, self._limit
            self._is_over = not self._has_headers
        if self._is_over and now < self._look_at:
            return max(self._look_at - now, _LEAST_WAIT)
        if self._left > self._in_flight or self._is_over:
            if now < self._next_at:
                return max(self._next_at - now, _LEAST_WAIT)
            # A single request is enough to find out whether the window is over, or allows more.
            alone = self._is_over or self._is_vague or self._accepted + self._in_flight >= self._proven
            return _LOOK_AGAIN if alone and self._in_flight else 0.0
        if self._ends < math.inf:
            return max(self._ends - now, _LEAST_WAIT)
        return _LOOK_AGAIN if self._in_flight else 0.0

    def begin(self, now: float) -> float:
        """Count a request that begins now and return 0, or return the seconds after which to ask again."""
        wait = self.wait(now)
        if not wait:
            if self._limit == math.inf and not self._in_flight and now - self._last_end > _IDLE:
                self._began, self._accepted = now, 0
            self._in_flight += 1
            self._next_at = max(self._next_at, now) + self._spacing if self._spacing else now
        return wait

    def end(self, now: float) -> None:
        """Count a request that has ended, with or without an answer."""
        self._in_flight -= 1
        self._last_end = now

    def taken(self, allowance: Allowance | None, now: float) -> None:
        """Learn from an answer other than a refusal.

        Args:
            allowance: The answer's rate-limit headers, if it has any.
            now: Monotonic seconds.
        """
        self._refused_in_a_row = 0
        if allowance is not None:
            self._obey(allowance, now)
            return
        if self._is_over:
            self._pause, self._look_at = _PAUSE, -math.inf
            self._begin_window(now if self._over_since is None else self._over_since)
        self._left -= 1
        self._accepted += 1
        self._accepted_since_refusal += 1
        if self._accepted > self._proven:
            self._proven = self._accepted
        if self._spacing:
            if self._accepted_since_refusal >= self._more_from:
                self._spacing *= _FASTER
                self._more_from += _BEFORE_MORE
        elif self._accepted_since_refusal >= (_ENOUGH if self._is_vague else _BEFORE_ALL):
            self._forget()

    def refused(self, after: float | None, now: float) -> None:
        """Learn from a refusal.

        Args:
            after: Seconds that the service asks the client to wait, if it asks for a wait.
            now: Monotonic seconds.
        """
        self._refused_in_a_row += 1
        if after is not None:
            after = min(after, _LONGEST_RETRY_AFTER)
        if not after and self._refused_in_a_row < _SURE and self._accepted < self._proven and not self._is_over:
            return  # the refusal may have another reason: the next request may be accepted
        is_news = self._left > 0 or self._is_over
        if is_news and not self._is_over and not self._has_headers:
            self._learn(after, now)
        self._accepted_since_refusal = 0
        self._more_from = _BEFORE_MORE if self._spacing else max(_BEFORE_MORE, 2 * self._limit)
        self._left = 0
        if after is not None:
            self._ends = now + after if is_news or self._ends == math.inf else max(self._ends, now + after)
            self._is_over = False
        elif self._ends == math.inf:
            if self._is_over:
                self._look_at = now + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._is_over, self._over_since = True, None

    def _learn(self, after: float | None, now: float) -> None:
        if self._spacing:
            self._spacing = min(_SLOWER * self._spacing, after or self._spacing)  # no slower than the service asks for
        elif self._accepted < min(_ENOUGH, self._limit / 2):
            self._is_vague = True
        elif self._is_vague and after:  # repeated refusals after few requests: the service has no windows
            self._is_vague = False
            self._spacing = min((now - self._began) / self._accepted, after)
        else:
            self._is_vague = False
            self._limit = self._proven = self._accepted

    def _begin_window(self, start: float) -> None:
        """Begin another window, unless too little is known about windows."""
        self._is_over = False
        if self._is_vague or self._spacing:
            self._limit = self._proven = self._left = math.inf
            return
        length = min(start - self._began, _LONGEST_WINDOW)
        if self._accepted_since_refusal >= self._more_from:
            self._limit = self._proven + max(1, self._proven // 2)
            self._more_from = self._accepted_since_refusal + max(_BEFORE_MORE, 2 * self._limit)
        self._began, self._accepted = start, 0
        self._left = self._limit
        self._ends = start + length

    def _forget(self) -> None:
        self._limit = self._proven = self._left = self._ends = math.inf
        self._is_vague = False
        self._spacing = 0.0

    def _obey(self, allowance: Allowance, now: float) -> None:
        if not self._has_headers:
            self._forget()
            self._has_headers = True
        self._is_over, self._pause, self._look_at = False, _PAUSE, -math.inf
        ends = now + min(allowance.reset, _LONGEST_RETRY_AFTER)
        is_same = abs(ends - self._ends) <= _SAME_WINDOW
        self._left = min(self._left, allowance.remaining) if is_same else allowance.remaining
        self._ends = max(ends, self._ends) if is_same else ends
        self._limit = max(allowance.limit or 0, allowance.remaining + 1)
