"""The sandbox's storage behind presigned URLs: PUT a source, GET an output."""

import mimetypes

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

from convertrilo.sandbox.api import uploads
from convertrilo.sandbox.api.backend import Backend
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import Problem, invalid_request, not_found
from convertrilo.sandbox.state.records import INSTANT, SUCCESS, Job
from convertrilo.sandbox.state.store import Tx
from convertrilo.sandbox.state.streams import write_stream

_CREDENTIALS = ("authorization", "x-api-key")


async def answer(backend: Backend, request: Request) -> Response:
    """Answer a request to a presigned URL: PUT a source, GET an output."""
    try:
        return await _answer(backend, request)
    except Problem as problem:
        return JSONResponse(problem.wire, problem.status)


async def _answer(backend: Backend, request: Request) -> Response:
    key, query = request.path_params["key"], request.query_params
    method = "PUT" if request.method == "PUT" else "GET"
    # S3 refuses a second authentication, too. Here, the refusal reveals a client that leaks credentials to storage.
    if any(name in request.headers for name in _CREDENTIALS):
        raise invalid_request("A request to a presigned URL must not carry API credentials.")
    if not backend.is_signed(method, key, query.get("expires", ""), query.get("signature", "")):
        raise Problem(403, "forbidden", "The signature of the URL is not valid, or has expired.")
    job = await backend.store.transaction(lambda tx: tx.job(key.split("/")[1]))
    if job is None:
        raise not_found("object")
    return await _put(backend, request, job) if method == "PUT" else _get(backend, job)


async def _put(backend: Backend, request: Request, job: Job) -> Response:
    uploads.check_open(job)
    files, received = backend.files, backend.files.arrival()
    try:
        written = await write_stream(request.stream(), received, limit=backend.rules.max_source_bytes)
    except ClientDisconnect:
        return Response(status_code=400)  # not received: the client is gone

    def work(tx: Tx) -> None:
        with files.moving(received, files.source(job.id)):
            now = tx.job(job.id)
            assert now is not None
            uploads.mark_uploaded(tx, now)

    await backend.store.transaction(work)
    return Response(headers={"etag": f'"{written.etag}"'})


def _get(backend: Backend, job: Job) -> Response:
    if job.status != SUCCESS or lifecycle.output_gone(job, backend.clock.time()):
        raise lifecycle.no_output()
    path = backend.encoder.sample() if job.encoder == INSTANT else backend.files.output(job.id)
    if not path.exists():
        raise lifecycle.no_output()
    name = job.output_filename or f"output.{job.settings['container']}"
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(path, headers={"etag": f'"{job.id}"'}, filename=name, media_type=media_type)
