"""Single jobs: creation, probing, approval, confirmation, cancellation and status."""

from collections.abc import Mapping
from typing import Any

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
from convertrilo.sandbox.api import tokens
from convertrilo.sandbox.api.accounts import from_time
from convertrilo.sandbox.api.call import Call, Handler, Work, refuse
from convertrilo.sandbox.encoding.ffmpeg import MediaError
from convertrilo.sandbox.outside.s3 import issues_of
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import Problem, invalid_request, not_found
from convertrilo.sandbox.state.records import CREATED, QUEUED, RUNNING, SUCCESS, Job, JobKind
from convertrilo.sandbox.state.store import Tx

# ---- creation


async def check_creation(
    call: Call, wire: Mapping[str, Any], settings: Mapping[str, Any], hosts: set[str] | None = None
) -> None:
    """Refuse what is wrong with a job.

    Args:
        call: the request.
        wire: the job as it is asked for.
        settings: its settings, as they hold in the end.
        hosts: hosts that need no look-up any more, for a caller with many jobs; added to.

    Raises:
        Problem: 400, with the code that says why.
    """
    issues = lifecycle.misfits(settings)
    url, s3 = wire.get("sourceUrl"), wire.get("sourceS3")
    if s3 is not None:
        issues += issues_of(s3, "sourceS3", needs_key=True)
        if url is not None:
            issues.append(Issue("sourceS3", "cannot be given together with sourceUrl"))
    elif url is None and wire.get("confirm"):
        issues.append(Issue("confirm", "needs a sourceUrl or a sourceS3: an upload is confirmed once it is there"))
    refuse(issues)
    if url is not None:
        await call.service.places.web.check_url(url, hosts)
    if s3 is not None and call.service.places.fetches:
        await call.service.places.s3.check(s3)


def make_job(call: Call, tx: Tx, body: JobCreateRequest, wire: Mapping[str, Any], settings: Mapping[str, Any]) -> Job:
    """Write a job down as `created`."""
    s3 = wire.get("sourceS3")
    job = lifecycle.new_job(
        tx,
        call,
        "upload" if body.source_url is None and s3 is None else "url",
        settings,
        lifecycle.filename_of(body.original_filename or (s3 and s3["key"]), body.source_url),
        external_id=body.external_id,
        metadata=body.metadata,
        source_url=body.source_url,
        source=s3,
    )
    tx.add_job(job)
    return job


async def create_job(call: Call) -> Work:
    """Answer `createJob`."""
    body = call.body_as(JobCreateRequest)
    settings = lifecycle.settings_of(call.wire)
    await check_creation(call, call.wire, settings)

    def work(call: Call, tx: Tx) -> JobCreateResponse:
        job = make_job(call, tx, body, call.wire, settings)
        if body.confirm:
            job = lifecycle.queue(tx, job)
        return created(call, tx, job)

    return work


def created(call: Call, tx: Tx, job: Job, **extra: str) -> JobCreateResponse:
    """Return the answer to the creation of a job."""
    upload = None
    if job.kind == "upload":
        expires_at = tx.now + call.service.rules.upload_seconds
        upload = JobUpload(url=call.service.sign(call.origin, "PUT", job.input_key, expires_at), key=job.input_key)
    price = lifecycle.quote(job)
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


async def measure(call: Call, job: Job) -> float:
    """Return the duration of a job's source in seconds, fetching it if need be.

    Raises:
        Problem: 400 if there is no source, or it is no readable video.
    """
    if job.duration is not None:
        return job.duration
    if job.kind == "upload" and not job.uploaded:
        raise invalid_request("No source has been uploaded for this job yet.")
    try:
        duration = await call.service.worker.measure(job)
    except MediaError as error:
        raise Problem(400, "probe_failed", f"The source cannot be used: {error}.") from None
    await call.service.store.transaction(
        lambda tx: tx.run("UPDATE jobs SET duration = ? WHERE id = ?", duration, job.id)
    )
    return duration


async def probe_duration(call: Call) -> Work:
    """Answer `probeDuration` and `probePublicDuration`."""
    job = await call.service.store.transaction(call.job)
    if job.ended:
        raise invalid_request(f"The job has ended ({job.status}); its source is gone.")
    duration = await measure(call, job)
    answer = ProbeDurationResponse(duration_sec=duration, duration_minutes=round(duration / 60, 4))
    return lambda _call, _tx: answer


async def approve_unified(call: Call) -> Work:
    """Answer `approveUnified`: probe, price, reserve; the job is not queued."""
    job = await call.service.store.transaction(call.job)
    _check_created(job)
    await measure(call, job)

    def work(call: Call, tx: Tx) -> ApproveUnifiedResponse:
        job = call.job(tx)
        _check_created(job)
        job = lifecycle.reconfigure(tx, job, call.wire or {})
        refuse(lifecycle.misfits(job.settings))
        job = lifecycle.reserve_price(tx, job)
        return ApproveUnifiedResponse(
            ok=True,
            estimate=ApproveEstimate(
                per_minute_neu=tokens.per_minute(job.settings),
                duration_sec=job.duration,
                total_neu=job.price,
                reserved=job.reserved,
            ),
        )

    return work


def _check_created(job: Job) -> None:
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already; only a created job can be approved.")


def confirm_job(call: Call, tx: Tx) -> ConfirmResponse:
    """Answer `confirmJob` and `confirmPublicJob`."""
    confirm(call, tx, call.path["id"], call.wire or {})
    return ConfirmResponse(ok=True)


def confirm(call: Call, tx: Tx, job_id: str, settings: Mapping[str, Any]) -> Job:
    """Queue a job with its last settings."""
    job = call.job(tx, job_id)
    if job.status == CREATED:
        job = lifecycle.reconfigure(tx, job, settings)
        refuse(lifecycle.misfits(job.settings))
    return lifecycle.queue(tx, job)


def cancel_job(call: Call, tx: Tx) -> None:
    """Answer `cancelJob`: a job that is running or has ended stays as it is."""
    job = call.job(tx)
    if job.status in (CREATED, QUEUED):
        lifecycle.cancel(tx, job)


# ---- status


def status(call: Call, tx: Tx, job: Job) -> StatusResponse:
    """Return where a job stands."""
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
        created_at=from_time(job.created_at),
        started_at=from_time(job.started_at),
        finished_at=from_time(job.finished_at),
        failure_message=job.failure_message,
    )


def progress(call: Call, job: Job) -> float:
    """Return how far a job is, in percent."""
    if job.status == RUNNING:
        return call.service.worker.percent(job.id)
    return 100.0 if job.status == SUCCESS else 0.0


def download_url(call: Call, tx: Tx, job: Job) -> str | None:
    """Return a signed URL of a job's output, if there is one."""
    if job.status != SUCCESS or lifecycle.output_gone(job, tx.now):
        return None
    if job.output_expiry is None:
        expires_at = tx.now + call.service.rules.download_seconds
    else:
        expires_at = (job.finished_at or tx.now) + job.output_expiry
    return call.service.sign(call.origin, "GET", job.output_key, expires_at)


def job_status(call: Call, tx: Tx) -> StatusResponse:
    """Answer `jobStatus`."""
    job = call.job(tx)
    if job.kind == "ondemand" and not call.service.rules.bulk_status_on_demand:
        raise not_found()
    return status(call, tx, job)


# ---- public jobs


async def create_public_job(call: Call) -> Work:
    """Answer `createPublicJob`; the further field `token` lets its reader ask for the status."""
    settings = lifecycle.settings_of(call.wire)
    url: str | None = call.wire.get("sourceUrl")
    await check_creation(call, {"sourceUrl": url}, settings)

    def work(call: Call, tx: Tx) -> JobCreateResponse:
        token, name = tx.ids.secret(), lifecycle.filename_of(None, url)
        kind: JobKind = "upload" if url is None else "url"
        job = lifecycle.new_job(tx, call, kind, settings, name, source_url=url, token=token)
        tx.add_job(job)
        return created(call, tx, job, token=token)

    return work


def public_job_status(call: Call, tx: Tx) -> StatusResponse:
    """Answer `publicJobStatus`: with a wrong token there is no such job."""
    job = call.job(tx)
    if job.token is None or not call.service.same(job.token, call.query["token"]):
        raise not_found()
    return status(call, tx, job)


HANDLERS: Mapping[str, Handler] = {
    "createJob": create_job,
    "probeDuration": probe_duration,
    "approveUnified": approve_unified,
    "confirmJob": confirm_job,
    "cancelJob": cancel_job,
    "jobStatus": job_status,
    "createPublicJob": create_public_job,
    "probePublicDuration": probe_duration,
    "confirmPublicJob": confirm_job,
    "publicJobStatus": public_job_status,
}
