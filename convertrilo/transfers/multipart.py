"""Multipart uploads: several parts at a time, each retried on its own; with a journal, only the missing parts."""

import hashlib
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs
import httpx

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.context import Options
from convertrilo._http.engine import only_logged
from convertrilo._http.tries import Tries
from convertrilo._tasks import run_all
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
from convertrilo.journal.uploads import FINALIZE_MARK, SentPart, SentParts
from convertrilo.models import StreamFinalizeRequest, StreamPart
from convertrilo.operations import FINALIZE_STREAM, UPLOAD_CHUNK
from convertrilo.transfers.source import Content

if TYPE_CHECKING:
    from convertrilo.journal import Journal

MOST_PARTS = 10_000
"""The contract's limit (`uploadChunk`)."""

_MIN_BYTES_PER_SECOND = 32 * 1024
"""The slowest connection for which the timeout of a part is long enough."""

_SECONDS_TO_ABORT = 10.0

_REFUSALS = (InvalidRequestError, NotFoundError, ConflictError, GoneError, ValidationError)
"""Errors that would occur again if the same upload were resumed."""


async def send_parts(
    client: BaseClient,
    job_id: str,
    content: Content,
    *,
    part_size: int,
    concurrency: int,
    report: Callable[[int], object],
) -> None:
    """Upload a job's file in parts (`initStream`, `uploadChunk`, `finalizeStream`).

    An upload that fails or is cancelled is aborted (`abortStream`). With a journal, it is aborted only if the service
    rejects it; otherwise the next call can resume the upload.

    Args:
        client: The client to send with.
        job_id: The job.
        content: The job's file.
        part_size: The size of a part in bytes; larger if the file would have too many parts.
        concurrency: The maximum number of parts in memory and in flight.
        report: Called with the number of bytes uploaded so far.
    """
    if content.size is not None:
        part_size = max(part_size, math.ceil(content.size / MOST_PARTS))
    record = await _UploadRecord.of(client, job_id)
    finalize_sent = False
    try:
        if await _open(client, job_id, content, part_size, record):
            await content.begin()
            etags = await _send_all(client, job_id, _PartReader(content, part_size), concurrency, record, report)
            await record.mark_finalizing()
            finalize_sent = True
            await _finalize(client, job_id, etags)
        await record.forget()
    except OutcomeUnknownError:
        raise  # the upload may be complete, so it must not be aborted
    except BaseException as error:
        is_refused = isinstance(error, _REFUSALS)
        if is_refused or not record.is_resumable:
            with anyio.move_on_after(_SECONDS_TO_ABORT, shield=True):
                if is_refused or not finalize_sent or not await _may_have_file(client, job_id):
                    await _abort(client, job_id)
                await record.forget()
        raise


@attrs.define
class _UploadRecord:
    """The uploaded parts of one job, as recorded in the journal; always empty without a journal.

    Parts are recognized by their bytes. If the file has changed, its changed parts are sent again, so the upload never
    mixes parts of the old and the new file.
    """

    job_id: str
    uploaded: SentParts
    is_resumable: bool
    """Whether another call could resume the upload."""
    _journal: "Journal | None"

    @classmethod
    async def of(cls, client: BaseClient, job_id: str) -> "_UploadRecord":
        engine, _ = engine_of(client)
        await engine.open_journal()
        journal = engine.journal
        uploaded = SentParts() if journal is None else await journal.sent_parts(job_id, service=engine.service)
        return cls(job_id, uploaded, bool(uploaded.parts), journal)

    async def begin(self, upload_id: str | None) -> None:
        """Start the record of a new upload; an upload without an id cannot be resumed."""
        await self.forget()
        self.uploaded = SentParts(upload_id)

    async def digest(self, data: bytes) -> bytes:
        return b"" if self._journal is None else await anyio.to_thread.run_sync(_digest, data)

    async def add(self, number: int, digest: bytes, etag: str | None) -> None:
        """Record an uploaded part."""
        if self._journal is not None and self.uploaded.upload_id is not None and etag is not None:
            with only_logged(UPLOAD_CHUNK.id):
                part = SentPart(digest, etag)
                await self._journal.add_part(self.job_id, self.uploaded.upload_id, number, part)
                self.is_resumable = True

    async def mark_finalizing(self) -> None:
        """Record that `finalizeStream` is about to be sent."""
        await self.add(FINALIZE_MARK, b"", "")

    async def forget(self) -> None:
        if self._journal is not None:
            self.is_resumable = False
            with only_logged(FINALIZE_STREAM.id):
                await self._journal.forget_parts(self.job_id)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _open(client: BaseClient, job_id: str, content: Content, part_size: int, record: _UploadRecord) -> bool:
    """Open the upload, or find the one to resume; return False if an earlier call has completed it."""
    upload_id: str | None = None
    refusal: ConvertriloError | None = None
    try:
        upload_id = (await client.init_stream(job_id)).upload_id
    except (InvalidRequestError, ConflictError) as error:
        refusal = error
    if upload_id is not None and upload_id == record.uploaded.upload_id:
        return True
    if await _is_finalized(client, job_id, content, part_size, record.uploaded):
        if refusal is None:
            await _abort(client, job_id)
        return False
    if refusal is not None:
        raise refusal
    await record.begin(upload_id)
    return True


async def _is_finalized(client: BaseClient, job_id: str, content: Content, part_size: int, uploaded: SentParts) -> bool:
    """Whether an earlier call sent `finalizeStream` for exactly these parts, and ended before it read the response."""
    if not uploaded.is_finalizing or not content.is_rewindable or not await _has_file(client, job_id):
        return False
    await content.begin()
    parts, digests = _PartReader(content, part_size), dict[int, bytes]()
    while (part := await parts.next()) is not None:
        digests[part[0]] = await anyio.to_thread.run_sync(_digest, part[1])
    return digests == {number: part.digest for number, part in uploaded.parts.items()}


class _PartReader:
    """Splits a file into parts, in order; many tasks may read from it."""

    def __init__(self, content: Content, size: int) -> None:
        self.size = size
        self._content = content
        self._number = 0
        self._rest = b""
        self._reading = anyio.Lock()

    async def next(self) -> tuple[int, bytes] | None:
        """Return the next part's number and bytes; `None` after the last one."""
        async with self._reading:
            data = await self._read()
            if not data and self._number:
                return None
            if self._number == MOST_PARTS:
                raise TransferError(
                    f"{self._content.name} has more than {MOST_PARTS} parts of {self.size} bytes; "
                    "pass its size, or a larger part_size"
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
                first = piece  # usually the whole part, so that nothing is copied
            else:
                gathered.write(first)  # joining the pieces at the end would hold the part in memory twice
                gathered.write(piece)
                first = b""
            size += len(piece)
        return first or gathered.getvalue()


async def _send_all(
    client: BaseClient,
    job_id: str,
    parts: _PartReader,
    concurrency: int,
    record: _UploadRecord,
    report: Callable[[int], object],
) -> dict[int, str | None]:
    """Send all parts that are not uploaded yet; return the ETag of every part by its number."""
    engine, options = engine_of(client)
    options = _options_for_part(options, parts.size)
    etags: dict[int, str | None] = {}
    done = 0

    async def send() -> None:
        nonlocal done
        while (part := await parts.next()) is not None:
            number, data = part
            digest = await record.digest(data)
            known = record.uploaded.parts.get(number)
            if known is not None and known.digest == digest:
                etags[number] = known.etag
            else:
                path: dict[str, str | int] = {"id": job_id, "index": number}
                _, headers = await engine.call(UPLOAD_CHUNK, options, path=path, body=data)
                etags[number] = headers.get("etag")
                await record.add(number, digest, headers.get("etag"))
            done += len(data)
            del part, data  # free the memory before the next part is read
            report(done)

    report(0)
    await run_all([send] * concurrency)
    return etags


def _options_for_part(options: Options, part_size: int) -> Options:
    """Return options with a write timeout and a deadline that are long enough for a part on a slow connection."""
    seconds = part_size / _MIN_BYTES_PER_SECOND
    given = options.timeout
    write = None if given.write is None else max(given.write, seconds)
    timeout = httpx.Timeout(connect=given.connect, read=given.read, write=write, pool=given.pool)
    retry = attrs.evolve(options.retry, deadline=options.retry.deadline + 2 * seconds)
    return attrs.evolve(options, timeout=timeout, retry=retry)


async def _finalize(client: BaseClient, job_id: str, etags: dict[int, str | None]) -> None:
    """Send `finalizeStream`, and send it again if its outcome is unknown.

    If the unanswered request has assembled the file, the service rejects the next request, and the job has a file. A
    file without that rejection proves nothing: an earlier upload may have left it.
    """
    engine, options = engine_of(client)
    body = None
    if None not in etags.values():
        parts = [StreamPart(part_number=number, etag=etag) for number, etag in sorted(etags.items())]
        body = StreamFinalizeRequest(parts=parts)
    tries = Tries(engine, options.retry, most=max(options.retry.max_attempts, 2))  # only a second request can tell
    while True:
        tries.begin()
        try:
            return await client.finalize_stream(job_id, body)
        except OutcomeUnknownError:
            if not tries.are_left:
                raise
        except (InvalidRequestError, NotFoundError, ConflictError, GoneError):
            if tries.made == 1 or not await _has_file(client, job_id):
                raise
            return None
        await tries.wait()


async def has_file(client: BaseClient, job_id: str, *, unreadable: bool) -> bool:
    """Return whether the service has a job's file, by probing it (`probeDuration`).

    Args:
        client: The client to send with.
        job_id: The job.
        unreadable: What to return for a file in which the service finds no video (`probe_failed`).
    """
    try:
        await client.probe_duration(job_id)
    except (InvalidRequestError, NotFoundError, ConflictError, GoneError) as error:
        return unreadable and error.code == "probe_failed"
    return True


async def _has_file(client: BaseClient, job_id: str) -> bool:
    return await has_file(client, job_id, unreadable=True)  # assembled parts count, whatever they contain


async def _may_have_file(client: BaseClient, job_id: str) -> bool:
    try:
        return await _has_file(client, job_id)
    except ConvertriloError:
        return True


async def _abort(client: BaseClient, job_id: str) -> None:
    try:
        await client.abort_stream(job_id)
    except ConvertriloError:
        return  # the error that led to the abort is the one to raise
