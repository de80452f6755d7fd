"""Handlers of single jobs: creation, probing, approval, confirmation, cancellation and status."""

from collections.abc import Mapping
from typing import Any

from convertrilo import operations
from convertrilo.errors import Issue
from convertrilo.models import (
    ApproveEstimate,
    ApproveUnifiedResponse,
    ConfirmResponse,
    JobCreateRequest,
    JobCreateResponse,
    JobEstimate,
    JobOutput,
    JobUpload,
    ProbeDurationResponse,
    StatusResponse,
)
from convertrilo.sandbox.api.backend import is_same_secret
from convertrilo.sandbox.api.call import ApiCall, Handler, Work, refuse
from convertrilo.sandbox.outside.s3 import place_issues
from convertrilo.sandbox.state import books, lifecycle
from convertrilo.sandbox.state.clock import to_datetime
from convertrilo.sandbox.state.filenames import source_name
from convertrilo.sandbox.state.problem import MediaError, Problem, invalid_request, not_found
from convertrilo.sandbox.state.records import CREATED, QUEUED, RUNNING, SUCCESS, Job, JobKind
from convertrilo.sandbox.state.settings import settings_issues, settings_of
from convertrilo.sandbox.state.store import Tx

# ---- creation


async def check_creation(
    call: ApiCall, wire: Mapping[str, Any], settings: Mapping[str, Any], hosts: set[str] | None = None
) -> None:
    """Check that a job may be created.

    Args:
        call: the request.
        wire: the job as requested.
        settings: the job's merged settings.
        hosts: hosts of earlier jobs, which need no second look-up; the job's host is added.

    Raises:
        Problem: 400, with the code of the reason.
    """
    issues = settings_issues(settings)
    url, s3 = wire.get("sourceUrl"), wire.get("sourceS3")
    if s3 is not None:
        issues += place_issues(s3, "sourceS3", needs_key=True)
        if url is not None:
            issues.append(Issue("sourceS3", "cannot be given together with sourceUrl"))
    elif url is None and wire.get("confirm"):
        issues.append(
            Issue("confirm", "needs a sourceUrl or a sourceS3; other jobs can be confirmed only after their upload")
        )
    refuse(issues)
    if url is not None:
        await call.backend.places.web.check_url(url, hosts)
    if s3 is not None and call.backend.places.fetches:
        await call.backend.places.s3.check(s3)


def make_job(
    call: ApiCall, tx: Tx, body: JobCreateRequest, wire: Mapping[str, Any], settings: Mapping[str, Any]
) -> Job:
    """Store a new job with the status `created`."""
    s3 = wire.get("sourceS3")
    job = call.new_job(
        tx,
        "upload" if body.source_url is None and s3 is None else "url",
        settings,
        source_name(body.original_filename or (s3 and s3["key"]), body.source_url),
        external_id=body.external_id,
        metadata=body.metadata,
        source_url=body.source_url,
        source=s3,
    )
    tx.add_job(job)
    return job


async def create_job(call: ApiCall) -> Work:
    """Answer `createJob`."""
    body = call.body_as(JobCreateRequest)
    settings = settings_of(call.wire)
    await check_creation(call, call.wire, settings)

    def work(call: ApiCall, tx: Tx) -> JobCreateResponse:
        job = make_job(call, tx, body, call.wire, settings)
        if body.confirm:
            job = lifecycle.queue(tx, job)
        return created(call, tx, job)

    return work


def created(call: ApiCall, tx: Tx, job: Job, **extra: str) -> JobCreateResponse:
    """Return the response to the creation of a job."""
    upload = None
    if job.kind == "upload":
        expires_at = tx.now + call.backend.rules.upload_seconds
        upload = JobUpload(url=call.backend.sign(call.origin, "PUT", job.input_key, expires_at), key=job.input_key)
    price = books.quote(job)
    return JobCreateResponse(
        job_id=job.id,
        external_id=job.external_id,
        metadata=job.metadata,
        source_filename=job.source_filename,
        output_filename=job.output_filename,
        status=job.status if job.status != CREATED else None,
        upload=upload,
        output=JobOutput(key=job.output_key),
        estimate=JobEstimate(neu=price, total_neu=price, reserved=job.reserved),
        extra=extra,
    )


# ---- from the source to the queue


async def measure(call: ApiCall, job: Job) -> float:
    """Return the duration of a job's source in seconds, fetching the source if necessary.

    Raises:
        Problem: 400 if there is no source, or if the source is not a readable video.
    """
    if job.duration is not None:
        return job.duration
    if job.kind == "upload" and not job.uploaded:
        raise invalid_request("No source has been uploaded for this job yet.")
    try:
        duration = await call.backend.encoder.measure(job)
    except MediaError as error:
        raise Problem(400, "probe_failed", f"The source cannot be used: {error}.") from None
    await call.backend.store.transaction(
        lambda tx: tx.run("UPDATE jobs SET duration = ? WHERE id = ?", duration, job.id)
    )
    return duration


async def probe_duration(call: ApiCall) -> Work:
    """Answer `probeDuration` and `probePublicDuration`."""
    job = await call.backend.store.transaction(call.job)
    if job.ended:
        raise invalid_request(f"The job has ended ({job.status}); its source is gone.")
    duration = await measure(call, job)
    answer = ProbeDurationResponse(duration_sec=duration, duration_minutes=round(duration / 60, 4))
    return lambda _call, _tx: answer


async def approve_unified(call: ApiCall) -> Work:
    """Answer `approveUnified`: probe the source, reserve the price; the job is not queued."""
    job = await call.backend.store.transaction(call.job)
    _check_created(job)
    await measure(call, job)

    def work(call: ApiCall, tx: Tx) -> ApproveUnifiedResponse:
        job = call.job(tx)
        _check_created(job)
        job = lifecycle.reconfigure(tx, job, call.wire or {})
        refuse(settings_issues(job.settings))
        job = lifecycle.reserve_price(tx, job)
        return ApproveUnifiedResponse(
            ok=True,
            estimate=ApproveEstimate(
                per_minute_neu=books.per_minute(job.settings),
                duration_sec=job.duration,
                total_neu=job.price,
                reserved=job.reserved,
            ),
        )

    return work


def _check_created(job: Job) -> None:
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already; only a created job can be approved.")


def confirm_job(call: ApiCall, tx: Tx) -> ConfirmResponse:
    """Answer `confirmJob` and `confirmPublicJob`."""
    confirm(call, tx, call.path["id"], call.wire or {})
    return ConfirmResponse(ok=True)


def confirm(call: ApiCall, tx: Tx, job_id: str, settings: Mapping[str, Any]) -> Job:
    """Queue a job after applying its final settings."""
    job = call.job(tx, job_id)
    if job.status == CREATED:
        job = lifecycle.reconfigure(tx, job, settings)
        refuse(settings_issues(job.settings))
    return lifecycle.queue(tx, job)


def cancel_job(call: ApiCall, tx: Tx) -> None:
    """Answer `cancelJob`; a job that is running or has ended is left unchanged."""
    job = call.job(tx)
    if job.status in (CREATED, QUEUED):
        lifecycle.cancel(tx, job)


# ---- status


def status(call: ApiCall, tx: Tx, job: Job) -> StatusResponse:
    """Return the status of a job."""
    succeeded = job.status == SUCCESS
    return StatusResponse(
        id=job.id,
        external_id=job.external_id,
        metadata=job.metadata,
        source_filename=job.source_filename,
        output_filename=job.output_filename,
        status=job.status,
        ingest=None if job.kind == "upload" else ("done" if job.uploaded or succeeded else "pending"),
        output=JobOutput(key=job.output_key) if succeeded else None,
        download_url=download_url(call, tx, job),
        encoder=job.encoder,
        pct=progress(call, job),
        created_at=to_datetime(job.created_at),
        started_at=to_datetime(job.started_at),
        finished_at=to_datetime(job.finished_at),
        failure_message=job.failure_message,
    )


def progress(call: ApiCall, job: Job) -> float:
    """Return the progress of a job in percent."""
    if job.status == RUNNING:
        return call.backend.worker.percent(job.id)
    return 100.0 if job.status == SUCCESS else 0.0


def download_url(call: ApiCall, tx: Tx, job: Job) -> str | None:
    """Return a presigned URL of a job's output, or None if there is no output to download."""
    if job.status != SUCCESS or lifecycle.output_gone(job, tx.now):
        return None
    if job.output_expiry is None:
        expires_at = tx.now + call.backend.rules.download_seconds
    else:
        expires_at = (job.finished_at or tx.now) + job.output_expiry
    return call.backend.sign(call.origin, "GET", job.output_key, expires_at)


def job_status(call: ApiCall, tx: Tx) -> StatusResponse:
    """Answer `jobStatus`."""
    job = call.job(tx)
    if job.kind == "ondemand" and not call.backend.rules.bulk_status_on_demand:
        raise not_found()
    return status(call, tx, job)


# ---- public jobs


async def create_public_job(call: ApiCall) -> Work:
    """Answer `createPublicJob`; the extra field `token` grants access to the job's status."""
    settings = settings_of(call.wire)
    url: str | None = call.wire.get("sourceUrl")
    await check_creation(call, {"sourceUrl": url}, settings)

    def work(call: ApiCall, tx: Tx) -> JobCreateResponse:
        token, name = tx.ids.secret(), source_name(None, url)
        kind: JobKind = "upload" if url is None else "url"
        job = call.new_job(tx, kind, settings, name, source_url=url, token=token)
        tx.add_job(job)
        return created(call, tx, job, token=token)

    return work


def public_job_status(call: ApiCall, tx: Tx) -> StatusResponse:
    """Answer `publicJobStatus`; with a wrong token the job is not found."""
    job = call.job(tx)
    if job.token is None or not is_same_secret(job.token, call.query["token"]):
        raise not_found()
    return status(call, tx, job)


HANDLERS: Mapping[str, Handler] = {
    operations.CREATE_JOB.id: create_job,
    operations.PROBE_DURATION.id: probe_duration,
    operations.APPROVE_UNIFIED.id: approve_unified,
    operations.CONFIRM_JOB.id: confirm_job,
    operations.CANCEL_JOB.id: cancel_job,
    operations.JOB_STATUS.id: job_status,
    operations.CREATE_PUBLIC_JOB.id: create_public_job,
    operations.PROBE_PUBLIC_DURATION.id: probe_duration,
    operations.CONFIRM_PUBLIC_JOB.id: confirm_job,
    operations.PUBLIC_JOB_STATUS.id: public_job_status,
}
