"""The durable record of keyed operations: each is recorded before it is sent, and its answer afterwards.

A `Journal` is one SQLite file. Every change is on disk (`synchronous=FULL`) before the method returns, so that it
survives a crash of the process or the machine. Many tasks and several processes can use one file at once.
"""

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.lowlevel

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._store.sqlite import Request, SharedFile, reason
from convertrilo.errors import ConfigurationError, ConvertriloError, JournalError
from convertrilo.journal import batches, entries, folders, uploads
from convertrilo.journal.entries import NOTHING_SENT, Entry, State, Window
from convertrilo.journal.uploads import SentPart, SentParts

_T = TypeVar("_T")

_APPLICATION_ID = 0x43565254
"""Marks a SQLite file as a journal ("CVRT"), so that another program's database is not mistaken for one."""

_MIGRATIONS = ((*entries.TABLES, uploads.TABLE, *folders.TABLES, *batches.TABLES),)
"""The statements that lead from each version of the schema to the next."""

_MAX_CLOCK_SKEW = 300.0
"""Seconds by which the clock may have been ahead at the first attempt, at most the length of the replay window. With a
larger difference, the journal cannot trust the replay window."""

_NOT_RECORDED = (
    "The service's answer is not recorded: the operation stays pending, and within the replay window the same call "
    "gets the same answer again, under the same key."
)
_STAYS_PENDING = "The operation stays pending, which is harmless: under its key the service creates no second job."
_PARTS_SENT_AGAIN = "Parts that the journal does not know are sent again, which is harmless."


class Journal:
    """A durable record of the operations of one or many processes, in one SQLite file.

    Enter the journal (`async with`) before use. A client and its caller may both enter it; the last one to leave closes
    the file. A journal serves one event loop at a time. Open it after a fork, not before.

    The file is created with mode 0600. It never holds the credentials of a request. Answers are stored as they were
    received, and may hold temporary permissions such as an upload URL: protect the file accordingly.

    A write that has started is finished even if its task is cancelled. The cancellation waits for the commit, which
    takes milliseconds, or up to 10 s if another process keeps the file locked.

    Entering raises `JournalError` if the file cannot be opened: the directory does not exist, there is no permission or
    no space, or the file is damaged, not a journal, or written by a newer version. The journal never changes a file
    that is neither empty nor a journal.

    Args:
        path: The file, on a local disk. It is created if it does not exist.
        replay_window: Seconds after the first attempt in which an unanswered operation may be sent again. It must not
            be longer than the service remembers an idempotency key.
        clock: Tells the time.

    Raises:
        ConfigurationError: `replay_window` is negative or not a number.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, replay_window: float = 86400.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if not replay_window >= 0:
            raise ConfigurationError(f"replay_window must be a number of seconds of at least 0, not {replay_window}")
        self._store = SharedFile(path, application_id=_APPLICATION_ID, migrations=_MIGRATIONS)
        self.replay_window = replay_window
        """Seconds after the first attempt in which an unanswered operation may be sent again."""
        self._clock = clock

    async def __aenter__(self) -> Self:
        try:
            await self._store.enter()
        except Exception as error:
            raise self._error(error, NOTHING_SENT) from error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._store.leave()

    async def begin(
        self, *, service: str, sender: str = "", operation: str, key: str, body: bytes, identity: str, name: str | None
    ) -> Entry:
        """Record an operation before it is sent, and return its entry.

        The entry is on disk when the method returns. If it is `fresh` or `pending`, the caller may send the operation
        under its key. If it is `answered`, the entry holds the answer. A cancelled call leaves the journal unchanged.

        Args:
            service: The service that the operation is sent to. A journal belongs to the first service it is used with.
            sender: Identifies the API key, without containing it: the service may keep idempotency keys per API key.
            operation: The contract's operation id.
            key: The idempotency key.
            body: The canonical body, without credentials.
            identity: Where the key comes from: `key`, `operation`, `external_id` or `call`; see `Entry`.
            name: The name of the logical operation, if it has one.

        Raises:
            IdempotencyConflictError: The journal holds this key for another operation or body. Nothing was sent.
            OutcomeUnknownError: The operation was sent earlier but never answered, and the replay window is over or the
                API key has changed. Nothing was sent.
            JournalError: The journal cannot be written, or belongs to another service. Nothing was sent.
        """
        claim = partial(
            entries.claim_operation,
            operation=operation,
            key=key,
            body=body,
            identity=identity,
            name=name,
            window=self.open_window(),
            service=service,
            sender=sender,
        )
        request = Request(claim)
        try:
            entry = await self._ask(request, NOTHING_SENT, operation=operation, key=key)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except anyio.get_cancelled_exc_class():
            if request.results:
                with contextlib.suppress(JournalError):
                    await self.forget(key)
            raise
        return entry

    async def answer(self, key: str, answer: bytes) -> None:
        """Record the answer to an operation, unless the journal has an answer already or the entry was dropped.

        Args:
            key: The idempotency key.
            answer: The answer's body as it was received.

        Raises:
            JournalError: The journal cannot be written; the operation stays pending.
        """
        work = partial(entries.record_answer, key=key, answer=answer, now=self._clock.time())
        await self._ask(Request(work), _NOT_RECORDED, key=key)

    async def forget(self, key: str) -> None:
        """Take back one `begin` whose request provably did nothing: the request was rejected, or never sent.

        The journal removes an unanswered entry once every `begin` of it was taken back. So a task cannot remove the
        entry of an operation that another task has sent, or that a crashed process may have sent.

        Args:
            key: The idempotency key.

        Raises:
            JournalError: The journal cannot be written; the operation stays pending.
        """
        await self._ask(Request(partial(entries.forget_operation, key=key)), _STAYS_PENDING, key=key)

    async def get(self, key: str) -> Entry | None:
        """Return the entry with a key, or None.

        Raises:
            JournalError: The journal cannot be read.
        """
        work = partial(entries.find_operation, key=key, window=self.open_window())
        return await self._ask(Request(work), key=key)

    def pending(self) -> AsyncIterator[Entry]:
        """Iterate over the unanswered operations that may be sent again, the oldest first."""
        return self._listed("pending")

    def answered(self) -> AsyncIterator[Entry]:
        """Iterate over the answered operations, the oldest first."""
        return self._listed("answered")

    def unknown(self) -> AsyncIterator[Entry]:
        """Iterate over the operations that got no answer within the replay window, the oldest first.

        Nobody knows whether the service carried them out, so each needs a decision.
        """
        return self._listed("unknown")

    async def drop(self, key: str) -> bool:
        """Remove an entry in any state, so that the next call with this key is a new operation for the journal.

        Args:
            key: The idempotency key.

        Returns:
            Whether there was an entry.

        Raises:
            JournalError: The journal cannot be written.
        """
        return await self._ask(Request(partial(entries.drop_operation, key=key)), key=key)

    async def sent_parts(self, job_id: str, *, service: str) -> SentParts:
        """Return the uploaded parts of a job's unfinished multipart upload.

        Args:
            job_id: The job.
            service: The service, as in `begin`.

        Raises:
            JournalError: The journal cannot be used, or belongs to another service. Nothing was sent.
        """

        def find(connection: sqlite3.Connection) -> SentParts:
            entries.check_service(connection, service)
            return uploads.find(connection, job=job_id)

        return await self._ask(Request(find), NOTHING_SENT)

    async def add_part(self, job_id: str, upload: str, number: int, part: SentPart) -> None:
        """Record an uploaded part.

        Args:
            job_id: The job.
            upload: The service's id of the upload (`uploadId`). The parts of another upload of the job are removed.
            number: The part's number, from 1.
            part: Its digest and ETag.

        Raises:
            JournalError: The journal cannot be written.
        """
        work = partial(uploads.add, job=job_id, upload=upload, number=number, part=part)
        await self._ask(Request(work), _PARTS_SENT_AGAIN)

    async def forget_parts(self, job_id: str) -> None:
        """Remove the uploaded parts of a job: its next upload starts from the beginning.

        Args:
            job_id: The job.

        Raises:
            JournalError: The journal cannot be written.
        """
        await self._ask(Request(partial(uploads.forget, job=job_id)))

    def open_window(self) -> Window:
        """Return the replay window that ends now."""
        now = self._clock.time()
        return Window(now, now - self.replay_window, now + min(_MAX_CLOCK_SKEW, self.replay_window))

    async def _listed(self, state: State) -> AsyncIterator[Entry]:
        window, after = self.open_window(), 0
        while page := await self.do(partial(entries.page_of_entries, state=state, after=after, window=window)):
            for _, entry in page:
                yield entry
            after = page[-1][0]

    async def do(self, work: Callable[[sqlite3.Connection], _T], consequence: str = "") -> _T:
        """Run a function in a transaction, and return its result when the transaction is on disk.

        Args:
            work: The function; it gets the connection.
            consequence: A sentence for the error message that says what a failure means for the caller.

        Raises:
            JournalError: The journal cannot be used.
        """
        return await self._ask(Request(work), consequence)

    async def _ask(
        self, request: "Request[_T]", consequence: str = "", *, operation: str | None = None, key: str | None = None
    ) -> _T:
        """Run a request in a transaction; a failure of the file becomes a JournalError that names the consequence."""
        try:
            return await self._store.do(request)
        except ConvertriloError:
            raise
        except Exception as error:
            raise self._error(error, consequence, operation, key) from error

    def _error(
        self, error: Exception, consequence: str, operation: str | None = None, key: str | None = None
    ) -> JournalError:
        message = f"the journal {self._store.path} cannot be used: {reason(error)}. {consequence}"
        return JournalError(message.rstrip(), operation=operation, idempotency_key=key)
