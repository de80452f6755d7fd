"""Files to and from storage: presigned uploads, and downloads that go on where they broke off."""

import errno
import io
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import httpx

from convertrilo._call import Options
from convertrilo._engine import Engine
from convertrilo._storage import BrokenAttempt, body_of, checked_url, exchange, until_done
from convertrilo.client import AsyncClient, engine_of
from convertrilo.errors import Issue, NotFoundError, TransferError, ValidationError
from convertrilo.models import (
    JobCreateResponse,
    JobUpload,
    OnDemandEncodeResponse,
    OnDemandStatusResponse,
    StatusResponse,
)
from convertrilo.retry import FailureKind

READ_SIZE = 256 * 1024
"""Bytes of a file that are read and sent at a time; each such piece must be sent within the write timeout."""

WRITE_SIZE = 1024 * 1024
"""Bytes that are received before they are written: a worker thread for every 64 KiB costs more than the writing."""

Source = str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | AsyncIterable[bytes]
"""What can be uploaded: a path, a file opened in binary mode, bytes, or what yields bytes."""

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


@asynccontextmanager
async def _opened(opener: Callable[[], IO[bytes]]) -> AsyncGenerator[IO[bytes]]:
    """Open a file in a worker thread, and close it whatever happens, cancellation included."""
    file = await anyio.to_thread.run_sync(opener)
    try:
        yield file
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(file.close)


# ---- upload


@attrs.frozen(kw_only=True)
class _Content:
    """What is to be uploaded."""

    name: str
    size: int | None
    rewinds: bool
    """Whether it can be read more than once."""
    begin: Callable[[], Awaitable[object]]
    """Goes to its beginning."""
    next: Callable[[], Awaitable[bytes | None]]
    """Returns what comes next; `None` at its end."""


@asynccontextmanager
async def _content(source: Source, size: int | None) -> AsyncGenerator[_Content]:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        yield await _file_content(io.BytesIO(data), "the data")
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            async with _opened(lambda: path.open("rb")) as file:
                yield await _file_content(file, str(path))
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror or error}") from error
    elif isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            yield _stream_content(iterator, size)
        finally:
            if isinstance(iterator, AsyncGenerator):
                with anyio.CancelScope(shield=True):
                    await iterator.aclose()
    elif callable(getattr(source, "read", None)):
        yield await _file_content(source, str(getattr(source, "name", "the file")))
    else:
        allowed = "a path, a file opened in binary mode, bytes, or an async iterable of bytes"
        raise ValidationError("source", [Issue("", f"must be {allowed}, not {type(source).__name__}")])


async def _file_content(file: IO[bytes], name: str) -> _Content:
    """Return what is in an open file, from where it stands to its end."""

    def measure() -> tuple[int, int | None]:
        if not file.seekable():
            return 0, None
        start = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        return start, max(0, end - start)

    start, size = await anyio.to_thread.run_sync(measure)

    async def begin() -> None:
        if size is not None:
            await anyio.to_thread.run_sync(file.seek, start)

    async def read() -> bytes | None:
        return await anyio.to_thread.run_sync(file.read, READ_SIZE) or None

    return _Content(name=name, size=size, rewinds=size is not None, begin=begin, next=read)


def _stream_content(iterator: AsyncIterator[bytes], size: int | None) -> _Content:
    async def read() -> bytes | None:
        return await anext(iterator, None)

    return _Content(name="the stream", size=size, rewinds=False, begin=anyio.lowlevel.checkpoint, next=read)


class _Body(httpx.AsyncByteStream):
    """The body of one attempt: exactly as long as was said.

    No generator: a connection that breaks would leave it unfinished, and nobody would close it.
    """

    def __init__(self, content: _Content, tell: Callable[[int], None]) -> None:
        self._content = content
        self._tell = tell
        self._done = 0
        self.begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content = self._content
        if not self.begun or self._done:
            self._tell(self._done)
        try:
            if not self.begun:
                self.begun = True
                await content.begin()
            piece = await content.next()
            while piece is not None and not piece:
                piece = await content.next()
        except (OSError, httpx.HTTPError) as error:
            raise TransferError(f"{content.name} cannot be read after {self._done} bytes: {error}") from error
        if isinstance(piece, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # from a file opened in text mode
            raise ValidationError("source", [Issue("", "must hold bytes, not text")])
        return self._measured(piece)

    def _measured(self, piece: bytes | None) -> bytes:
        name, size = self._content.name, self._content.size
        if size is not None and piece is not None and self._content.rewinds:
            piece = piece[: size - self._done]  # a file may have grown since it was measured
        if not piece:
            if size is not None and self._done < size:
                raise TransferError(f"{name} ends after {self._done} of the {size} bytes that it should have")
            raise StopAsyncIteration
        self._done += len(piece)
        if size is not None and self._done > size:
            raise TransferError(f"{name} goes on after the {size} bytes that it should have")
        return bytes(piece)


async def upload(
    client: AsyncClient,
    job: JobCreateResponse | JobUpload | str,
    source: Source,
    *,
    size: int | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Put a file where a job expects it; see `AsyncClient.upload`."""
    url, job_id = _upload_url(job)
    engine, options = engine_of(client)

    async with _content(source, size) as content:
        body: _Body | None = None

        def tell(done: int) -> None:
            if on_progress is not None:
                on_progress(Progress("upload", done, content.size, job_id))

        def is_spent() -> bool:
            return body is not None and body.begun and not content.rewinds

        def make_body() -> httpx.AsyncByteStream:
            nonlocal body
            if is_spent():
                raise BrokenAttempt(f"{content.name} cannot be read a second time")
            body = _Body(content, tell)
            return body

        # No Content-Type: if it is part of the signature, nobody says which; and older signatures want none.
        length = ("Transfer-Encoding", "chunked") if content.size is None else ("Content-Length", str(content.size))

        async def attempt() -> None:
            try:
                async with exchange(engine, options, "PUT", url, [length], make_body) as response:
                    await response.aread()
            except BrokenAttempt as broken:
                if is_spent() and broken.kind is not FailureKind.REJECTED:
                    broken.kind = FailureKind.REJECTED
                    broken.reason += f", and {content.name} cannot be read a second time"
                raise

        try:
            await until_done("upload", engine, options, attempt, lambda: 0)
        except BrokenAttempt as broken:
            hint = "; the upload URL may have expired" if broken.is_expired else ""
            raise TransferError(f"{content.name} is not uploaded: {broken}{hint}") from broken.__cause__


def _upload_url(job: JobCreateResponse | JobUpload | str) -> tuple[httpx.URL, str | None]:
    if isinstance(job, str):
        return checked_url("job", job), None
    place, job_id = (job.upload, job.job_id) if isinstance(job, JobCreateResponse) else (job, None)
    if place is None or place.url is None:
        raise ValidationError("job", [Issue("upload", "must say where to: this job takes no upload")])
    return checked_url("job.upload.url", place.url), job_id


# ---- download


async def download(
    client: AsyncClient, target: Target, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> Path:
    """Fetch a job's output to a file; see `AsyncClient.download`."""
    engine, options = engine_of(client)
    output = _Output.of(target)
    part = _Part.of(Path(path))
    asked_at = -1
    """How much was there when a fresh URL was last asked for."""

    def tell() -> None:
        if on_progress is not None:
            on_progress(Progress("download", part.size, part.total, output.job_id))

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

    try:
        await anyio.to_thread.run_sync(part.recall)
        if output.url is None:
            await output.refresh(client)
        await until_done("download", engine, options, attempt, lambda: part.size)
        await anyio.to_thread.run_sync(part.finish)
    except BrokenAttempt as broken:
        hint = "; the download URL may have expired" if broken.is_expired else ""
        raise TransferError(f"{part.final} is not downloaded: {broken}{hint}{part.kept()}") from broken.__cause__
    except OSError as error:
        raise TransferError(f"{part.final} cannot be written: {error.strerror or error}{part.kept()}") from error
    return part.final


def partial_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the files that an unfinished `download` to a path leaves, for the next one to go on with."""
    part = _Part.of(Path(path))
    return part.path, part.note


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

    async def refresh(self, client: AsyncClient) -> None:
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

    async def _status(self, client: AsyncClient, job_id: str) -> StatusResponse | OnDemandStatusResponse:
        if self._on_demand:
            return await client.on_demand_status(job_id)
        try:
            return await client.job_status(job_id)
        except NotFoundError:
            if self._on_demand is not None:
                raise
        return await client.on_demand_status(job_id)


@attrs.define(eq=False)
class _Part:
    """The file that a download grows in, and a note beside it that says of what it is a part."""

    final: Path
    path: Path
    note: Path
    size: int = 0
    """Bytes that are there."""
    total: int | None = None
    etag: str | None = None
    last_modified: str | None = None

    @classmethod
    def of(cls, final: Path) -> "_Part":
        path = final.with_name(f"{final.name}.part")
        return cls(final, path, final.with_name(f"{final.name}.part.json"))

    def open(self) -> IO[bytes]:
        """Open it to read and write, as it is or new."""
        return os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")

    def recall(self) -> None:
        """Read what an earlier process has left."""
        if self.final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            known = json.loads(self.note.read_bytes())
            self.etag, self.last_modified, self.total = known["etag"], known["lastModified"], known["total"]
            self.size = self.path.stat().st_size
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            self.size = 0

    @property
    def validator(self) -> str | None:
        """What tells the server which version of the file is here."""
        return self.etag or self.last_modified

    def begin(self, file: IO[bytes], response: httpx.Response) -> None:
        """Start from nothing, and note what an answer says of the whole."""
        file.truncate(0)
        headers = response.headers
        etag, length = headers.get("etag"), headers.get("content-length", "")
        self.size = 0
        self.etag = None if etag is None or etag.startswith("W/") else etag
        self.last_modified = headers.get("last-modified")
        self.total = int(length) if length.isdecimal() else None
        known = {"etag": self.etag, "lastModified": self.last_modified, "total": self.total}
        self.note.write_text(json.dumps(known))

    def go_on(self, file: IO[bytes], response: httpx.Response) -> None:
        """Stand where an answer continues.

        Raises:
            BrokenAttempt: It does not continue what is here.
        """
        headers = response.headers
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
        same = (
            found is not None
            and int(found[1]) == self.size
            and (self.total is None or found[2] in ("*", str(self.total)))
            and (self.etag is None or headers.get("etag", self.etag) == self.etag)
            and (self.etag is not None or headers.get("last-modified") == self.last_modified)
        )
        if not same:
            self.size = 0
            raise BrokenAttempt("the file has changed on the server", FailureKind.UNCLEAR)
        file.truncate(self.size)
        file.seek(self.size)

    def finish(self) -> None:
        """Give the whole file its name."""
        self.path.replace(self.final)
        self.note.unlink(missing_ok=True)

    def kept(self) -> str:
        return f"; what has arrived is kept in {self.path}" if self.size else ""


async def _fetch(engine: Engine, options: Options, output: _Output, part: _Part, tell: Callable[[], None]) -> None:
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
            async with _opened(part.open) as file:
                place = part.go_on if response.status_code == 206 else part.begin
                await anyio.to_thread.run_sync(place, file, response)
                tell()
                await _receive(response, file, part, tell)
    except BrokenAttempt as broken:
        if broken.status == 416:  # it is shorter now than what is here
            part.size, broken.kind = 0, FailureKind.UNCLEAR
        raise
    if part.total is not None and part.size != part.total:
        raise BrokenAttempt(f"it ended after {part.size} of {part.total} bytes", FailureKind.UNCLEAR)


def _check(response: httpx.Response) -> None:
    """Refuse an answer of which nobody could say whether it is the whole file."""
    headers = response.headers
    if response.status_code not in (200, 206):
        raise BrokenAttempt(f"the storage answers {response.status_code}")
    if headers.get("content-encoding", "identity") != "identity":
        raise BrokenAttempt(f"the storage sends it encoded as {headers['content-encoding']}")
    if response.http_version.startswith("HTTP/1") and not {"content-length", "transfer-encoding"} & set(headers):
        raise BrokenAttempt("the storage does not say how long it is")


async def _receive(response: httpx.Response, file: IO[bytes], part: _Part, tell: Callable[[], None]) -> None:
    waiting: list[bytes] = []
    amount = 0

    async def write() -> None:
        nonlocal waiting, amount
        chunks, waiting = waiting, []
        await anyio.to_thread.run_sync(_write, file, chunks)
        part.size += amount
        amount = 0
        tell()

    try:
        async with body_of(response) as chunks:
            async for chunk in chunks:
                waiting.append(chunk)
                amount += len(chunk)
                if amount >= WRITE_SIZE:
                    await write()
    finally:
        if waiting:
            with anyio.CancelScope(shield=True):
                await write()


def _write(file: IO[bytes], chunks: list[bytes]) -> None:
    file.writelines(chunks)
    file.flush()
