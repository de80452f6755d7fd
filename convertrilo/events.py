"""Events for observers of a client: one for every attempt, a listener that logs them, and hooks around whole calls."""

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
"""The outcome of an attempt. `retry.FailureKind` describes the failures. `undecodable` is a `DecodeError`, and
`interrupted` means that the attempt was cancelled, or that a file or a custom transport raised an error that is not
httpx's."""

logger: logging.Logger = logging.getLogger("convertrilo")
logger.addHandler(logging.NullHandler())  # quiet until the application configures logging


@attrs.frozen(kw_only=True)
class AttemptEvent:
    """One attempt of one call, and its outcome. An event never holds a body, a URL or a credential."""

    operation: str
    """The contract's operation id; `upload`, `download` or `listObjectsV2` for requests to storage."""
    attempt: int
    """Number of the attempt, from 1."""
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
    """The idempotency key that was sent, for keyed operations."""
    request_id: str | None = None
    """The service's id of this request, if it sent one."""


Listener = Callable[[AttemptEvent], object]


def log_attempts(event: AttemptEvent) -> None:
    """Log an attempt under the logger `convertrilo`: success as DEBUG, a retry as INFO, a final failure as WARNING.

    Use it as a listener: `AsyncClient(on_event=log_attempts)`. The log record has the event's fields as attributes, for
    formatters that write JSON.
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
    """Pass an event to a listener; log what the listener raises, and do not raise it."""
    if listener is None:
        return
    try:
        listener(event)
    except Exception:
        logger.exception("the on_event listener failed; the request goes on")


# ---- whole calls, for tracing and metrics


@attrs.frozen(kw_only=True)
class Beginning:
    """What is known about a call when it begins."""

    operation: str
    """As in `AttemptEvent`."""
    method: str
    path: str | None = None
    """The contract's path, with the names of its parameters; `None` for requests to storage."""
    url: str | None = None
    """The URL of the request, without its query; `None` for storage, where a presigned URL is a credential."""
    idempotency_key: str | None = None
    identity: str | None = None
    """Where the key comes from, as in `journal.Entry`."""
    items: int | None = None
    """Number of jobs, for a bulk request."""


class Observation(AbstractContextManager["Observation"], Protocol):
    """Watches one call: entered before the first attempt, and left with the error of the call, if there is one."""

    def begin_attempt(self, number: int) -> Mapping[str, str]:
        """Note that an attempt is about to begin, and return headers to send with it."""
        ...

    def end_attempt(self, event: AttemptEvent) -> None:
        """Note the outcome of an attempt."""
        ...


class Observer(Protocol):
    """Watches the calls of a client from beginning to end. An observer must neither raise nor block."""

    def watch(self, beginning: Beginning) -> Observation:
        """Return the observation of a call that begins."""
        ...

    def journaled(self, step: str, seconds: float) -> None:
        """Note how many seconds the journal took for a step: `begin`, `answer` or `forget`."""
        ...
