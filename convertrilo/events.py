"""What can be watched: one frozen event for every attempt, and the listener that logs them."""

import logging
from collections.abc import Callable
from typing import Literal

import attrs

Outcome = Literal[
    "ok",
    "not_sent",
    "refused",
    "unclear",
    "in_progress",
    "unauthorized",
    "rejected",
    "undecodable",
    "interrupted",
]
"""What became of an attempt; `retry.FailureKind` says what each failure means, and `undecodable` is a `DecodeError`.
`interrupted`: it was cancelled, or a caller's own transport raised something that is no httpx error."""

logger = logging.getLogger("convertrilo")


@attrs.frozen(kw_only=True)
class AttemptEvent:
    """One attempt of one call: what was tried and what came of it. Never a body, a URL or a credential."""

    operation: str
    """The contract's operation id; or `upload` or `download`, for what goes to and from storage."""
    attempt: int
    """1 for the first."""
    outcome: Outcome
    status: int | None = None
    """The HTTP status, if there was an answer."""
    code: str | None = None
    """The contract's error code, if the answer had one."""
    wait: float | None = None
    """Seconds until the next attempt; `None` if there is none."""
    elapsed: float
    """Seconds since the call began."""
    idempotency_key: str | None = None
    request_id: str | None = None


Listener = Callable[[AttemptEvent], object]


def log_attempts(event: AttemptEvent) -> None:
    """Log an attempt under the logger `convertrilo`: success as DEBUG, a retry as INFO, a final failure as WARNING.

    A listener for `AsyncClient(on_event=log_attempts)`.
    """
    level = logging.DEBUG if event.outcome == "ok" else logging.INFO if event.wait is not None else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    answer = " ".join(str(part) for part in (event.status, event.code) if part is not None)
    logger.log(
        level,
        "%s attempt %d: %s%s after %.3f s%s%s",
        event.operation,
        event.attempt,
        event.outcome,
        f" ({answer})" if answer else "",
        event.elapsed,
        "" if event.wait is None else f", again in {event.wait:.3f} s",
        "" if event.idempotency_key is None else f", key {event.idempotency_key}",
    )


def notify(listener: Listener | None, event: AttemptEvent) -> None:
    """Hand an event to a listener; whatever it raises is logged and goes no further."""
    if listener is None:
        return
    try:
        listener(event)
    except Exception:
        logger.exception("the on_event listener failed; the request goes on")
