"""What can be watched: one frozen event for every attempt, the listener that logs them, and calls as a whole."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

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
`interrupted`: it was cancelled, or a file or a caller's own transport raised something that is no httpx error."""

logger: logging.Logger = logging.getLogger("convertrilo")
logger.addHandler(logging.NullHandler())  # quiet until the application configures logging


@attrs.frozen(kw_only=True)
class AttemptEvent:
    """One attempt of one call: what was tried and what came of it. Never a body, a URL or a credential."""

    operation: str
    """The contract's operation id; or `upload`, `download` or `listObjectsV2`, for what storage is asked."""
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

    A listener for `AsyncClient(on_event=log_attempts)`. The record has the event's fields as attributes, for formatters
    that write JSON.
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
        extra=attrs.asdict(event),
    )


def notify(listener: Listener | None, event: AttemptEvent) -> None:
    """Hand an event to a listener; whatever it raises is logged and goes no further."""
    if listener is None:
        return
    try:
        listener(event)
    except Exception:
        logger.exception("the on_event listener failed; the request goes on")


# ---- calls as a whole, for what measures them


@attrs.frozen(kw_only=True)
class Beginning:
    """What is known of a call when it begins."""

    operation: str
    """As in `AttemptEvent`."""
    method: str
    path: str | None = None
    """The contract's path, with the names of its parameters; `None` for what storage is asked."""
    url: str | None = None
    """Where the service is asked, without the query; `None` for storage, whose URLs are permissions."""
    idempotency_key: str | None = None
    identity: str | None = None
    """What the key stands for, as in `journal.Entry`."""
    items: int | None = None
    """How many jobs a bulk request has."""


class Observation(AbstractContextManager["Observation"], Protocol):
    """One call that is watched; it is entered before the first attempt, and left with what the call raises."""

    def begin_attempt(self, number: int) -> Mapping[str, str]:
        """Hear that an attempt is about to be made, and return headers that shall go with it."""
        ...

    def end_attempt(self, event: AttemptEvent) -> None:
        """Hear what came of it."""
        ...


class Observer(Protocol):
    """What sees the calls of a client from their beginning to their end; it must neither raise nor block."""

    def watch(self, beginning: Beginning) -> Observation:
        """Return what watches a call."""
        ...

    def journaled(self, step: str, seconds: float) -> None:
        """Hear how long the journal took to `begin`, `answer` or `forget`."""
        ...
