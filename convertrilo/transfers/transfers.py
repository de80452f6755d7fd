"""Files to and from storage: presigned uploads, and downloads that go on where they broke off."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import anyio
import attrs
import httpx
from anyio.streams.memory import MemoryObjectSendStream

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._clock import Clock
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo.errors import Issue, TransferError, ValidationError
from convertrilo.models import (
    JobCreateResponse,
    JobUpload,
    OnDemandEncodeResponse,
    OnDemandStatusResponse,
    StatusResponse,
)
from convertrilo.retry import FailureKind
from convertrilo.transfers.multipart import send_parts
from convertrilo.transfers.part_file import Partial, held
from convertrilo.transfers.source import Content, Source, content_of
from convertrilo.transfers.storage import BrokenAttempt, body_of, checked_url, exchange, until_done

SEND_SIZE = 256 * 1024
"""Bytes that are handed to the connection at a time; each such piece must be sent within the write timeout."""

WRITE_SIZE = 4 * 1024 * 1024
WRITE_SECONDS = 0.5
"""Bytes, or seconds, that are received before they are written: worker threads cost more than the writing itself."""

Target = str | StatusResponse | OnDemandStatusResponse | JobCreateResponse | OnDemandEncodeResponse
"""What can be downloaded: a URL, a status, a job, or a job's id."""

Stage = Literal["upload", "encode", "download"]


@attrs.frozen
class Progress:
    """How far a flow is: `done` of `total`, in bytes for `upload` and `download`, in percent for `encode`."""

    stage: Stage
    done: float
    total: float | None
    """`None` if it is not known."""
    job_id: str | None = None
    """The job it is about, where that is known."""


OnProgress = Callable[[Progress], object]


Tell = Callable[[int, int | None], None]
"""Tells how many bytes are there, and how many there will be."""


@contextmanager
def _telling(on_progress: OnProgress | None, stage: Stage, job_id: str | None) -> Generator[Tell]:
    """Yield what tells a callback. An error of its own ends everything, and is none of the network's or the disk's."""
    failures: list[Exception] = []

    def tell(done: int, total: int | None) -> None:
        if on_progress is None or failures:
            return
        try:
            on_progress(Progress(stage, done, total, job_id))
        except Exception as error:  # noqa: BLE001  # raised below, past all who would take it for one of theirs
            failures.append(error)
            scope.cancel()

    with anyio.CancelScope() as scope:
        yield tell
    if failures:
        raise failures[0]


# ---- upload


class _Body(httpx.AsyncByteStream):
    """The body of one attempt.

    No generator: a connection that breaks would leave it unfinished, and nobody would close it.
    """

    def __init__(self, content: Content, tell: Tell) -> None:
        self._content = content
        self._tell = tell
        self._begun = False
        self._piece = memoryview(b"")
        self._sent = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            await self._content.begin()
            self._tell(0, self._content.size)
        elif self._sent:
            self._tell(self._sent, self._content.size)
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
    """Put a file where a job expects it; see `AsyncClient.upload`."""
    url, job_id = _upload_url(job)
    engine, options = engine_of(client)

    async with content_of(source, size) as content:
        with _telling(on_progress, "upload", job_id) as tell:
            try:
                await _put(engine, options, url, content, tell)
            except BrokenAttempt as broken:
                hint = "; the upload URL may have expired" if broken.is_expired else ""
                raise TransferError(f"{content.name} is not uploaded: {broken}{hint}") from broken


async def _put(engine: Engine, options: Options, url: httpx.URL, content: Content, tell: Tell) -> None:
    def make_body() -> httpx.AsyncByteStream:
        if content.is_spent:
            raise BrokenAttempt(f"{content.name} cannot be read a second time")
        return _Body(content, tell)

    # No Content-Type: if it is part of the signature, nobody says which; and older signatures want none.
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
    place, job_id = (job.upload, job.job_id) if isinstance(job, JobCreateResponse) else (job, None)
    if place is None or place.url is None:
        raise ValidationError("job", [Issue("upload", "must say where to: this job takes no upload")])
    return checked_url("job.upload.url", place.url), job_id


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

        def tell(done: int) -> None:
            if on_progress is not None:
                on_progress(Progress("upload", done, content.size, job_id))

        await send_parts(client, job_id, content, part_size=part_size, concurrency=concurrency, tell=tell)


# ---- download


async def download(
    client: BaseClient, target: Target, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> Path:
    """Fetch a job's output to a file; see `AsyncClient.download`."""
    engine, options = engine_of(client)
    output = _Output.of(target)
    with _telling(on_progress, "download", output.job_id) as tell:
        async with held(Path(path), output.name) as part:
            if output.url is None:
                await output.refresh(client)
            try:
                await _get(client, engine, options, output, part, tell)
            except BrokenAttempt as broken:
                hint = "; the download URL may have expired" if broken.is_expired else ""
                raise TransferError(f"{part.final} is not downloaded: {broken}{hint}{part.kept()}") from broken
            await part.on_disk(part.finish)
    return part.final


async def _get(
    client: BaseClient, engine: Engine, options: Options, output: "_Output", part: Partial, tell: Tell
) -> None:
    asked_at = -1
    """How much was there when a fresh URL was last asked for."""

    async def attempt() -> None:
        nonlocal asked_at
        try:
            return await _fetch(engine, options, output, part, tell)
        except BrokenAttempt as broken:
            if not broken.is_expired or output.job_id is None or asked_at == part.size:
                raise
        asked_at = part.size
        await output.refresh(client)
        return await _fetch(engine, options, output, part, tell)

    await until_done("download", "GET", engine, options, attempt, lambda: part.size)


class _Output:
    """What is to be downloaded."""

    def __init__(self, url: str | None, job_id: str | None, *, on_demand: bool | None = None) -> None:
        self.url = url
        self.job_id = job_id
        self._on_demand = on_demand  # None if that is not known

    @classmethod
    def of(cls, target: Target) -> "_Output":
        if isinstance(target, str):
            return cls(str(checked_url("target", target)), None) if "://" in target else cls(None, target)
        if isinstance(target, StatusResponse):
            return cls(target.download_url, target.id, on_demand=False)
        if isinstance(target, OnDemandStatusResponse):
            return cls(target.download_url, target.job_id, on_demand=True)
        return cls(None, target.job_id, on_demand=isinstance(target, OnDemandEncodeResponse))

    @property
    def name(self) -> str:
        """What it is known by, whatever the signature of its URL."""
        if self.job_id is not None or self.url is None:
            return self.job_id or ""
        unsigned = httpx.URL(self.url).copy_with(query=None, fragment=None)
        return hashlib.sha256(str(unsigned).encode()).hexdigest()

    async def refresh(self, client: BaseClient) -> None:
        """Ask the service for the URL.

        Raises:
            TransferError: There is no output, or not yet, or no more.
        """
        if self.job_id is None:
            raise ValidationError("target", [Issue("", "must hold a download URL or a job's id")])
        status = await self._status(client, self.job_id)
        self.url = status.download_url
        if self.url is None:
            why = "its output is not available" if status.status == "success" else f"it is {status.status}"
            raise TransferError(f"job {self.job_id} has nothing to download: {why}")

    async def _status(self, client: BaseClient, job_id: str) -> StatusResponse | OnDemandStatusResponse:
        if self._on_demand is None:
            return await client.find_job(job_id)
        return await (client.on_demand_status if self._on_demand else client.job_status)(job_id)


async def _fetch(engine: Engine, options: Options, output: _Output, part: Partial, tell: Tell) -> None:
    """Receive the rest of a file, or all of it."""
    assert output.url is not None
    headers = [("Accept-Encoding", "identity")]
    if part.total is not None and part.size >= part.total:
        part.size = max(0, part.total - 1)  # ask for the last byte again: only the server knows if the file is the same
    if part.size and part.validator is not None:
        headers += [("Range", f"bytes={part.size}-"), ("If-Range", part.validator)]
    try:
        async with exchange(engine, options, "GET", checked_url("download_url", output.url), headers) as response:
            _check(response)
            await part.on_disk(part.go_on if response.status_code == 206 else part.begin, response)
            tell(part.size, part.total)
            await _receive(response, part, tell, engine.clock)
    except BrokenAttempt as broken:
        if broken.status == 416:  # it is shorter now than what is here
            part.size, broken.kind = 0, FailureKind.UNCLEAR
        raise
    await part.on_disk(part.check)


def _check(response: httpx.Response) -> None:
    """Refuse an answer of which nobody could say whether it is the whole file."""
    headers = response.headers
    if response.status_code not in (200, 206):
        raise BrokenAttempt(f"the storage answers {response.status_code}")
    if headers.get("content-encoding", "identity") != "identity":
        raise BrokenAttempt(f"the storage sends it encoded as {headers['content-encoding']}")
    if response.http_version.startswith("HTTP/1") and not {"content-length", "transfer-encoding"} & set(headers):
        raise BrokenAttempt("the storage does not say how long it is")


async def _receive(response: httpx.Response, part: Partial, tell: Tell, clock: Clock) -> None:
    """Write the body of an answer to a file: a thread writes while more arrives."""
    outgoing, incoming = anyio.create_memory_object_stream[list[bytes]](1)
    failures: list[Exception] = []

    async def write() -> None:
        try:
            async for chunks in incoming:
                await part.on_disk(part.write, chunks)
                tell(part.size, part.total)
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failures.append(error)
            tasks.cancel_scope.cancel()

    with incoming, outgoing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            try:
                await _hand_on(response, outgoing, clock)
            except httpx.HTTPError as error:
                failures.append(error)
            outgoing.close()
    if failures:
        raise failures[0]


async def _hand_on(response: httpx.Response, outgoing: MemoryObjectSendStream[list[bytes]], clock: Clock) -> None:
    """Gather the pieces of a body; those before a break too."""
    waiting: list[bytes] = []
    amount, latest = 0, clock.monotonic() + WRITE_SECONDS
    try:
        async with body_of(response) as body:
            async for chunk in body:
                waiting.append(chunk)
                amount += len(chunk)
                if amount >= WRITE_SIZE or clock.monotonic() >= latest:
                    await outgoing.send(waiting)
                    waiting, amount, latest = [], 0, clock.monotonic() + WRITE_SECONDS
    finally:
        if waiting:
            await outgoing.send(waiting)
