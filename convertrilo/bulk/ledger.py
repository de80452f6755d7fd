"""The journal of a bulk submission: which run sends which batch, and what the service answered."""

import contextlib
import os
import sqlite3
import uuid
from collections import OrderedDict
from collections.abc import Generator, Iterable
from datetime import datetime
from functools import partial
from typing import NamedTuple

import anyio
import attrs

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.engine import only_logged
from convertrilo.bulk.batches import Batch
from convertrilo.bulk.outcomes import JobOutcome, read_outcomes
from convertrilo.errors import OutcomeUnknownError
from convertrilo.journal import batches as batch_rows
from convertrilo.journal.batches import BatchRow, Membership
from convertrilo.journal.entries import (
    NOTHING_SENT,
    Entry,
    Window,
    check_sender,
    check_service,
    claim_operation,
    find_operation,
    last_of_other_senders,
    unknown_outcome,
)
from convertrilo.journal.journal import Journal
from convertrilo.operations import CREATE_JOBS_BULK

_STAYS_PENDING = "The batch stays pending, which is harmless: its key still creates each of its jobs once."

_running: set[str] = set()
"""The owners of the runs of this process that are working now."""


@attrs.frozen
class KnownBatch:
    """A batch that the journal holds, and its operation."""

    row: BatchRow
    entry: Entry


class AnsweredBatch(NamedTuple):
    """The outcomes of an answered batch."""

    key: str
    round: int
    outcomes: dict[int, JobOutcome]


class Ledger:
    """The batches of one run in the journal.

    Args:
        journal: The journal, which is open.
        service: The journal's name for the service.
        sender: Identifies the API key, as in `Journal.begin`.
        keep: How many answered batches to keep in memory.
    """

    def __init__(self, journal: Journal, *, service: str, sender: str, keep: int) -> None:
        self.journal = journal
        self.owner: str = f"{os.getpid()}.{uuid.uuid4().hex}"
        """The run, as the journal names it."""
        self.in_flight: dict[int, Batch] = {}
        """The batches that this run is sending, by their numbers."""
        self._service = service
        self._sender = sender
        self._keep = keep
        self._answered: OrderedDict[int, AnsweredBatch] = OrderedDict()

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Mark this run as working, so that the other runs of this process wait for its batches."""
        _running.add(self.owner)
        try:
            yield
        finally:
            _running.discard(self.owner)

    def is_busy(self, row: BatchRow) -> bool:
        """Whether a run that may still be working owns a batch."""
        return row.owner is not None and is_alive(row.owner)

    def unknown(self, known: KnownBatch) -> OutcomeUnknownError:
        """Return the error of a batch that got no answer within the replay window."""
        return unknown_outcome(known.entry)

    async def claim(self, batch: Batch) -> dict[bytes, Membership] | bytes | None:
        """Record a batch as this run's, unless some of its jobs are in other batches.

        Returns:
            If some jobs are in other batches, their memberships; nothing is recorded then. If the batch was already
            sent as an operation of its own and answered, the answer. None if the batch must be sent.

        Raises:
            OutcomeUnknownError: The batch was sent as an operation of its own, and its outcome is unknown.
            JournalError: The journal cannot be used or belongs to another service. Nothing was sent.
        """
        work = partial(self._claim, batch=batch, window=self.journal.open_window())
        try:
            return await self.journal.do(work, NOTHING_SENT)
        except anyio.get_cancelled_exc_class():
            if batch.number is not None and not batch.was_sent_before:
                await self.discard(batch)
            raise

    def _claim(
        self, connection: sqlite3.Connection, *, batch: Batch, window: Window
    ) -> dict[bytes, Membership] | bytes | None:
        check_service(connection, self._service)
        members = [item for item in batch.items if item.identity]
        replaced = {item.identity: item.replaces for item in members}
        memberships = batch_rows.find(connection, list(replaced))
        taken = {
            identity: membership
            for identity, membership in memberships.items()
            if membership.batch != replaced[identity]
        }
        if taken:
            return taken
        identity = batch.identity
        entry = claim_operation(
            connection,
            operation=CREATE_JOBS_BULK.id,
            key=identity.key,
            body=batch.body_without_credentials,
            identity=identity.kind,
            name=identity.name,
            window=window,
            service=self._service,
            sender=self._sender,
        )
        batch.number = batch_rows.add(
            connection,
            key=identity.key,
            round_number=batch.round,
            needs_credentials=batch.needs_credentials,
            owner=self.owner,
            members=[(item.identity, item.digest) for item in members],
        )
        batch.first_sent_at = entry.first_sent_at.timestamp()
        batch.was_sent_before = not entry.fresh
        return entry.answer

    async def read(self, number: int) -> KnownBatch | None:
        """Return a batch, or None if the journal no longer holds it."""
        return await self.journal.do(partial(_read, number=number, window=self.journal.open_window()))

    def cached_outcomes(self, number: int) -> AnsweredBatch | None:
        """Return the outcomes of an answered batch, or None if they are not in memory."""
        found = self._answered.get(number)
        if found is not None:
            self._answered.move_to_end(number)
        return found

    def cache_outcomes(self, known: KnownBatch) -> None:
        """Read the outcomes of an answered batch into memory.

        Raises:
            DecodeError: The answer does not follow the contract.
        """
        assert known.entry.answer is not None
        outcomes = read_outcomes(known.entry.answer)
        self._answered[known.row.number] = AnsweredBatch(known.row.key, known.row.round, outcomes)
        if len(self._answered) > self._keep:
            self._answered.popitem(last=False)

    async def answer(self, batch: Batch, answer: bytes) -> None:
        """Record the service's answer to a batch."""
        with only_logged(CREATE_JOBS_BULK.id):
            await self.journal.answer(batch.identity.key, answer)

    async def take_over(self, known: KnownBatch) -> bool:
        """Become the owner of a batch; return False if another run was faster.

        Raises:
            OutcomeUnknownError: The batch was sent with another API key.
        """

        def work(connection: sqlite3.Connection) -> bool:
            check_sender(connection, known.entry, self._sender)
            return batch_rows.take_over(connection, known.row.number, old=known.row.owner, new=self.owner)

        return await self.journal.do(work, NOTHING_SENT)

    async def release(self, batches: Iterable[int]) -> None:
        """Give up the ownership of these batches, so that any run may send them."""
        numbers = list(batches)

        def work(connection: sqlite3.Connection) -> None:
            for number in numbers:
                batch_rows.take_over(connection, number, old=self.owner, new=None)

        with anyio.CancelScope(shield=True), only_logged(CREATE_JOBS_BULK.id):
            await self.journal.do(work, _STAYS_PENDING)

    async def release_all(self) -> None:
        """Give up the ownership of all batches that got no answer."""
        with anyio.CancelScope(shield=True), only_logged(CREATE_JOBS_BULK.id):
            await self.journal.do(partial(batch_rows.release_all, owner=self.owner), _STAYS_PENDING)

    async def discard(self, batch: Batch) -> None:
        """Delete a batch that the service did not process, so that its jobs may go into other batches."""
        with anyio.CancelScope(shield=True), only_logged(CREATE_JOBS_BULK.id):
            await self.journal.do(partial(batch_rows.discard, key=batch.identity.key, owner=self.owner), _STAYS_PENDING)


def _read(connection: sqlite3.Connection, *, number: int, window: Window) -> KnownBatch | None:
    row = batch_rows.row_of(connection, number)
    entry = None if row is None else find_operation(connection, key=row.key, window=window)
    return None if row is None or entry is None else KnownBatch(row, entry)


def is_alive(owner: str) -> bool:
    """Whether the run that owns a batch may still be working.

    A wrong answer does no harm: two runs that send the same batch send it under the same key.
    """
    pid = int(owner.partition(".")[0])
    if pid == os.getpid():
        return owner in _running
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # the process belongs to another user
    return True


async def last_sent_by_another_key(client: BaseClient, journal: Journal) -> datetime | None:
    """Return the time of the journal's latest first attempt that was made with another API key, or None.

    Args:
        client: The client whose service and API key are compared with the journal's.
        journal: The journal, which is open.

    Raises:
        JournalError: The journal cannot be used or belongs to another service. Nothing was sent.
    """
    engine, _ = engine_of(client)
    work = partial(last_of_other_senders, service=engine.service, sender=engine.credentials.sender)
    return await journal.do(work, NOTHING_SENT)
