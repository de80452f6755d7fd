"""Handlers of uploads in parts, and the checks that they share with presigned uploads."""

from collections.abc import Awaitable, Callable, Mapping

import anyio.to_thread

from convertrilo import operations
from convertrilo.errors import Issue
from convertrilo.models import StreamFinalizeRequest, StreamInitResponse
from convertrilo.sandbox.api.call import ApiCall, Handler, Work
from convertrilo.sandbox.state.problem import Problem, invalid_body, invalid_request
from convertrilo.sandbox.state.records import CREATED, Job
from convertrilo.sandbox.state.store import Tx
from convertrilo.sandbox.state.streams import write_stream

_MAX_PARTS = 10_000


def init_stream(call: ApiCall, tx: Tx) -> StreamInitResponse:
    """Answer `initStream`; an open upload is continued."""
    job = call.job(tx)
    check_open(job)
    tx.run("INSERT OR IGNORE INTO uploads VALUES (?, ?)", job.id, tx.ids.uuid())
    row = tx.row("SELECT id FROM uploads WHERE job = ?", job.id)
    assert row is not None
    return StreamInitResponse(ok=True, upload_id=row[0], input_key=job.input_key)


def _upload(call: ApiCall, tx: Tx) -> Job:
    job = call.job(tx)
    check_open(job)
    if tx.row("SELECT 1 FROM uploads WHERE job = ?", job.id) is None:
        raise _no_open_upload()
    return job


def _no_open_upload() -> Problem:
    return invalid_request("No upload in parts is open for this job.")


async def upload_chunk(call: ApiCall) -> Work:
    """Answer `uploadChunk`; the ETag in the response goes into `finalizeStream`."""
    index = call.path["index"]
    number = int(index) if index.isascii() and index.isdigit() and len(index) < 6 else 0
    if not 1 <= number <= _MAX_PARTS:
        raise invalid_request(f"A part number must be from 1 to {_MAX_PARTS}, not {index}.")
    backend, files = call.backend, call.backend.files
    job, received = await backend.store.transaction(lambda tx: _upload(call, tx)), files.arrival()
    written = await write_stream(call.chunks(), received, limit=backend.rules.max_source_bytes)
    call.headers["etag"] = f'"{written.etag}"'

    def work(call: ApiCall, tx: Tx) -> None:
        with files.moving(received, files.part(job.id, number)):
            _upload(call, tx)
            tx.run("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", job.id, number, written.etag, written.size)

    return work


async def finalize_stream(call: ApiCall) -> Work:
    """Answer `finalizeStream`: the parts listed in the body, or all parts, become the source."""
    body = call.body_as(StreamFinalizeRequest)
    backend, files = call.backend, call.backend.files

    def find(tx: Tx) -> tuple[Job, list[int]]:
        job = _upload(call, tx)
        stored = dict(tx.rows("SELECT number, etag FROM parts WHERE job = ? ORDER BY number", job.id))
        _check_parts(body, stored)
        return job, sorted(stored if body.parts is None else {part.part_number or 0 for part in body.parts})

    (job, numbers), received = await backend.store.transaction(find), files.arrival()
    try:
        await files.join_parts(job.id, numbers, received)
    except FileNotFoundError:  # finalized or aborted by another request in the meantime
        raise _no_open_upload() from None
    call.after_commit = _drop_parts(call, job)

    def work(call: ApiCall, tx: Tx) -> None:
        with files.moving(received, files.source(job.id)):
            now = _upload(call, tx)
            _close(tx, now)
            mark_uploaded(tx, now)

    return work


def _check_parts(body: StreamFinalizeRequest, stored: Mapping[int, str]) -> None:
    issues: list[Issue] = []
    numbers = sorted(stored)
    if body.parts is not None:
        numbers = sorted({part.part_number or 0 for part in body.parts})
        for index, part in enumerate(body.parts):
            known = stored.get(part.part_number or 0)
            if known is None:
                issues.append(Issue(f"parts[{index}].PartNumber", f"part {part.part_number} was not uploaded"))
            elif (part.etag or "").strip('"') != known:
                issues.append(Issue(f"parts[{index}].ETag", f"is not the ETag of part {part.part_number}"))
    if issues:
        raise invalid_body(issues)
    if not numbers:
        raise invalid_request("No part has been uploaded.")
    if missing := sorted(set(range(1, numbers[-1] + 1)) - set(numbers)):
        raise invalid_request(f"Part {missing[0]} is missing.")


async def abort_stream(call: ApiCall) -> Work:
    """Answer `abortStream`; without an open upload, nothing happens."""
    job = await call.backend.store.transaction(call.job)
    call.after_commit = _drop_parts(call, job)
    return lambda _call, tx: _close(tx, job)


def _drop_parts(call: ApiCall, job: Job) -> Callable[[], Awaitable[None]]:
    return lambda: anyio.to_thread.run_sync(call.backend.files.drop_parts, job.id)


def _close(tx: Tx, job: Job) -> None:
    tx.run("DELETE FROM uploads WHERE job = ?", job.id)
    tx.run("DELETE FROM parts WHERE job = ?", job.id)


def check_open(job: Job) -> None:
    """Check that a job waits for an upload.

    Raises:
        Problem: 400 if the job does not take a source, or no longer takes one.
    """
    if job.kind != "upload":
        raise invalid_request("The job has a source already; nothing can be uploaded.")
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already; only a created job takes a source.")


def mark_uploaded(tx: Tx, job: Job) -> None:
    """Record that a job has a new source of unknown duration, if the job still waits for one."""
    check_open(job)
    tx.change_job(job, uploaded=True, duration=None)


HANDLERS: Mapping[str, Handler] = {
    operations.INIT_STREAM.id: init_stream,
    operations.UPLOAD_CHUNK.id: upload_chunk,
    operations.FINALIZE_STREAM.id: finalize_stream,
    operations.ABORT_STREAM.id: abort_stream,
}
