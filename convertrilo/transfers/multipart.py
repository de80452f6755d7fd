"""A file in parts: several at a time, each tried again on its own; with a journal, only what has not arrived yet."""

import hashlib
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs
import httpx

from convertrilo import operations as rows
from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.context import Options
from convertrilo._http.engine import only_logged
from convertrilo._tasks import together
from convertrilo.errors import (
    ConflictError,
    ConvertriloError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    TransferError,
    ValidationError,
)
from convertrilo.journal.uploads import MARK, SentPart, SentParts
from convertrilo.models import StreamFinalizeRequest, StreamPart
from convertrilo.transfers.source import Content

if TYPE_CHECKING:
    from convertrilo.journal import Journal

MOST_PARTS = 10_000
"""As the contract says (`uploadChunk`)."""

_SLOWEST = 32 * 1024
"""Bytes a second that a part is given time for."""

_SECONDS_TO_ABORT = 10.0

_REFUSALS = (InvalidRequestError, NotFoundError, ConflictError, GoneError, ValidationError)
"""Errors that the same upload, taken up again, would meet again."""


async def send_parts(
    client: BaseClient,
    job_id: str,
    content: Content,
    *,
    part_size: int,
    concurrency: int,
    tell: Callable[[int], object],
) -> None:
    """Upload a job's file in parts.

    If that fails, or is cancelled, the upload is given up; with a journal only if the service refuses it, because the
    next call can go on with what has arrived.

    Args:
        client: Whose settings are used.
        job_id: The job.
        content: Its file.
        part_size: Bytes of a part; more where the file would have too many parts.
        concurrency: How many parts are in memory, and under way, at once.
        tell: Called with the bytes that have arrived.
    """
    if content.size is not None:
        part_size = max(part_size, math.ceil(content.size / MOST_PARTS))
    record = await _Record.of(client, job_id)
    is_asked = False
    try:
        if await _open(client, job_id, content, part_size, record):
            await content.begin()
            etags = await _send_all(client, job_id, _Parts(content, part_size), concurrency, record, tell)
            await record.mark()
            is_asked = True
            await _finalize(client, job_id, etags)
        await record.forget()
    except OutcomeUnknownError:
        raise  # it may be whole, so it must not be given up
    except BaseException as error:
        is_refused = isinstance(error, _REFUSALS)
        if is_refused or not record.has_parts:
            with anyio.move_on_after(_SECONDS_TO_ABORT, shield=True):
                if is_refused or not is_asked or not await _may_be_there(client, job_id):
                    await _abort(client, job_id)
                await record.forget()
        raise


@attrs.define
class _Record:
    """What has arrived of an upload, as the journal knows it; without a journal, nothing.

    A part that has arrived is recognised by its bytes: where the file has changed, its new parts are sent, so that old
    ones are never mixed with them.
    """

    job_id: str
    sent: SentParts
    has_parts: bool
    """Whether another call could go on with anything."""
    _journal: "Journal | None"

    @classmethod
    async def of(cls, client: BaseClient, job_id: str) -> "_Record":
        engine, _ = engine_of(client)
        await engine.open_journal()
        journal = engine.journal
        sent = SentParts() if journal is None else await journal.sent_parts(job_id, service=engine.service)
        return cls(job_id, sent, bool(sent.parts), journal)

    async def begin(self, upload: str | None) -> None:
        """Begin with an upload of which nothing has arrived; one without a name cannot be taken up again."""
        await self.forget()
        self.sent = SentParts(upload)

    async def digest(self, data: bytes) -> bytes:
        return b"" if self._journal is None else await anyio.to_thread.run_sync(_digest, data)

    async def add(self, number: int, digest: bytes, etag: str | None) -> None:
        """Note that a part has arrived."""
        if self._journal is not None and self.sent.upload is not None and etag is not None:
            with only_logged("uploadChunk"):
                await self._journal.add_part(self.job_id, self.sent.upload, number, SentPart(digest, etag))
                self.has_parts = True

    async def mark(self) -> None:
        """Note that the service is about to be asked to put the parts together."""
        await self.add(MARK, b"", "")

    async def forget(self) -> None:
        if self._journal is not None:
            self.has_parts = False
            with only_logged("finalizeStream"):
                await self._journal.forget_parts(self.job_id)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _open(client: BaseClient, job_id: str, content: Content, part_size: int, record: _Record) -> bool:
    """Open the upload, or find it open still; return whether there is anything to send."""
    upload: str | None = None
    refusal: ConvertriloError | None = None
    try:
        upload = (await client.init_stream(job_id)).upload_id
    except (InvalidRequestError, ConflictError) as error:
        refusal = error
    if upload is not None and upload == record.sent.upload:
        return True
    if await _is_together(client, job_id, content, part_size, record.sent):
        if refusal is None:
            await _abort(client, job_id)
        return False
    if refusal is not None:
        raise refusal
    await record.begin(upload)
    return True


async def _is_together(client: BaseClient, job_id: str, content: Content, part_size: int, sent: SentParts) -> bool:
    """Whether an earlier call had these very parts put together, and did not live to hear so."""
    if not sent.is_marked or not content.is_rewindable or not await _is_there(client, job_id):
        return False
    await content.begin()
    parts, digests = _Parts(content, part_size), dict[int, bytes]()
    while (part := await parts.next()) is not None:
        digests[part[0]] = await anyio.to_thread.run_sync(_digest, part[1])
    return digests == {number: each.digest for number, each in sent.parts.items()}


class _Parts:
    """The parts of a file, in their order."""

    def __init__(self, content: Content, size: int) -> None:
        self.size = size
        self._content = content
        self._number = 0
        self._rest = b""
        self._reading = anyio.Lock()

    async def next(self) -> tuple[int, bytes] | None:
        """Return the next part and its number; `None` if there is none."""
        async with self._reading:
            data = await self._read()
            if not data and self._number:
                return None
            if self._number == MOST_PARTS:
                raise TransferError(
                    f"{self._content.name} has more than {MOST_PARTS} parts of {self.size} bytes; "
                    "say its size, or let the parts be bigger"
                )
            self._number += 1
            return self._number, data

    async def _read(self) -> bytes:
        first, gathered, size = b"", io.BytesIO(), 0
        while size < self.size:
            room = self.size - size
            piece = self._rest or await self._content.next(room)
            if piece is None:
                break
            piece, self._rest = piece[:room], piece[room:]
            if size == 0:
                first = piece  # which is mostly all of it
            else:
                gathered.write(first)  # not joined at the end: all would be in memory twice
                gathered.write(piece)
                first = b""
            size += len(piece)
        return first or gathered.getvalue()


async def _send_all(
    client: BaseClient,
    job_id: str,
    parts: _Parts,
    concurrency: int,
    record: _Record,
    tell: Callable[[int], object],
) -> dict[int, str | None]:
    engine, options = engine_of(client)
    options = _patient(options, parts.size)
    etags: dict[int, str | None] = {}
    done = 0

    async def send() -> None:
        nonlocal done
        while (part := await parts.next()) is not None:
            number, data = part
            digest = await record.digest(data)
            known = record.sent.parts.get(number)
            if known is not None and known.digest == digest:
                etags[number] = known.etag
            else:
                path: dict[str, str | int] = {"id": job_id, "index": number}
                _, headers = await engine.call(rows.UPLOAD_CHUNK, options, path=path, body=data)
                etags[number] = headers.get("etag")
                await record.add(number, digest, headers.get("etag"))
            done += len(data)
            del part, data  # or it would be kept while the next one is read
            tell(done)

    tell(0)
    await together([send] * concurrency)
    return etags


def _patient(options: Options, part_size: int) -> Options:
    """Return options with time enough for a part on a slow connection."""
    seconds = part_size / _SLOWEST
    given = options.timeout
    write = None if given.write is None else max(given.write, seconds)
    timeout = httpx.Timeout(connect=given.connect, read=given.read, write=write, pool=given.pool)
    retry = attrs.evolve(options.retry, deadline=options.retry.deadline + 2 * seconds)
    return attrs.evolve(options, timeout=timeout, retry=retry)


async def _finalize(client: BaseClient, job_id: str, etags: dict[int, str | None]) -> None:
    """Put the parts together. When no answer comes, ask again: what was done is refused then, and the file is there.

    A probe alone does not tell that it was done: the file may be that of an earlier upload.
    """
    engine, options = engine_of(client)
    body = None
    if None not in etags.values():
        parts = [StreamPart(part_number=number, etag=etag) for number, etag in sorted(etags.items())]
        body = StreamFinalizeRequest(parts=parts)
    attempt = 0
    while True:
        attempt += 1
        try:
            return await client.finalize_stream(job_id, body)
        except OutcomeUnknownError:
            if attempt >= max(options.retry.max_attempts, 2):  # without asking twice nobody would know
                raise
        except (InvalidRequestError, NotFoundError, ConflictError, GoneError):
            if attempt == 1 or not await _is_there(client, job_id):
                raise
            return None
        await engine.clock.sleep(options.retry.backoff(attempt, engine.random))


async def has_file(client: BaseClient, job_id: str, *, unreadable: bool) -> bool:
    """Whether the service has a job's file: it can only probe what is there.

    Args:
        client: Whose settings are used.
        job_id: The job.
        unreadable: What to say of a file that is there, and that the service finds no video in (`probe_failed`).
    """
    try:
        await client.probe_duration(job_id)
    except (InvalidRequestError, NotFoundError, ConflictError, GoneError) as error:
        return unreadable and error.code == "probe_failed"
    return True


async def _is_there(client: BaseClient, job_id: str) -> bool:
    return await has_file(client, job_id, unreadable=True)  # its parts are together, whatever they make


async def _may_be_there(client: BaseClient, job_id: str) -> bool:
    try:
        return await _is_there(client, job_id)
    except ConvertriloError:
        return True


async def _abort(client: BaseClient, job_id: str) -> None:
    try:
        await client.abort_stream(job_id)
    except ConvertriloError:
        return  # what made us give up is the error to raise
