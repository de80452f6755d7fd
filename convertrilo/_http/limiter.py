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


class _Window:
    """The current window: when it began, how many requests it has taken, how many are left, and until when."""

    __slots__ = ("accepted", "began", "ends", "left")

    def __init__(self) -> None:
        self.began = 0.0
        self.accepted = 0
        """Requests that the service accepted in this window; answers with rate-limit headers are not counted."""
        self.left = math.inf
        """Requests that the service will still accept, as far as its answers tell."""
        self.ends = math.inf
        """When the window ends; infinity if nothing tells."""


class _Probe:
    """Whether a single request is to find out that the window is over, and when to send the request."""

    __slots__ = ("at", "is_on", "pause", "window_ended")

    def __init__(self) -> None:
        self.is_on = False
        """Whether the window should be over, and no request was accepted since."""
        self.window_ended: float | None = None
        """When the window should have ended; `None` if no answer said so."""
        self.pause = _PAUSE
        self.at = -math.inf
        """When to send the next probe, after a refusal without a Retry-After."""

    def begin(self, window_ended: float | None) -> None:
        """Begin to probe."""
        self.is_on, self.window_ended = True, window_ended

    def refused(self, now: float) -> None:
        """Wait before the next probe, each time twice as long."""
        self.at = now + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)

    def accepted(self) -> None:
        """Forget the refused probes."""
        self.pause, self.at = _PAUSE, -math.inf


class _Spacing:
    """The time between two requests of a service without windows (a token bucket)."""

    __slots__ = ("next_at", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 if the service has windows, or no limit."""
        self.next_at = -math.inf

    def begin_request(self, now: float) -> None:
        """Reserve the time until the next request."""
        self.next_at = max(self.next_at, now) + self.seconds if self.seconds else now


class RateLimiter:
    """Delays the client's requests that the service would refuse; at first, it delays no request."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._last_end = -math.inf
        self._window = _Window()
        self._has_headers = False  # the service sends rate-limit headers
        # What the limiter has learned from refusals:
        self._limit = math.inf
        self._proven = math.inf  # requests that were accepted in one window before
        self._probe = _Probe()
        self._spacing = _Spacing()
        self._is_vague = False  # there was a refusal after too few accepted requests to learn from
        self._accepted_since_refusal = 0
        self._refused_in_a_row = 0
        self._more_from = math.inf  # accepted requests since the refusal, from which on to try one request more

    def wait(self, now: float) -> float:
        """Return 0 if a request may be sent now, or else the seconds after which to ask again.

        Args:
            now: Monotonic seconds.
        """
        window, probe = self._window, self._probe
        if now >= window.ends:
            self._end_window()
        if probe.is_on and now < probe.at:
            return max(probe.at - now, _LEAST_WAIT)
        if window.left > self._in_flight or probe.is_on:
            if now < self._spacing.next_at:
                return max(self._spacing.next_at - now, _LEAST_WAIT)
            # A single request is enough to find out whether the window is over, or allows more.
            alone = probe.is_on or self._is_vague or window.accepted + self._in_flight >= self._proven
            return _LOOK_AGAIN if alone and self._in_flight else 0.0
        if window.ends < math.inf:
            return max(window.ends - now, _LEAST_WAIT)
        return _LOOK_AGAIN if self._in_flight else 0.0

    def begin(self, now: float) -> float:
        """Count a request that begins now and return 0, or return the seconds after which to ask again."""
        wait = self.wait(now)
        if not wait:
            if self._limit == math.inf and not self._in_flight and now - self._last_end > _IDLE:
                self._window.began, self._window.accepted = now, 0
            self._in_flight += 1
            self._spacing.begin_request(now)
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
        window, probe, spacing = self._window, self._probe, self._spacing
        if probe.is_on:
            probe.accepted()
            self._begin_window(now if probe.window_ended is None else probe.window_ended)
        window.left -= 1
        window.accepted += 1
        self._accepted_since_refusal += 1
        if window.accepted > self._proven:
            self._proven = window.accepted
        if spacing.seconds:
            if self._accepted_since_refusal >= self._more_from:
                spacing.seconds *= _FASTER
                self._more_from += _BEFORE_MORE
        elif self._accepted_since_refusal >= (_ENOUGH if self._is_vague else _BEFORE_ALL):
            self._forget()

    def refused(self, after: float | None, now: float) -> None:
        """Learn from a refusal.

        Args:
            after: Seconds that the service asks the client to wait, if it asks for a wait.
            now: Monotonic seconds.
        """
        window, probe = self._window, self._probe
        self._refused_in_a_row += 1
        if after is not None:
            after = min(after, _LONGEST_RETRY_AFTER)
        if not after and self._refused_in_a_row < _SURE and window.accepted < self._proven and not probe.is_on:
            return  # the refusal may have another reason: the next request may be accepted
        is_news = window.left > 0 or probe.is_on
        if is_news and not probe.is_on and not self._has_headers:
            self._learn(after, now)
        self._accepted_since_refusal = 0
        self._more_from = _BEFORE_MORE if self._spacing.seconds else max(_BEFORE_MORE, 2 * self._limit)
        window.left = 0
        if after is not None:
            window.ends = now + after if is_news or window.ends == math.inf else max(window.ends, now + after)
            probe.is_on = False
        elif window.ends == math.inf:
            if probe.is_on:
                probe.refused(now)
            probe.begin(None)

    def _learn(self, after: float | None, now: float) -> None:
        """Learn the limit, or the spacing, from a refusal that ended a run of accepted requests."""
        window, spacing = self._window, self._spacing
        if spacing.seconds:  # no slower than the service asks for
            spacing.seconds = min(_SLOWER * spacing.seconds, after or spacing.seconds)
        elif window.accepted < min(_ENOUGH, self._limit / 2):
            self._is_vague = True
        elif self._is_vague and after:  # repeated refusals after few requests: the service has no windows
            self._is_vague = False
            spacing.seconds = min((now - window.began) / window.accepted, after)
        else:
            self._is_vague = False
            self._limit = self._proven = window.accepted

    def _end_window(self) -> None:
        """End the window at its time. Headers say what follows; otherwise a probe has to find out."""
        ended, self._window.ends, self._window.left = self._window.ends, math.inf, self._limit
        if self._has_headers:
            self._probe.is_on = False
        else:
            self._probe.begin(ended)

    def _begin_window(self, start: float) -> None:
        """Begin another window, unless too little is known about windows."""
        window = self._window
        self._probe.is_on = False
        if self._is_vague or self._spacing.seconds:
            self._limit = self._proven = window.left = math.inf
            return
        length = min(start - window.began, _LONGEST_WINDOW)
        if self._accepted_since_refusal >= self._more_from:
            self._limit = self._proven + max(1, self._proven // 2)
            self._more_from = self._accepted_since_refusal + max(_BEFORE_MORE, 2 * self._limit)
        window.began, window.accepted = start, 0
        window.left = self._limit
        window.ends = start + length

    def _forget(self) -> None:
        """Forget what refusals have taught."""
        self._limit = self._proven = self._window.left = self._window.ends = math.inf
        self._is_vague = False
        self._spacing.seconds = 0.0

    def _obey(self, allowance: Allowance, now: float) -> None:
        """Keep to the numbers in an answer's rate-limit headers."""
        window = self._window
        if not self._has_headers:
            self._forget()
            self._has_headers = True
        self._probe.is_on = False
        self._probe.accepted()
        ends = now + min(allowance.reset, _LONGEST_RETRY_AFTER)
        is_same = abs(ends - window.ends) <= _SAME_WINDOW
        window.left = min(window.left, allowance.remaining) if is_same else allowance.remaining
        window.ends = max(ends, window.ends) if is_same else ends
        self._limit = max(allowance.limit or 0, allowance.remaining + 1)
