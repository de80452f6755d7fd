"""Decides whether a failed call may be sent again, and when, from the operation and from how the attempt failed.

This module is pure: the time and random numbers are arguments. tenacity runs the loop in `_http.call`.
"""

import enum
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import attrs

from convertrilo.operations import Repeat


class FailureKind(enum.Enum):
    """What a failed attempt means for the operation."""

    NOT_SENT = "not_sent"
    """No connection could be made: nothing reached the service."""
    REFUSED = "refused"
    """The service rejected the attempt before doing any work: 429, or 503 with Retry-After."""
    UNCLEAR = "unclear"
    """The attempt broke off, or its answer was 408 or 5xx: the operation may have happened."""
    IN_PROGRESS = "in_progress"
    """409 `idempotency_in_progress`: the first request with this key is still running."""
    UNAUTHORIZED = "unauthorized"
    """401 for a bearer token: a fresh token may work."""
    REJECTED = "rejected"
    """Any other error answer: the service has made its decision."""


class Verdict(enum.Enum):
    """What to do after a failed attempt."""

    AGAIN = "again"
    RAISE = "raise"
    OUTCOME_UNKNOWN = "outcome_unknown"


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """When a client retries. Waits have full jitter: a random part of the backoff, which doubles after each attempt."""

    max_attempts: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """Maximum number of attempts, the first one included. 1 means no retries, except after a rejected bearer token."""
    initial_backoff: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))
    """Upper bound of the first wait, in seconds."""
    max_backoff: float = attrs.field(default=20.0, validator=attrs.validators.ge(0))
    """Upper bound of every wait, in seconds, unless the service asks for a longer one."""
    max_retry_after: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    """Longest Retry-After to wait for, in seconds. If the service asks for more, the error is raised at once."""
    deadline: float = attrs.field(default=180.0, validator=attrs.validators.gt(0))
    """Seconds for the whole call, with all attempts and waits. No attempt gets more time than is left."""
    budget: int = attrs.field(default=500, validator=attrs.validators.ge(0))
    """Capacity of the client's retry budget (see `RetryBudget`). 0 switches the budget off."""

    @classmethod
    def none(cls) -> "RetryPolicy":
        """Return the policy that never retries."""
        return cls(max_attempts=1)

    def backoff(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait after a failed attempt when the service does not say how long.

        Args:
            attempt: The number of the failed attempt, from 1.
            random: Returns a number from 0 to 1.
        """
        exponent = min(attempt - 1, 62)
        return random() * min(self.max_backoff, self.initial_backoff * 2.0**exponent)


class RetryBudget:
    """A token bucket that all calls of a client share, so that their retries do not overload a failing service.

    The budget starts full, with 500 tokens by default. A retry costs 5 tokens. If its call then succeeds, the cost of
    one retry is put back. A call that succeeds at the first attempt adds 1. With fewer than 5 tokens left, errors are
    raised at once. So a client can retry 100 failures in a row, and afterwards keeps retrying while no more than about
    one call in six fails. A wait that the service asked for is free. (The numbers are those of the AWS SDKs' standard
    mode. gRPC's retry throttling works in the same way.)
    """

    COST = 5
    REWARD = 1

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._left = capacity

    @property
    def left(self) -> int:
        """How many tokens are left."""
        return self._left

    def spend(self) -> bool:
        """Take the cost of one retry; return False, and take nothing, if too little is left."""
        if not self._capacity:
            return True
        if self._left < self.COST:
            return False
        self._left -= self.COST
        return True

    def give_back(self) -> None:
        """Put back the cost of one retry: its call succeeded, or the retry was not made."""
        self._left = min(self._capacity, self._left + self.COST)

    def reward(self) -> None:
        """Add the reward for a call that succeeded at its first attempt."""
        self._left = min(self._capacity, self._left + self.REWARD)


def may_repeat(repeat: Repeat, kind: FailureKind) -> Verdict:
    """Return what the contract allows after a failed attempt."""
    if kind in (FailureKind.NOT_SENT, FailureKind.REFUSED, FailureKind.UNAUTHORIZED):
        return Verdict.AGAIN
    if kind is FailureKind.UNCLEAR:
        return Verdict.OUTCOME_UNKNOWN if repeat is Repeat.ONCE else Verdict.AGAIN
    if kind is FailureKind.IN_PROGRESS:
        return Verdict.RAISE if repeat is Repeat.ONCE else Verdict.AGAIN
    return Verdict.RAISE


def kind_of_answer(status: int, code: str, *, told_to_wait: bool, has_token: bool) -> FailureKind:
    """Return what an error answer means for the operation.

    Args:
        status: The HTTP status.
        code: The contract's error code.
        told_to_wait: Whether the answer says how long to wait.
        has_token: Whether the request carried a bearer token that can be refreshed.
    """
    if status == 429 or (status == 503 and told_to_wait):
        return FailureKind.REFUSED
    if status == 408 or status >= 500:  # proxies have statuses of their own, such as 520 to 524
        return FailureKind.UNCLEAR
    if status == 409 and code == "idempotency_in_progress":
        return FailureKind.IN_PROGRESS
    if status == 401 and has_token:
        return FailureKind.UNAUTHORIZED
    return FailureKind.REJECTED


def retry_after(status: int, headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the service asks to wait, or `None` if it does not say.

    `Retry-After`, in seconds or as a date, comes first. For a 429 without it, the rate-limit headers count. Values that
    cannot be read are ignored. A time in the past is 0.

    Args:
        status: The HTTP status.
        headers: The headers of the answer, looked up case-insensitively.
        now: The time, in seconds since the epoch.
    """
    if (header := headers.get("retry-after")) is not None:
        seconds = _number(header)
        seconds = _seconds_until(header, now) if seconds is None else seconds
        if seconds is not None:
            return seconds
    if status != 429:
        return None
    for name in ("ratelimit-reset", "x-ratelimit-reset"):
        if (seconds := _number(headers.get(name, ""))) is not None:
            return _from_reset(seconds, now)
    return _in_structured(headers.get("ratelimit", ""), ("reset", "t"))


_SECONDS = re.compile(r"[0-9]{1,15}(\.[0-9]*)?")


def _number(text: str) -> float | None:
    return float(text) if _SECONDS.fullmatch(text.strip()) else None


def _seconds_until(text: str, now: float) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None


_EPOCH_FROM = 1e9  # no service asks to wait for 30 years
_EPOCH_MS_FROM = 1e12


def _from_reset(value: float, now: float) -> float:
    """Return the seconds until a reset, given as seconds from now or as an epoch in seconds or milliseconds."""
    if value < _EPOCH_FROM:
        return value
    return max(0.0, (value / 1000 if value >= _EPOCH_MS_FROM else value) - now)


def _in_structured(text: str, names: tuple[str, ...]) -> float | None:
    """Read a number from `RateLimit: limit=100, remaining=0, reset=12` or `RateLimit: "default";r=0;t=12`."""
    for part in text.replace(";", ",").split(","):
        name, _, value = part.strip().partition("=")
        if name in names and (seconds := _number(value)) is not None:
            return seconds
    return None


@attrs.frozen
class Allowance:
    """What rate-limit headers say: the requests left in the window, and the seconds until the window resets."""

    remaining: int
    reset: float
    limit: int | None = None


def allowance(headers: Mapping[str, str], now: float) -> Allowance | None:
    """Return what the rate-limit headers of an answer say, or `None` if a remainder or a reset is missing.

    Args:
        headers: The headers of the answer, looked up case-insensitively.
        now: The time, in seconds since the epoch.
    """
    for prefix in ("ratelimit-", "x-ratelimit-"):
        remaining, reset = (_number(headers.get(f"{prefix}{name}", "")) for name in ("remaining", "reset"))
        if remaining is not None and reset is not None:
            limit = _number(headers.get(f"{prefix}limit", "").partition(",")[0])
            return Allowance(int(remaining), _from_reset(reset, now), None if limit is None else int(limit))
    text = headers.get("ratelimit", "")
    remaining, reset = _in_structured(text, ("remaining", "r")), _in_structured(text, ("reset", "t"))
    if remaining is None or reset is None:
        return None
    limit = _in_structured(text, ("limit",))
    return Allowance(int(remaining), reset, None if limit is None else int(limit))
