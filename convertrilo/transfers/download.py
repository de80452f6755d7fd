"""Downloads: a job's output to a local file, resumed where an earlier attempt or process stopped."""

import hashlib
import os
from pathlib import Path

import anyio
import httpx
from anyio.streams.memory import MemoryObjectSendStream

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._clock import Clock
from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo.errors import Issue, TransferError, ValidationError
from convertrilo.models import (
    JobCreateResponse,
    OnDemandEncodeResponse,
    OnDemandStatusResponse,
    StatusResponse,
)
from convertrilo.retry import FailureKind
from convertrilo.transfers.part_file import PartFile, open_part_file
from convertrilo.transfers.progress import OnProgress, ReportBytes, reporting
from convertrilo.transfers.storage import BrokenAttempt, body_of, checked_url, exchange, until_done

WRITE_SIZE = 4 * 1024 * 1024
WRITE_SECONDS = 0.5
"""Bytes, or seconds, to buffer before a write: switching to a worker thread costs more than the write itself."""

Target = str | StatusResponse | OnDemandStatusResponse | JobCreateResponse | OnDemandEncodeResponse
"""What can be downloaded: a URL, a status, a job, or a job's id."""


async def download(
    client: BaseClient, target: Target, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
) -> Path:
    """Download a job's output to a file; see `AsyncClient.download`."""
    engine, options = engine_of(client)
    output = _DownloadSource.of(target)
    with reporting(on_progress, "download", output.job_id) as report:
        async with open_part_file(Path(path), output.name) as part:
            if output.url is None:
                await output.refresh(client)
            try:
                await _get(client, engine, options, output, part, report)
            except BrokenAttempt as broken:
                hint = "; the download URL may have expired" if broken.is_expired else ""
                raise TransferError(f"{part.final} is not downloaded: {broken}{hint}{part.kept()}") from broken
            await part.on_disk(part.finish)
    return part.final


async def _get(
    client: BaseClient, engine: Engine, options: Options, output: "_DownloadSource", part: PartFile, report: ReportBytes
) -> None:
    size_at_refresh = -1  # one fresh URL for each part size: a second 403 without progress is not an expired URL

    async def attempt() -> None:
        nonlocal size_at_refresh
        try:
            return await _fetch(engine, options, output, part, report)
        except BrokenAttempt as broken:
            if not broken.is_expired or output.job_id is None or size_at_refresh == part.size:
                raise
        size_at_refresh = part.size
        await output.refresh(client)
        return await _fetch(engine, options, output, part, report)

    await until_done("download", "GET", engine, options, attempt, lambda: part.size)


class _DownloadSource:
    """The output to download: its URL, and the job that a fresh URL is requested for."""

    def __init__(self, url: str | None, job_id: str | None, *, on_demand: bool | None = None) -> None:
        self.url = url
        self.job_id = job_id
        self._on_demand = on_demand  # None if the kind of job is not known

    @classmethod
    def of(cls, target: Target) -> "_DownloadSource":
        if isinstance(target, str):
            return cls(str(checked_url("target", target)), None) if "://" in target else cls(None, target)
        if isinstance(target, StatusResponse):
            return cls(target.download_url, target.id, on_demand=False)
        if isinstance(target, OnDemandStatusResponse):
            return cls(target.download_url, target.job_id, on_demand=True)
        return cls(None, target.job_id, on_demand=isinstance(target, OnDemandEncodeResponse))

    @property
    def name(self) -> str:
        """The name by which a later download recognizes this output, without the URL's signature."""
        if self.job_id is not None or self.url is None:
            return self.job_id or ""
        unsigned = httpx.URL(self.url).copy_with(query=None, fragment=None)
        return hashlib.sha256(str(unsigned).encode()).hexdigest()

    async def refresh(self, client: BaseClient) -> None:
        """Request a fresh URL from the service.

        Raises:
            TransferError: The job has no output, has none yet, or its output is gone.
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


async def _fetch(
    engine: Engine, options: Options, output: _DownloadSource, part: PartFile, report: ReportBytes
) -> None:
    """Receive the rest of a file, or the whole file."""
    assert output.url is not None
    headers = [("Accept-Encoding", "identity")]
    if part.total is not None and part.size >= part.total:
        # Request the last byte again: only the server can tell whether the file is still the same.
        part.size = max(0, part.total - 1)
    if part.size and part.validator is not None:
        headers += [("Range", f"bytes={part.size}-"), ("If-Range", part.validator)]
    try:
        async with exchange(engine, options, "GET", checked_url("download_url", output.url), headers) as response:
            _check(response)
            await part.on_disk(part.resume if response.status_code == 206 else part.restart, response)
            report(part.size, part.total)
            await _receive(response, part, report, engine.clock)
    except BrokenAttempt as broken:
        if broken.status == 416:  # the file on the server is now shorter than the local part
            part.size, broken.kind = 0, FailureKind.UNCLEAR
        raise
    await part.on_disk(part.check)


def _check(response: httpx.Response) -> None:
    """Reject a response that is an error, or does not allow a check that the whole file has arrived."""
    headers = response.headers
    if response.status_code not in (200, 206):
        raise BrokenAttempt(f"the storage answers {response.status_code}")
    if headers.get("content-encoding", "identity") != "identity":
        raise BrokenAttempt(f"the storage sends the file encoded as {headers['content-encoding']}")
    if response.http_version.startswith("HTTP/1") and not {"content-length", "transfer-encoding"} & set(headers):
        raise BrokenAttempt("the storage does not say how long the file is")


async def _receive(response: httpx.Response, part: PartFile, report: ReportBytes, clock: Clock) -> None:
    """Write the body of a response to the part file: a thread writes while more data arrives."""
    outgoing, incoming = anyio.create_memory_object_stream[list[bytes]](1)
    failures: list[Exception] = []

    async def write() -> None:
        try:
            async for chunks in incoming:
                await part.on_disk(part.write, chunks)
                report(part.size, part.total)
        except Exception as error:  # noqa: BLE001  # raised below, outside of the task group
            failures.append(error)
            tasks.cancel_scope.cancel()

    with incoming, outgoing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            try:
                await _buffer_chunks(response, outgoing, clock)
            except httpx.HTTPError as error:
                failures.append(error)
            outgoing.close()
    if failures:
        raise failures[0]


async def _buffer_chunks(response: httpx.Response, outgoing: MemoryObjectSendStream[list[bytes]], clock: Clock) -> None:
    """Pass the chunks of a body to the writer, many at a time, including the chunks received before an error."""
    buffered: list[bytes] = []
    size, flush_at = 0, clock.monotonic() + WRITE_SECONDS
    try:
        async with body_of(response) as body:
            async for chunk in body:
                buffered.append(chunk)
                size += len(chunk)
                if size >= WRITE_SIZE or clock.monotonic() >= flush_at:
                    await outgoing.send(buffered)
                    buffered, size, flush_at = [], 0, clock.monotonic() + WRITE_SECONDS
    finally:
        if buffered:
            await outgoing.send(buffered)
