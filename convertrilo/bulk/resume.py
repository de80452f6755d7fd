"""Resuming batches: what to do with jobs that the journal already holds in a batch.

Such a job gets the outcome of its batch. If the batch has no answer yet, this run waits for the run that is sending it,
or takes the batch over and sends it again, unchanged.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs

from convertrilo._clock import Clock
from convertrilo.bulk.batches import (
    Batch,
    BatchSettings,
    Item,
    fill_in_credentials,
    items_of_body,
    refreeze,
)
from convertrilo.bulk.input import conflict
from convertrilo.bulk.outcomes import RETRIED_IN_NEXT_RUN, outcome_of
from convertrilo.bulk.results import Results
from convertrilo.errors import ConvertriloError, OutcomeUnknownError
from convertrilo.idempotency import Identity
from convertrilo.operations import CREATE_JOBS_BULK

if TYPE_CHECKING:
    from convertrilo.bulk.ledger import AnsweredBatch, KnownBatch, Ledger
    from convertrilo.journal.batches import Membership

_LOOK_AGAIN = 0.1
"""Seconds between two reads of a batch that another run is sending."""

_Members = Sequence[tuple[Item, "Membership"]]
"""Jobs of the input, each with its membership in one batch of the journal."""

_Send = Callable[[Batch], Awaitable[object]]
"""Sends a batch that this run owns, and adds the results of its jobs."""


@attrs.define(eq=False)
class _ResumedBatch:
    """A batch of an earlier run that this run has taken over and will send again."""

    known: "KnownBatch"
    items: list[Item]
    missing: set[int]
    """The positions of the jobs whose credentials are not known yet: the input has them, the journal does not."""

    def is_complete(self) -> bool:
        """Fill in missing credentials from other jobs of the batch; return whether the batch is complete then."""
        fill_in_credentials(self.items, self.missing)
        return not self.missing


class Resumer:
    """Finds the outcomes of jobs that are in batches already.

    The sender of the run owns the resumer and passes itself to each call as `send`: a reference back to the sender
    would keep the results of an abandoned run in memory until the garbage collector finds the cycle.

    Args:
        ledger: The journal's batches.
        settings: The settings of the run.
        results: Collects the results of the jobs.
        clock: Tells the time and sleeps.
        patience: Seconds to wait for another run to send a batch.
    """

    def __init__(
        self,
        ledger: "Ledger",
        settings: BatchSettings,
        results: Results,
        *,
        clock: Clock,
        patience: float,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._results = results
        self._clock = clock
        self._patience = patience
        self._resumed: dict[int, _ResumedBatch] = {}
        """Batches that are not sent yet, because this run has not read all of their jobs from the input."""

    def next_resumed(self, send: _Send) -> Callable[[], Awaitable[object]] | None:
        """Return a function that sends a resumed batch; None if there is none. Called at the end of the input."""
        if not self._resumed:
            return None
        _, resumed = self._resumed.popitem()
        return partial(self._send_again, resumed, send)

    async def look_up(
        self, items: Sequence[Item], memberships: "Mapping[bytes, Membership]", send: _Send
    ) -> list[Item]:
        """Add results for the jobs that are in batches already; return the jobs that must be sent.

        Args:
            items: The jobs.
            memberships: The journal's batch of each job, by the job's identity.
            send: Sends a batch that this run takes over, and adds the results of its jobs.
        """
        rest: list[Item] = []
        by_batch: dict[int, list[tuple[Item, Membership]]] = {}
        for item in items:
            membership = memberships.get(item.identity)
            if membership is None:
                rest.append(item)
            elif membership.is_free:
                rest.append(_moved(item, membership.batch, membership.round))
            else:
                by_batch.setdefault(membership.batch, []).append((item, membership))
        for number, members in by_batch.items():
            rest += await self._look_up_in_batch(number, members, send)
        return rest

    async def _look_up_in_batch(self, number: int, members: _Members, send: _Send) -> list[Item]:
        """Add results for the jobs of one batch: wait for its answer, or send it again if no other run does."""
        until = self._clock.monotonic() + self._patience
        while True:
            if number in self._ledger.in_flight:
                self._join(self._ledger.in_flight[number].items, members)
                return []
            if number in self._resumed:
                await self._add_to_resumed(number, members, send)
                return []
            if (answered := self._ledger.cached_outcomes(number)) is not None:
                return self._settle(number, answered, members)
            known = await self._ledger.read(number)
            if known is None:
                return [_moved(item, number, membership.round) for item, membership in members]
            if known.entry.state == "answered":
                self._ledger.cache_outcomes(known)
            elif known.entry.state == "unknown":
                self._add_errors(members, self._ledger.unknown(known))
                return []
            elif self._ledger.is_busy(known.row) and self._clock.monotonic() < until:
                ready = next((each for each, resumed in self._resumed.items() if resumed.is_complete()), None)
                if ready is not None:  # the run that owns the other batch may be waiting for this one
                    await self._send_again(self._resumed.pop(ready), send)
                else:
                    await self._clock.sleep(_LOOK_AGAIN)
            else:
                try:
                    is_ours = await self._ledger.take_over(known)
                except OutcomeUnknownError as error:
                    self._add_errors(members, error)
                    return []
                if is_ours:
                    items = items_of_body(known.entry.body, self._settings)
                    self._resumed[number] = _ResumedBatch(known, items, known.row.needs_credentials)

    def _add_errors(self, members: _Members, error: ConvertriloError) -> None:
        for item, _ in members:
            self._results.add_error(item, error, error.idempotency_key)

    def _join(self, batch_items: Sequence[Item], members: _Members) -> list[int]:
        """Attach jobs of the input to the same jobs in a batch; return their positions in the batch."""
        joined: list[int] = []
        for item, membership in members:
            member = batch_items[membership.position]
            if member.digest == item.digest:
                member.requests += item.requests
                member.wire = item.wire
                member.body, member.body_without_credentials = item.body, item.body_without_credentials
                joined.append(membership.position)
            else:
                self._results.add_error(item, conflict(), None)
        return joined

    async def _add_to_resumed(self, number: int, members: _Members, send: _Send) -> None:
        """Attach jobs of the input to a resumed batch; send the batch once none of its credentials are missing."""
        resumed = self._resumed[number]
        resumed.missing.difference_update(self._join(resumed.items, members))
        if not resumed.missing:
            del self._resumed[number]
            await self._send_again(resumed, send)

    async def _send_again(self, resumed: _ResumedBatch, send: _Send) -> None:
        """Send a batch again, unchanged."""
        known = resumed.known
        if not resumed.is_complete():
            error = _credentials_missing(known, len(resumed.missing))
            for item in resumed.items:
                self._results.add_error(item, error, known.row.key)
            await self._ledger.release([known.row.number])
            return
        identity = Identity(key=known.row.key, kind="external_id", name=known.entry.name)
        batch = refreeze(resumed.items, known.entry.body, identity, known.row.round)
        batch.number = known.row.number
        batch.first_sent_at = known.entry.first_sent_at.timestamp()
        await send(batch)

    def _settle(self, number: int, answered: "AnsweredBatch", members: _Members) -> list[Item]:
        """Add results for jobs of an answered batch; return the jobs that may be sent again."""
        rest: list[Item] = []
        for item, membership in members:
            outcome = outcome_of(item.external_id, answered.outcomes.get(membership.position))
            is_same = item.digest == membership.digest
            is_refused = outcome is not None and outcome.job_id is None and outcome.error is not None
            if outcome is not None and is_refused and (not is_same or outcome.has_error_of(RETRIED_IN_NEXT_RUN)):
                rest.append(_moved(item, number, answered.round))
            elif is_same:
                self._results.add_outcome(item, outcome, answered.key)
            else:
                self._results.add_error(item, conflict(), None)
        return rest


def _credentials_missing(known: "KnownBatch", count: int) -> OutcomeUnknownError:
    """Return the error of the jobs of a batch that cannot be sent again unchanged."""
    return OutcomeUnknownError(
        f"this job was sent in a batch that got no answer. {count} other jobs of that batch are not in the input, and "
        "their credentials are not in the journal. Nothing was sent.",
        find_out="Run again with those jobs in the input: the batch is sent unchanged. In another batch this job could "
        "be created twice.",
        operation=CREATE_JOBS_BULK.id,
        idempotency_key=known.row.key,
    )


def _moved(item: Item, number: int, round_number: int) -> Item:
    """Prepare a job for a new batch, because an earlier batch did not create it, and return the job."""
    item.round = round_number + 1
    item.replaces = number
    return item
