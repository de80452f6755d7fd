"""A file in parts: several at a time, each tried again on its own."""

import math
from collections.abc import Awaitable, Callable

import anyio
import attrs
import httpx

from convertrilo import operations as rows
from convertrilo._call import Options
from convertrilo._content import Content
from convertrilo.client import AsyncClient, engine_of
from convertrilo.errors import (
    ConflictError,
    ConvertriloError,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    TransferError,
)
from convertrilo.models import StreamFinalizeRequest, StreamPart

MOST_PARTS = 10_000
"""As the contract says (`uploadChunk`)."""

_SLOWEST = 32 * 1024
"""Bytes a second that a part is given time for."""

_SECONDS_TO_ABORT = 10.0


async def send_parts(
    client: AsyncClient,
    job_id: str,
    content: Content,
    *,
    part_size: int,
    concurrency: int,
    tell: Callable[[int], object],
) -> None:
    """Upload a job's file in parts; if that fails, or is cancelled, the upload is given up.

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
    try:
        await client.init_stream(job_id)
        await content.begin()
        etags = await _send_all(client, job_id, _Parts(content, part_size), concurrency, tell)
        await _finalize(client, job_id, etags)
    except OutcomeUnknownError:
        raise  # it may be whole, so it must not be given up
    except BaseException:
        with anyio.move_on_after(_SECONDS_TO_ABORT, shield=True):
            await _abort(client, job_id)
        raise


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
        pieces, size = [self._rest] if self._rest else [], len(self._rest)
        while size < self.size and (piece := await self._content.next(self.size - size)) is not None:
            pieces.append(piece)
            size += len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._rest = data[self.size :]
        return data[: self.size] if self._rest else data


async def _send_all(
    client: AsyncClient, job_id: str, parts: _Parts, concurrency: int, tell: Callable[[int], object]
) -> dict[int, str | None]:
    engine, options = engine_of(client)
    options = _patient(options, parts.size)
    etags: dict[int, str | None] = {}
    done = 0

    async def send() -> None:
        nonlocal done
        while (part := await parts.next()) is not None:
            number, data = part
            path: dict[str, str | int] = {"id": job_id, "index": number}
            _, headers = await engine.call(rows.UPLOAD_CHUNK, options, path=path, body=data)
            etags[number] = headers.get("etag")
            done += len(data)
            tell(done)

    tell(0)
    await _together([send] * concurrency)
    return etags


async def _together(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    """Run tasks to their ends; the first error cancels the others, and is raised."""
    failures: list[Exception] = []

    async def run(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(run, task)
    if failures:
        raise failures[0]


def _patient(options: Options, part_size: int) -> Options:
    """Return options with time enough for a part on a slow connection."""
    seconds = part_size / _SLOWEST
    given = options.timeout
    write = None if given.write is None else max(given.write, seconds)
    timeout = httpx.Timeout(connect=given.connect, read=given.read, write=write, pool=given.pool)
    retry = attrs.evolve(options.retry, deadline=options.retry.deadline + 2 * seconds)
    return attrs.evolve(options, timeout=timeout, retry=retry)


async def _finalize(client: AsyncClient, job_id: str, etags: dict[int, str | None]) -> None:
    """Put the parts together. When no answer comes, a probe tells if it was done; while it was not, try again."""
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
            if await _is_there(client, job_id):
                return None
            if attempt >= options.retry.max_attempts:
                raise
        except (InvalidRequestError, NotFoundError, ConflictError):
            if attempt == 1 or not await _is_there(client, job_id):
                raise
            return None
        await engine.clock.sleep(options.retry.backoff(attempt, engine.random))


async def _is_there(client: AsyncClient, job_id: str) -> bool:
    """Whether the service has a job's file: it can only probe what is there."""
    try:
        await client.probe_duration(job_id)
    except (InvalidRequestError, NotFoundError, ConflictError) as error:
        return error.code == "probe_failed"
    return True


async def _abort(client: AsyncClient, job_id: str) -> None:
    try:
        await client.abort_stream(job_id)
    except ConvertriloError:
        return  # what made us give up is the error to raise
