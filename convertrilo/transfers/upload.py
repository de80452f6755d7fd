"""Uploads: a whole file to a presigned URL, or in parts to the service."""

from collections.abc import AsyncIterator

import httpx

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo.errors import Issue, TransferError, ValidationError
from convertrilo.models import JobCreateResponse, JobUpload
from convertrilo.retry import FailureKind
from convertrilo.transfers.multipart import send_parts
from convertrilo.transfers.progress import OnProgress, Progress, ReportBytes, reporting
from convertrilo.transfers.source import Content, Source, content_of
from convertrilo.transfers.storage import BrokenAttempt, checked_url, exchange, until_done

DEFAULT_PART_SIZE = 8 * 1024 * 1024
DEFAULT_CONCURRENCY = 4

SEND_SIZE = 256 * 1024
"""Bytes that are passed to the connection at a time; each piece must be sent within the write timeout."""


class _Body(httpx.AsyncByteStream):
    """The request body of one attempt.

    This is not an async generator: when a connection breaks, nobody would close the unfinished generator.
    """

    def __init__(self, content: Content, report: ReportBytes) -> None:
        self._content = content
        self._report = report
        self._begun = False
        self._piece = memoryview(b"")
        self._sent = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            await self._content.begin()
            self._report(0, self._content.size)
        elif self._sent:
            self._report(self._sent, self._content.size)
        if not self._piece:
            piece = await self._content.next()
            if piece is None:
                raise StopAsyncIteration
            self._piece = memoryview(piece)
        data, self._piece = bytes(self._piece[:SEND_SIZE]), self._piece[SEND_SIZE:]
        self._sent += len(data)
        return data


async def upload(
    client: BaseClient,
    job: JobCreateResponse | JobUpload | str,
    source: Source,
    *,
    size: int | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Upload a job's file to its presigned URL; see `AsyncClient.upload`."""
    url, job_id = _upload_url(job)
    engine, options = engine_of(client)

    async with content_of(source, size) as content:
        with reporting(on_progress, "upload", job_id) as report:
            try:
                await _put(engine, options, url, content, report)
            except BrokenAttempt as broken:
                hint = "; the upload URL may have expired" if broken.is_expired else ""
                raise TransferError(f"{content.name} is not uploaded: {broken}{hint}") from broken


async def _put(engine: Engine, options: Options, url: httpx.URL, content: Content, report: ReportBytes) -> None:
    def make_body() -> httpx.AsyncByteStream:
        if content.is_spent:
            raise BrokenAttempt(f"{content.name} cannot be read a second time")
        return _Body(content, report)

    # No Content-Type: the contract does not say which one a presigned URL may have signed, and older signatures need
    # the header to be absent.
    length = ("Transfer-Encoding", "chunked") if content.size is None else ("Content-Length", str(content.size))

    async def attempt() -> None:
        try:
            async with exchange(engine, options, "PUT", url, [length], make_body) as response:
                await response.aread()
        except BrokenAttempt as broken:
            if content.is_spent and broken.kind is not FailureKind.REJECTED:
                broken.kind = FailureKind.REJECTED
                broken.reason += f", and {content.name} cannot be read a second time"
            raise

    await until_done("upload", "PUT", engine, options, attempt, lambda: 0)


def _upload_url(job: JobCreateResponse | JobUpload | str) -> tuple[httpx.URL, str | None]:
    if isinstance(job, str):
        return checked_url("job", job), None
    target, job_id = (job.upload, job.job_id) if isinstance(job, JobCreateResponse) else (job, None)
    if target is None or target.url is None:
        raise ValidationError("job", [Issue("upload", "must have a URL: this job takes no upload")])
    return checked_url("job.upload.url", target.url), job_id


async def upload_chunked(
    client: BaseClient,
    job_id: str,
    source: Source,
    *,
    part_size: int,
    concurrency: int,
    size: int | None,
    on_progress: OnProgress | None,
) -> None:
    """Upload a job's file in parts; see `AsyncClient.upload_chunked`."""
    wrong = [
        Issue(name, f"must be at least 1, not {value!r}")
        for name, value in (("part_size", part_size), ("concurrency", concurrency))
        if value < 1
    ]
    if wrong:
        raise ValidationError("upload_chunked", wrong)
    async with content_of(source, size) as content:

        def report(done: int) -> None:
            if on_progress is not None:
                on_progress(Progress("upload", done, content.size, job_id))

        await send_parts(client, job_id, content, part_size=part_size, concurrency=concurrency, report=report)
