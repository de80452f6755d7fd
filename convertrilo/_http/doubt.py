"""Whether the service may have carried out a call, although the client has no answer that says so."""

from typing import Any

from convertrilo._clock import Clock
from convertrilo.errors import APIError, ConvertriloError
from convertrilo.idempotency import Identity
from convertrilo.operations import Operation, Repeat


class Doubt:
    """What the client knows about a call: whether it may be done, and whether its key may be forgotten by now."""

    __slots__ = ("_before", "is_forgotten", "last_resend", "may_be_done", "was_sent_before")

    def __init__(self) -> None:
        self.may_be_done: bool = False
        """Whether the service may have carried out the operation in any attempt of this call so far."""
        self.was_sent_before: bool = False
        """Whether the service may have carried out the operation in an earlier call; only a journal knows."""
        self.last_resend: float | None = None
        """Seconds since the epoch after which the service may have forgotten the key; only a journal knows."""
        self.is_forgotten: bool = False
        """Whether the call had to stop because the service may have forgotten the key."""
        self._before = False

    def begin_attempt(self) -> None:
        """Assume that the service carries out the attempt which begins now, until its outcome is known."""
        self._before, self.may_be_done = self.may_be_done, True

    def rule_out_attempt(self) -> None:
        """Note that the service certainly did not carry out the current attempt."""
        self.may_be_done = self._before

    def is_too_late(self, clock: Clock, wait: float = 0.0) -> bool:
        """Return whether an attempt could do the work twice: the work may be done, and the key forgotten by then.

        Args:
            clock: Tells the wall-clock time, because a monotonic clock may stand still while a machine sleeps.
            wait: Seconds until the attempt.
        """
        if self.last_resend is None or not (self.may_be_done or self.was_sent_before):
            return False
        self.is_forgotten = clock.time() + wait > self.last_resend
        return self.is_forgotten

    def note_on(self, error: ConvertriloError, operation: Operation[Any], identity: Identity | None) -> None:
        """Add a note to a call's error if the service may have carried out the call."""
        if not self.may_be_done:
            return
        if isinstance(error, APIError):
            error.in_doubt = True
        if identity is not None:
            again = f"Calling again is safe under the same key: idempotency_key={identity.key!r}."
            error.add_note(f"The service may still have carried out the operation. {again}")
        elif operation.repeat is not Repeat.SAFE:
            error.add_note(f"The service may still have carried out the operation. {operation.find_out}".rstrip())
