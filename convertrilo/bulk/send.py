"""Sending batches: freeze, claim, send, halve what the service rejects, and turn its answers into results."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs

from convertrilo._halving import TOO_MUCH, each_half
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo._http.tries import Tries
from convertrilo.bulk.batches import Batch, BatchSettings, Item, SizeLimits, freeze
from convertrilo.bulk.outcomes import TRANSIENT, JobOutcome, outcome_of, read_outcomes
from convertrilo.bulk.results import Results
from convertrilo.bulk.resume import Resumer
from convertrilo.errors import APIError, DecodeError, IdempotencyConflictError, OutcomeUnknownError
from convertrilo.operations import CREATE_JOBS_BULK

if TYPE_CHECKING:
    from convertrilo.bulk.ledger import Ledger

SendBatch = Callable[[str, bytes, float | None], Awaitable[bytes]]
"""Sends a frozen batch and returns the answer. Its arguments are the idempotency key, the body, and the time after
which the batch must not be sent (seconds since the epoch)."""

_CREATE_JOBS_BULK = attrs.evolve(CREATE_JOBS_BULK, returns=None)
"""The operation without its model: `read_outcomes` reads the answers."""

_TOO_MANY_BYTES = 413

_MOST_TRIES = 4
"""The maximum number of times that one run sends a job which the service refuses for transient reasons."""


class BatchSender:
    """Sends the batches of one run and adds a result for each of their jobs.

    Args:
        engine: The client's engine.
        options: The client's options.
        settings: The settings of the run.
        results: Collects the results of the jobs.
        ledger: The journal's batches, if there is a journal.
        send_batch: Sends a batch instead of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        options: Options,
        settings: BatchSettings,
        results: Results,
        ledger: "Ledger | None",
        send_batch: SendBatch | None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._settings = settings
        self._results = results
        self._ledger = ledger
        self._send_batch = send_batch
        self._limits = engine.shared(SizeLimits) or engine.share(SizeLimits())
        self._was_accepted = False
        """Whether the service has accepted any batch."""
        self._refused_alone = 0
        """How many batches of a single job the service has rejected."""
        self.resumer: Resumer | None = None
        if ledger is not None:
            self.resumer = Resumer(ledger, settings, results, clock=engine.clock, patience=options.retry.deadline)

    async def submit(
        self, items: Sequence[Item], tries: int = 1, *, requeue: Callable[[Iterable[Item]], None] | None = None
    ) -> bool:
        """Freeze a batch, claim it in the journal and send it; return whether the service accepted all of it.

        Args:
            items: The jobs of the batch.
            tries: How many times these jobs are sent in this run, this time included.
            requeue: If the journal already has some jobs of the batch, takes back the other jobs. By default, the other
                jobs are sent as a batch of their own.
        """
        if self._limits.too_large(items):
            return await each_half(items, partial(self.submit, tries=tries))
        batch = freeze(items, self._settings)
        if self._ledger is not None:
            for item in items:
                if item.external_id and not item.identity:
                    item.identify(self._settings)
            try:
                claimed = await self._engine.timed("begin", self._ledger.claim(batch))
            except (IdempotencyConflictError, OutcomeUnknownError) as error:
                self._results.add_error_for_all(batch, error)
                return True
            if isinstance(claimed, dict):
                assert self.resumer is not None
                rest = await self.resumer.look_up(items, claimed, self.send)
                if requeue is not None:
                    requeue(rest)
                    return True
                return not rest or await self.submit(rest, tries)
            if claimed is not None:
                return await self._take_outcomes(batch, read_outcomes(claimed), tries)
        return await self.send(batch, tries)

    async def send(self, batch: Batch, tries: int = 1) -> bool:
        """Send a claimed batch, in halves if it is rejected; return whether the service accepted all of it."""
        try:
            outcomes = await self._call(batch)
        except (IdempotencyConflictError, OutcomeUnknownError) as error:
            self._results.add_error_for_all(batch, error)
            return True
        except APIError as error:
            if error.status not in TOO_MUCH:
                raise
            if not _is_surely_refused(batch, error):
                self._results.add_error_for_all(batch, _unknown_outcome(batch, error))
                return False
            return await self._send_halves(batch, error, tries)
        return await self._take_outcomes(batch, outcomes, tries)

    async def _call(self, batch: Batch) -> dict[int, JobOutcome]:
        """Make the call of a batch, and record in the journal how it ends."""
        wire = {"jobs": [item.wire for item in batch.items]}
        engine, ledger, call = self._engine, self._ledger, None
        if ledger is not None:
            assert batch.number is not None
            ledger.in_flight[batch.number] = batch
        try:
            while wait := engine.limiter.wait(engine.clock.monotonic()):
                await engine.clock.sleep(wait)  # before the call, so that the wait does not use up the call's deadline
            call = engine.frozen_call(
                _CREATE_JOBS_BULK, self._options, wire=wire, content=batch.body, identity=batch.identity
            )
            if ledger is not None:
                assert batch.first_sent_at is not None
                call.doubt.last_resend = batch.first_sent_at + ledger.journal.replay_window
                call.doubt.was_sent_before = batch.was_sent_before
            if self._send_batch is not None:
                answer = await self._send_batch(batch.identity.key, batch.body, call.doubt.last_resend)
            else:
                with engine.watching(call, wire, batch.identity):
                    _, answer, _ = await call.run()
            try:
                outcomes = read_outcomes(answer)
            except DecodeError as error:
                raise call.not_understood(error, answer) from None
        except BaseException as error:
            # An API error of `send_batch` says whether the batch is in doubt; after any other error it always is.
            in_doubt_remotely = self._send_batch is not None and getattr(error, "in_doubt", True)
            batch.is_in_doubt = batch.was_sent_before or (
                call is not None and (call.doubt.may_be_done or in_doubt_remotely)
            )
            if ledger is not None:
                await _record_failure(ledger, batch, error)
            raise
        self._was_accepted = True
        if ledger is not None:
            await engine.timed("answer", ledger.answer(batch, answer))
        return outcomes

    async def _take_outcomes(self, batch: Batch, outcomes: Mapping[int, JobOutcome], tries: int) -> bool:
        """Turn outcomes into results; send jobs that were refused for transient reasons again, in a new batch."""
        policy = self._options.retry
        tried = Tries(self._engine, policy, most=min(_MOST_TRIES, policy.max_attempts), made=tries)
        again: list[Item] = []
        are_left, key = tried.are_left, batch.identity.key
        for position, item in enumerate(batch.items):
            outcome = outcome_of(item.external_id, outcomes.get(position))
            if are_left and item.requests and outcome is not None and outcome.has_error_of(TRANSIENT):
                again.append(item)
            else:
                self._results.add_outcome(item, outcome, key)
        if self._ledger is not None and batch.number is not None:
            self._ledger.in_flight.pop(batch.number, None)
        if again:
            for item in again:
                item.round = batch.round + 1
                item.replaces = batch.number
            await tried.wait()
            await self.submit(again, tried.begin())
        return True

    async def _send_halves(self, batch: Batch, error: APIError, tries: int) -> bool:
        """Send each half on its own, to learn whether the service rejects the batch's size or one of its jobs."""
        items = [item for item in batch.items if item.requests]
        if error.status == _TOO_MANY_BYTES and len(batch.items) > 1:
            self._limits.bytes = min(self._limits.bytes, len(batch.body))
        if len(batch.items) == 1:
            self._refused_alone += 1
            if self._refused_alone > 1 and not self._was_accepted:
                raise error  # the service rejects everything: the jobs are not the reason
            self._results.add_error_for_all(batch, error)
            return False
        for item in items:
            item.replaces = batch.number
        is_accepted = await each_half(items, partial(self.submit, tries=tries))
        if is_accepted and error.status != _TOO_MANY_BYTES:
            self._limits.jobs = min(self._limits.jobs, len(batch.items))
        return is_accepted


async def _record_failure(ledger: "Ledger", batch: Batch, error: BaseException) -> None:
    """Leave a batch without an answer pending in the journal, or delete it if it surely had no effect."""
    assert batch.number is not None
    ledger.in_flight.pop(batch.number, None)
    is_known = isinstance(error, IdempotencyConflictError)  # under another key its jobs would be created twice
    had_no_effect = not is_known and (not batch.is_in_doubt or _is_surely_refused(batch, error))
    await (ledger.discard(batch) if had_no_effect else ledger.release([batch.number]))


def _is_surely_refused(batch: Batch, error: BaseException) -> bool:
    """Whether the service rejects the batch itself, so that no attempt can have had an effect.

    If an attempt may have had an effect, only the service's own error is proof, because the service knows the keys of
    the batches that it processed. A gateway's 400 says nothing about the batch. A gateway's 413 says nothing about an
    earlier attempt, which may have taken another route.
    """
    if not isinstance(error, APIError) or error.status not in TOO_MUCH:
        return False
    return not batch.is_in_doubt or error.code != f"http_{error.status}"


def _unknown_outcome(batch: Batch, error: APIError) -> OutcomeUnknownError:
    """Return the error of a batch that may have been processed, and that a gateway now rejects."""
    unknown = OutcomeUnknownError(
        "an earlier attempt may have been processed, and the last one was rejected before it reached the service: "
        f"{error.message.rstrip('.')}.",
        find_out="In another batch its jobs could be created twice. Run again with the same journal: the batch is sent "
        "unchanged.",
    )
    unknown.__cause__ = error
    return unknown.with_call(operation=CREATE_JOBS_BULK.id, idempotency_key=batch.identity.key, attempts=error.attempts)
