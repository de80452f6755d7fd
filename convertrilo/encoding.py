"""Complete encodes in one call: from a local file to a local file, and from a URL to a download URL."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.tries import Tries
from convertrilo.codec import from_request
from convertrilo.errors import (
    ConflictError,
    InvalidRequestError,
    Issue,
    OutcomeUnknownError,
    TransferError,
    ValidationError,
)
from convertrilo.models import JobCreateRequest, JobCreateResponse, OnDemandEncodeRequest, StatusResponse
from convertrilo.transfers import OnProgress, Progress, download, upload, upload_chunked
from convertrilo.transfers.multipart import has_file
from convertrilo.transfers.storage import BrokenAttempt
from convertrilo.transfers.upload import DEFAULT_CONCURRENCY, DEFAULT_PART_SIZE
from convertrilo.waiting import wait_for_job, wait_for_on_demand
from convertrilo.waiting.watch import AnyStatus, percent_of


async def encode_file(
    client: BaseClient,
    path: str | os.PathLike[str],
    request: JobCreateRequest | Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    timeout: float,
    on_progress: OnProgress | None,
    idempotency_key: str | None,
    operation: str | None,
) -> StatusResponse:
    """Encode a local file to a local file; see `AsyncClient.encode_file`."""
    body = request if isinstance(request, JobCreateRequest) else from_request(JobCreateRequest, request)
    _check_takes_upload(body)
    job = await client.create_job(body, idempotency_key=idempotency_key, operation=operation)
    status = job.status or "created"
    has_identity = any((idempotency_key, operation, body.external_id, engine_of(client)[1].operation))
    if has_identity:  # an earlier run may have created the job, which can then have any status
        status = (await client.job_status(job.job_id)).status or status
    if status == "created":
        # A file that an earlier run has uploaded is not sent again. But if the service finds no video in the file, the
        # upload may be incomplete.
        if not (has_identity and await has_file(client, job.job_id, unreadable=False)):
            await _upload(client, job, path, on_progress)
            await _approve(client, job.job_id)
        await _confirm(client, job.job_id)
    done = await wait_for_job(client, job.job_id, timeout=timeout, on_progress=telling_percent(job.job_id, on_progress))
    await download(client, done, output, on_progress=on_progress)
    return done


def _check_takes_upload(body: JobCreateRequest) -> None:
    issues = [
        Issue(name, "must not be set: encode_file uploads the file, and confirms the job after the upload")
        for name in ("source_url", "source_s3", "confirm")
        if getattr(body, name)
    ]
    if issues:
        raise ValidationError("request", issues)


async def _upload(
    client: BaseClient, job: JobCreateResponse, path: str | os.PathLike[str], on_progress: OnProgress | None
) -> None:
    """Upload the file. If the job of an earlier run has an expired upload URL, upload the file in parts."""
    try:
        await upload(client, job, path, on_progress=on_progress)
    except TransferError as error:
        if not (isinstance(error.__cause__, BrokenAttempt) and error.__cause__.is_expired):
            raise
        await upload_chunked(
            client,
            job.job_id,
            path,
            part_size=DEFAULT_PART_SIZE,
            concurrency=DEFAULT_CONCURRENCY,
            size=None,
            on_progress=on_progress,
        )


async def _approve(client: BaseClient, job_id: str) -> None:
    """Probe the file and reserve its tokens. If the outcome is unknown, `confirmJob` reserves what is missing."""
    try:
        await client.approve_unified(job_id)
    except OutcomeUnknownError:
        return


async def _confirm(client: BaseClient, job_id: str) -> None:
    """Queue a job. If the outcome is unknown, read the job's status, and try again unless it was queued."""
    engine, options = engine_of(client)
    tries = Tries(engine, options.retry)
    while True:
        tries.begin()
        try:
            await client.confirm_job(job_id)
        except (OutcomeUnknownError, InvalidRequestError, ConflictError) as error:
            if (await client.job_status(job_id)).status != "created":
                return
            if not isinstance(error, OutcomeUnknownError) or not tries.are_left:
                raise
            await tries.wait()
        else:
            return


def telling_percent(job_id: str, on_progress: OnProgress | None) -> Callable[[AnyStatus], object]:
    """Return a function that reports the percentage in a job's status to a progress callback."""

    def report(status: AnyStatus) -> None:
        if on_progress is not None:
            on_progress(Progress("encode", percent_of(status) or 0.0, 100.0, job_id))

    return report


async def on_demand_encode_and_wait(
    client: BaseClient,
    request: OnDemandEncodeRequest | Mapping[str, Any],
    *,
    timeout: float,
    on_progress: OnProgress | None,
    idempotency_key: str | None,
    operation: str | None,
) -> str:
    """Encode the video at a URL, and return the output's download URL; see `AsyncClient.on_demand_encode_and_wait`."""
    body = request if isinstance(request, OnDemandEncodeRequest) else from_request(OnDemandEncodeRequest, request)
    destinations = [
        Issue(name, "must not be set: an output delivered there has no download URL; use on_demand_encode")
        for name in ("output_s3", "output_google_drive", "output_dropbox")
        if getattr(body, name) is not None
    ]
    if destinations:
        raise ValidationError("request", destinations)
    job = await client.on_demand_encode(body, idempotency_key=idempotency_key, operation=operation)
    done = await wait_for_on_demand(
        client, job.job_id, timeout=timeout, on_progress=telling_percent(job.job_id, on_progress)
    )
    if done.download_url is None:
        raise TransferError(f"job {job.job_id} has succeeded, but its output is not available")
    return done.download_url
