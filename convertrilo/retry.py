"""May it be sent again, and when: decided here, from what an operation is and how an attempt failed.

Pure: no sockets, no clock and no random numbers but as arguments. The client asks; tenacity runs the loop.
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
    """No connection could be had: nothing reached the service."""
    REFUSED = "refused"
    """The service turned it away before any work: 429, or 503 with Retry-After."""
    UNCLEAR = "unclear"
    """It broke under way (or 408, or 5xx): it may have happened."""
    IN_PROGRESS = "in_progress"
    """409 `idempotency_in_progress`: the first request with this key still runs."""
    UNAUTHORIZED = "unauthorized"
    """401 for a bearer token: another token may do."""
    REJECTED = "rejected"
    """Any other error answer: the service has decided."""


class Verdict(enum.Enum):
    """What to do after a failed attempt."""

    AGAIN = "again"
    RAISE = "raise"
    OUTCOME_UNKNOWN = "outcome_unknown"


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How persistent a client is. Waits are drawn with full jitter: from 0 to the backoff, which doubles each time."""

    max_attempts: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    """How often a request is tried in all; 1 means never again, but for a rejected bearer token."""
    initial_backoff: float = attrs.field(default=0.5, validator=attrs.validators.ge(0))
    """Seconds that the first wait is at most."""
    max_backoff: float = attrs.field(default=20.0, validator=attrs.validators.ge(0))
    """Seconds that any wait is at most, unless the service asks for more."""
    max_retry_after: float = attrs.field(default=60.0, validator=attrs.validators.ge(0))
    """Seconds of Retry-After that are waited for; when the service asks for more, the error is raised at once."""
    deadline: float = attrs.field(default=180.0, validator=attrs.validators.gt(0))
    """Seconds for the whole call, all its attempts and waits together; no attempt gets more than is left."""
    budget: int = attrs.field(default=500, validator=attrs.validators.ge(0))
    """Capacity of the client's retry budget (see `RetryBudget`); 0 switches it off."""

    @classmethod
    def none(cls) -> "RetryPolicy":
        """Return the policy that never tries again."""
        return cls(max_attempts=1)

    def backoff(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds to wait after an attempt (1 is the first) when the service does not say how long.

        Args:
            attempt: Which attempt has just failed.
            random: Returns a number from 0 to 1.
        """
        exponent = min(attempt - 1, 62)
        return random() * min(self.max_backoff, self.initial_backoff * 2.0**exponent)


class RetryBudget:
    """A token bucket shared by all calls of a client, so that a failing service is not hammered.

    It starts full at 500. A retry costs 5; if its call succeeds after all, one such cost is paid back; a call that
    succeeds at the first attempt pays 1. With less than 5 left, errors are raised at once. So a client rides out 100
    failures in a row, and afterwards retries as long as no more than about one call in six goes on failing. A wait that
    the service itself asked for is free. (The numbers are those of the AWS SDKs' standard mode; gRPC's throttling is
    alike.)
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
        """Take the cost of one retry; return False, and take nothing, if it is not there."""
        if not self._capacity:
            return True
        if self._left < self.COST:
            return False
        self._left -= self.COST
        return True

    def give_back(self) -> None:
        """Return the cost of one retry: its call succeeded, or it was not made after all."""
        self._left = min(self._capacity, self._left + self.COST)

    def reward(self) -> None:
        """Pay for a call that succeeded at its first attempt."""
        self._left = min(self._capacity, self._left + self.REWARD)


def may_repeat(repeat: Repeat, kind: FailureKind) -> Verdict:
    """Return what the contract allows after a failure: the table of the design, row by row."""
    if kind in (FailureKind.NOT_SENT, FailureKind.REFUSED, FailureKind.UNAUTHORIZED):
        return Verdict.AGAIN
    if kind is FailureKind.UNCLEAR:
        return Verdict.OUTCOME_UNKNOWN if repeat is Repeat.ONCE else Verdict.AGAIN
    if kind is FailureKind.IN_PROGRESS:
        return Verdict.RAISE if repeat is Repeat.ONCE else Verdict.AGAIN
    return Verdict.RAISE


def kind_of_answer(status: int, code: str, *, told_to_wait: bool, has_token: bool) -> FailureKind:
    """Return what an error answer means.

    Args:
        status: The HTTP status.
        code: The contract's error code.
        told_to_wait: Whether the answer says when to come again.
        has_token: Whether the request carried a bearer token that can be asked for anew.
    """
    if status == 429 or (status == 503 and told_to_wait):
        return FailureKind.REFUSED
    if status == 408 or status >= 500:  # proxies have numbers of their own, such as 520 to 524
        return FailureKind.UNCLEAR
    if status == 409 and code == "idempotency_in_progress":
        return FailureKind.IN_PROGRESS
    if status == 401 and has_token:
        return FailureKind.UNAUTHORIZED
    return FailureKind.REJECTED


def retry_after(status: int, headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds after which the service wants to be asked again, or `None` if it does not say.

    `Retry-After` in seconds or as a date wins; a 429 without it may tell by its rate-limit headers. What makes no sense
    is ignored, what is past is 0.

    Args:
        status: The HTTP status.
        headers: The answer's headers, looked up without regard to case.
        now: The time, in seconds since the epoch.
    """
    if (told := headers.get("retry-after")) is not None:
        seconds = _number(told)
        seconds = _date_in(told, now) if seconds is None else seconds
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


def _date_in(text: str, now: float) -> float | None:
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None


_EPOCH_FROM = 1e9  # no service asks to wait for 30 years
_EPOCH_MS_FROM = 1e12


def _from_reset(value: float, now: float) -> float:
    """Read a reset that is seconds from now, or an epoch in seconds or milliseconds: all three are in use."""
    if value < _EPOCH_FROM:
        return value
    return max(0.0, (value / 1000 if value >= _EPOCH_MS_FROM else value) - now)


def _in_structured(text: str, names: tuple[str, ...]) -> float | None:
    """Read the drafts' `RateLimit: limit=100, remaining=0, reset=12` and `RateLimit: "default";r=0;t=12`."""
    for part in text.replace(";", ",").split(","):
        name, _, value = part.strip().partition("=")
        if name in names and (seconds := _number(value)) is not None:
            return seconds
    return None


@attrs.frozen
class Allowance:
    """What rate-limit headers say: how many more requests there may be, and in how many seconds there may be more."""

    remaining: int
    reset: float
    limit: int | None = None


def allowance(headers: Mapping[str, str], now: float) -> Allowance | None:
    """Return what an answer's rate-limit headers say, or `None` if they do not say how many are left until when.

    Args:
        headers: The answer's headers, looked up without regard to case.
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
