"""The journal's part in submitting jobs: which batch is whose, and what came of it."""

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
from convertrilo.bulk.batches import Batch, Outcome, read_outcomes
from convertrilo.errors import OutcomeUnknownError
from convertrilo.journal import batches as _claims
from convertrilo.journal.batches import Place, Row
from convertrilo.journal.journal import (
    Entry,
    Journal,
    Window,
    check_sender,
    check_service,
    claim_operation,
    find_operation,
    last_of_other_senders,
    unknown_outcome,
)

OPERATION = "createJobsBulk"

_FREED = "The batch stays pending, which is harmless: its key still makes one job of each of its members."

_running: set[str] = set()
"""The runs of this process that are under way."""


@attrs.frozen
class Known:
    """A batch that is in the journal, and what came of it."""

    row: Row
    entry: Entry


class Answered(NamedTuple):
    """What came of a batch."""

    key: str
    round: int
    outcomes: dict[int, Outcome]


class Ledger:
    """The batches of one run in the journal.

    Args:
        journal: The journal, which is open.
        service: What the journal calls the service.
        sender: Tells one API key from another, as in `Journal.begin`.
        keep: How many answered batches to keep in memory.
    """

    def __init__(self, journal: Journal, *, service: str, sender: str, keep: int) -> None:
        self.journal = journal
        self.owner = f"{os.getpid()}.{uuid.uuid4().hex}"
        self._service = service
        self._sender = sender
        self._keep = keep
        self._answered: OrderedDict[int, Answered] = OrderedDict()

    @contextlib.contextmanager
    def under_way(self) -> Generator[None]:
        """Let the other runs of this process see that this one is working."""
        _running.add(self.owner)
        try:
            yield
        finally:
            _running.discard(self.owner)

    def is_busy(self, row: Row) -> bool:
        """Whether somebody may be sending a batch."""
        return row.owner is not None and is_alive(row.owner)

    def unknown(self, known: Known) -> OutcomeUnknownError:
        """Make the error of a batch that was not answered in the replay window."""
        return unknown_outcome(known.entry)

    async def claim(self, batch: Batch) -> dict[bytes, Place] | bytes | None:
        """Write a batch down as this run's; where some of its members are in others, return those, and write nothing.

        Returns:
            Where the members are that are in other batches; or the answer, if it was sent as an operation of its own
            and answered; or `None`, if it is to be sent.

        Raises:
            OutcomeUnknownError: It was sent as an operation of its own, and it is not known what became of it.
            JournalError: The journal cannot be used, or is another service's. Nothing was sent.
        """
        work = partial(self._claim, batch=batch, window=self.journal.open_window())
        try:
            return await self.journal.do(work, "Nothing was sent.")
        except anyio.get_cancelled_exc_class():
            if batch.number is not None and not batch.was_sent_before:
                await self.free(batch)
            raise

    def _claim(
        self, connection: sqlite3.Connection, *, batch: Batch, window: Window
    ) -> dict[bytes, Place] | bytes | None:
        check_service(connection, self._service)
        members = [item for item in batch.items if item.identity]
        replaced = {item.identity: item.replaces for item in members}
        places = _claims.find(connection, list(replaced))
        taken = {identity: place for identity, place in places.items() if place.batch != replaced[identity]}
        if taken:
            return taken
        identity = batch.identity
        entry = claim_operation(
            connection,
            operation=OPERATION,
            key=identity.key,
            body=batch.bare,
            identity=identity.kind,
            name=identity.name,
            window=window,
            service=self._service,
            sender=self._sender,
        )
        batch.number = _claims.add(
            connection,
            key=identity.key,
            round_number=batch.round,
            lacking=batch.lacking,
            owner=self.owner,
            members=[(item.identity, item.digest) for item in members],
        )
        batch.first_sent_at = entry.first_sent_at.timestamp()
        batch.was_sent_before = not entry.fresh
        return entry.answer

    async def read(self, number: int) -> Known | None:
        """Return a batch, or None if it is no longer there."""
        return await self.journal.do(partial(_read, number=number, window=self.journal.open_window()))

    def outcomes(self, number: int) -> Answered | None:
        """Return what came of an answered batch, if that is in memory."""
        found = self._answered.get(number)
        if found is not None:
            self._answered.move_to_end(number)
        return found

    def read_answer(self, known: Known) -> None:
        """Bring the outcomes of an answered batch into memory.

        Raises:
            DecodeError: The answer is not what the contract says.
        """
        assert known.entry.answer is not None
        outcomes = read_outcomes(known.entry.answer)
        self._answered[known.row.number] = Answered(known.row.key, known.row.round, outcomes)
        if len(self._answered) > self._keep:
            self._answered.popitem(last=False)

    async def answer(self, batch: Batch, answer: bytes) -> None:
        """Write down what the service said of a batch."""
        with only_logged(OPERATION):
            await self.journal.answer(batch.identity.key, answer)

    async def take_over(self, known: Known) -> bool:
        """Become the one who sends a batch; return False if somebody else was quicker.

        Raises:
            OutcomeUnknownError: It was sent with another API key.
        """

        def work(connection: sqlite3.Connection) -> bool:
            check_sender(connection, known.entry, self._sender)
            return _claims.take_over(connection, known.row.number, old=known.row.owner, new=self.owner)

        return await self.journal.do(work, "Nothing was sent.")

    async def let_go(self, batches: Iterable[int]) -> None:
        """Send these batches no more: somebody else may."""
        numbers = list(batches)

        def work(connection: sqlite3.Connection) -> None:
            for number in numbers:
                _claims.take_over(connection, number, old=self.owner, new=None)

        with anyio.CancelScope(shield=True), only_logged(OPERATION):
            await self.journal.do(work, _FREED)

    async def let_go_all(self) -> None:
        """Send nothing more: somebody else may."""
        with anyio.CancelScope(shield=True), only_logged(OPERATION):
            await self.journal.do(partial(_claims.let_go_all, owner=self.owner), _FREED)

    async def free(self, batch: Batch) -> None:
        """Forget that a batch was sent, because nothing came of it: its members may go into others."""
        with anyio.CancelScope(shield=True), only_logged(OPERATION):
            await self.journal.do(partial(_claims.free, key=batch.identity.key, owner=self.owner), _FREED)


def _read(connection: sqlite3.Connection, *, number: int, window: Window) -> Known | None:
    row = _claims.row_of(connection, number)
    entry = None if row is None else find_operation(connection, key=row.key, window=window)
    return None if row is None or entry is None else Known(row, entry)


def is_alive(owner: str) -> bool:
    """Whether the run that sends a batch may still be under way.

    It need not be right: two that send the same batch send it under the same key.
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
        pass  # it is another user's
    return True


async def last_sent_by_another_key(client: BaseClient, journal: Journal) -> datetime | None:
    """Return when an operation was last sent for the first time with another API key than the client's, or None.

    Args:
        client: Names the service and the API key.
        journal: The journal, which is open.

    Raises:
        JournalError: The journal cannot be used, or belongs to another service. Nothing was sent.
    """
    engine, _ = engine_of(client)
    work = partial(last_of_other_senders, service=engine.service, sender=engine.credentials.sender)
    return await journal.do(work, "Nothing was sent.")
