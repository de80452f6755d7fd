"""Bytes in and out: presigned uploads and downloads, and uploads in parts."""

import mimetypes
from collections.abc import Awaitable, Callable, Mapping

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

from convertrilo.errors import Issue
from convertrilo.models import StreamFinalizeRequest, StreamInitResponse
from convertrilo.sandbox.api.call import Call, Handler, Work
from convertrilo.sandbox.api.service import Service
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.files import write_stream
from convertrilo.sandbox.state.problem import Problem, invalid_body, invalid_request, not_found
from convertrilo.sandbox.state.records import CREATED, INSTANT, SUCCESS, Job
from convertrilo.sandbox.state.store import Tx

_MAX_PARTS = 10_000
_CREDENTIALS = ("authorization", "x-api-key")


# ---- presigned URLs


async def storage(service: Service, request: Request) -> Response:
    """Answer a request to a presigned URL: PUT a source, GET an output."""
    try:
        return await _storage(service, request)
    except Problem as problem:
        return JSONResponse(problem.wire, problem.status)


async def _storage(service: Service, request: Request) -> Response:
    key, query = request.path_params["key"], request.query_params
    method = "PUT" if request.method == "PUT" else "GET"
    # S3 refuses a second authentication too; here it shows a client that hands its credentials to a storage host.
    if any(name in request.headers for name in _CREDENTIALS):
        raise invalid_request("A presigned URL takes no API credentials.")
    if not service.is_signed(method, key, query.get("expires", ""), query.get("signature", "")):
        raise Problem(403, "forbidden", "The signature of the URL is not valid, or has expired.")
    job = await service.store.transaction(lambda tx: tx.job(key.split("/")[1]))
    if job is None:
        raise not_found("object")
    return await _put(service, request, job) if method == "PUT" else _get(service, job)


async def _put(service: Service, request: Request, job: Job) -> Response:
    _check_open(job)
    files, arrived = service.files, service.files.arrival()
    try:
        written = await write_stream(request.stream(), arrived, limit=service.rules.max_source_bytes)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it

    def work(tx: Tx) -> None:
        with files.moving(arrived, files.source(job.id)):
            now = tx.job(job.id)
            assert now is not None
            _source_is_there(tx, now)

    await service.store.transaction(work)
    return Response(headers={"etag": f'"{written.etag}"'})


def _get(service: Service, job: Job) -> Response:
    if job.status != SUCCESS or lifecycle.output_gone(job, service.clock.time()):
        raise lifecycle.no_output()
    path = service.worker.sample() if job.encoder == INSTANT else service.files.output(job.id)
    if not path.exists():
        raise lifecycle.no_output()
    name = job.output_filename or f"output.{job.settings['container']}"
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(path, headers={"etag": f'"{job.id}"'}, filename=name, media_type=media_type)


def _check_open(job: Job) -> None:
    if job.kind != "upload":
        raise invalid_request("The job names its source, and takes no upload.")
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already, and takes no source any more.")


def _source_is_there(tx: Tx, job: Job) -> None:
    """Note that a job has a new source, which nobody has measured, unless it has gone on without it meanwhile."""
    _check_open(job)
    tx.change_job(job, uploaded=True, duration=None)


# ---- uploads in parts


def init_stream(call: Call, tx: Tx) -> StreamInitResponse:
    """Answer `initStream`: an upload that is open already goes on."""
    job = call.job(tx)
    _check_open(job)
    tx.run("INSERT OR IGNORE INTO uploads VALUES (?, ?)", job.id, tx.ids.uuid())
    row = tx.row("SELECT id FROM uploads WHERE job = ?", job.id)
    assert row is not None
    return StreamInitResponse(ok=True, upload_id=row[0], input_key=job.input_key)


def _upload(call: Call, tx: Tx) -> Job:
    job = call.job(tx)
    _check_open(job)
    if tx.row("SELECT 1 FROM uploads WHERE job = ?", job.id) is None:
        raise _not_begun()
    return job


def _not_begun() -> Problem:
    return invalid_request("No upload in parts is open for this job.")


async def upload_chunk(call: Call) -> Work:
    """Answer `uploadChunk`; the answer's ETag goes into `finalizeStream`."""
    index = call.path["index"]
    number = int(index) if index.isascii() and index.isdigit() and len(index) < 6 else 0
    if not 1 <= number <= _MAX_PARTS:
        raise invalid_request(f"The number of a part is from 1 to {_MAX_PARTS}, not {index}.")
    service, files = call.service, call.service.files
    job, arrived = await service.store.transaction(lambda tx: _upload(call, tx)), files.arrival()
    written = await write_stream(call.chunks(), arrived, limit=service.rules.max_source_bytes)
    call.headers["etag"] = f'"{written.etag}"'

    def work(call: Call, tx: Tx) -> None:
        with files.moving(arrived, files.part(job.id, number)):
            _upload(call, tx)
            tx.run("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", job.id, number, written.etag, written.size)

    return work


async def finalize_stream(call: Call) -> Work:
    """Answer `finalizeStream`: the parts that the body lists, or all, become the source."""
    body = call.body_as(StreamFinalizeRequest)
    service, files = call.service, call.service.files

    def find(tx: Tx) -> tuple[Job, list[int]]:
        job = _upload(call, tx)
        stored = dict(tx.rows("SELECT number, etag FROM parts WHERE job = ? ORDER BY number", job.id))
        _check_parts(body, stored)
        return job, sorted(stored if body.parts is None else {part.part_number or 0 for part in body.parts})

    (job, numbers), arrived = await service.store.transaction(find), files.arrival()
    try:
        await files.join_parts(job.id, numbers, arrived)
    except FileNotFoundError:  # finalized or aborted by another request in the meantime
        raise _not_begun() from None
    call.afterwards = _drop_parts(call, job)

    def work(call: Call, tx: Tx) -> None:
        with files.moving(arrived, files.source(job.id)):
            now = _upload(call, tx)
            _close(tx, now)
            _source_is_there(tx, now)

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


async def abort_stream(call: Call) -> Work:
    """Answer `abortStream`: without an open upload there is nothing to do."""
    job = await call.service.store.transaction(call.job)
    call.afterwards = _drop_parts(call, job)
    return lambda _call, tx: _close(tx, job)


def _drop_parts(call: Call, job: Job) -> Callable[[], Awaitable[None]]:
    return lambda: anyio.to_thread.run_sync(call.service.files.drop_parts, job.id)


def _close(tx: Tx, job: Job) -> None:
    tx.run("DELETE FROM uploads WHERE job = ?", job.id)
    tx.run("DELETE FROM parts WHERE job = ?", job.id)


HANDLERS: Mapping[str, Handler] = {
    "initStream": init_stream,
    "uploadChunk": upload_chunk,
    "finalizeStream": finalize_stream,
    "abortStream": abort_stream,
}
