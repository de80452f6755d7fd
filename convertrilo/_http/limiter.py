"""How fast a service wants to be asked, learned from its answers. Pure: the time is an argument.

A service counts requests in windows. Where its headers say how many are left until when, those are kept to. Where only
refusals (429) tell, the window is learned from them: how many were taken before one, and how long it was until one was
taken again. No more than that are sent in such a window from then on; now and then it is tried with more, one by one.
"""

import math

from convertrilo.retry import Allowance

_LOOK_AGAIN = 0.05
"""Seconds between looks whether an answer is there that says more."""

_LEAST_WAIT = 0.001
"""Seconds to wait at least: a clock need not be able to move by less."""

_PAUSE, _LONGEST_PAUSE = 0.5, 20.0
"""Seconds between looks whether a service that refuses, and does not say for how long, takes requests again."""

_SAME_WINDOW = 2.0
"""Seconds by which the same end may be told differently: services round."""

_LONGEST_WINDOW = 120.0
"""Seconds that a window is assumed to last at most, where only refusals tell."""

_LONGEST_TOLD = 3600.0
"""Seconds that a service is believed to mean at most: after that, it is asked again."""

_ENOUGH = 20
"""Requests that must have been taken in a window to learn from it how many it has room for."""

_SLOWER, _FASTER = 1.25, 0.95
"""How the time between two requests changes where there are no windows: at a refusal, and after a while without one."""

_IDLE = 5.0
"""Seconds without a request after which what was taken before says nothing of a limit."""

_SURE = 4
"""Refusals in a row that are a limit, where they do not say when to come again."""

_BEFORE_MORE = 150
"""Requests that are taken without a refusal, and those of two windows, before one is tried with more: so few of them
are refused."""

_BEFORE_ALL = 2_000
"""Requests that are taken without a refusal before what refusals have taught is forgotten."""


class RateLimiter:
    """Holds back the requests of all tasks of a client that the service would refuse; at first, none."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._last_end = -math.inf
        self._left = math.inf  # that the service takes in this window, as it was when it was last heard
        self._ends = math.inf
        self._is_told = False  # by headers
        # What refusals have taught.
        self._limit = math.inf
        self._proven = math.inf  # how many of those were taken before
        self._began = 0.0
        self._taken = 0
        self._taken_since_refusal = 0
        self._refused_in_a_row = 0
        self._more_from = math.inf
        self._is_over = False  # the window is, or should be, and no request was taken since
        self._over_since: float | None = None
        self._is_vague = False  # there was a refusal, and too few were taken before
        self._spacing = 0.0  # seconds between two requests, where there are no windows: a bucket that fills slowly
        self._next_at = -math.inf
        self._pause = _PAUSE
        self._look_at = -math.inf  # when to see next whether the window is over, where a refusal does not say

    def wait(self, now: float) -> float:
        """Return the seconds after which to ask again for a turn; 0 if it is there.

        Args:
            now: Monotonic seconds.
        """
        if now >= self._ends:
            self._over_since, self._ends, self._left = self._ends, math.inf, self._limit
            self._is_over = not self._is_told
        if self._is_over and now < self._look_at:
            return max(self._look_at - now, _LEAST_WAIT)
        if self._left > self._in_flight or self._is_over:
            if now < self._next_at:
                return max(self._next_at - now, _LEAST_WAIT)
            # One is enough to see whether a window is over, or has room for more.
            alone = self._is_over or self._is_vague or self._taken + self._in_flight >= self._proven
            return _LOOK_AGAIN if alone and self._in_flight else 0.0
        if self._ends < math.inf:
            return max(self._ends - now, _LEAST_WAIT)
        return _LOOK_AGAIN if self._in_flight else 0.0

    def begin(self, now: float) -> float:
        """Take a turn, if there is one; else return the seconds after which to ask again."""
        wait = self.wait(now)
        if not wait:
            if self._limit == math.inf and not self._in_flight and now - self._last_end > _IDLE:
                self._began, self._taken = now, 0
            self._in_flight += 1
            self._next_at = max(self._next_at, now) + self._spacing if self._spacing else now
        return wait

    def end(self, now: float) -> None:
        """Give the turn back, whatever came of it."""
        self._in_flight -= 1
        self._last_end = now

    def taken(self, allowance: Allowance | None, now: float) -> None:
        """Learn from an answer that is no refusal.

        Args:
            allowance: What its headers say.
            now: Monotonic seconds.
        """
        self._refused_in_a_row = 0
        if allowance is not None:
            self._hear(allowance, now)
            return
        if self._is_over:
            self._pause, self._look_at = _PAUSE, -math.inf
            self._go_on(now if self._over_since is None else self._over_since)
        self._left -= 1
        self._taken += 1
        self._taken_since_refusal += 1
        if self._taken > self._proven:
            self._proven = self._taken
        if self._spacing:
            if self._taken_since_refusal >= self._more_from:
                self._spacing *= _FASTER
                self._more_from += _BEFORE_MORE
        elif self._taken_since_refusal >= (_ENOUGH if self._is_vague else _BEFORE_ALL):
            self._forget()

    def refused(self, after: float | None, now: float) -> None:
        """Learn from a refusal.

        Args:
            after: Seconds after which the service wants to be asked again, if it says so.
            now: Monotonic seconds.
        """
        self._refused_in_a_row += 1
        if after is not None:
            after = min(after, _LONGEST_TOLD)
        if not after and self._refused_in_a_row < _SURE and self._taken < self._proven and not self._is_over:
            return  # it may have been something else: the next one may be taken
        is_news = self._left > 0 or self._is_over
        if is_news and not self._is_over and not self._is_told:
            self._learn(after, now)
        self._taken_since_refusal = 0
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
            self._spacing = min(_SLOWER * self._spacing, after or self._spacing)  # no slower than it asks for
        elif self._taken < min(_ENOUGH, self._limit / 2):
            self._is_vague = True
        elif self._is_vague and after:  # again and again, after a few: it is no window
            self._is_vague = False
            self._spacing = min((now - self._began) / self._taken, after)
        else:
            self._is_vague = False
            self._limit = self._proven = self._taken

    def _go_on(self, start: float) -> None:
        """Begin another window, or go on with one from which too little was learned."""
        self._is_over = False
        if self._is_vague or self._spacing:
            self._limit = self._proven = self._left = math.inf
            return
        length = min(start - self._began, _LONGEST_WINDOW)
        if self._taken_since_refusal >= self._more_from:
            self._limit = self._proven + max(1, self._proven // 2)
            self._more_from = self._taken_since_refusal + max(_BEFORE_MORE, 2 * self._limit)
        self._began, self._taken = start, 0
        self._left = self._limit
        self._ends = start + length

    def _forget(self) -> None:
        self._limit = self._proven = self._left = self._ends = math.inf
        self._is_vague = False
        self._spacing = 0.0

    def _hear(self, allowance: Allowance, now: float) -> None:
        if not self._is_told:
            self._forget()
            self._is_told = True
        self._is_over, self._pause, self._look_at = False, _PAUSE, -math.inf
        ends = now + min(allowance.reset, _LONGEST_TOLD)
        is_same = abs(ends - self._ends) <= _SAME_WINDOW
        self._left = min(self._left, allowance.remaining) if is_same else allowance.remaining
        self._ends = max(ends, self._ends) if is_same else ends
        self._limit = max(allowance.limit or 0, allowance.remaining + 1)
