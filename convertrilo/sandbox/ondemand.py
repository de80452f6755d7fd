"""On-demand jobs: encoded from an address in one request, priced with a multiplier, cancelled at any time."""

from collections.abc import Mapping

from convertrilo.errors import Issue
from convertrilo.models import (
    OnDemandCancelResponse,
    OnDemandDestination,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    OnDemandFolderIngestRequest,
    OnDemandPricing,
    OnDemandStatusResponse,
)
from convertrilo.sandbox import jobs, lifecycle, tokens
from convertrilo.sandbox.accounts import from_time
from convertrilo.sandbox.call import Call, Handler, Work, refuse
from convertrilo.sandbox.problem import Problem, not_found, not_yet
from convertrilo.sandbox.records import SUCCESS, Job
from convertrilo.sandbox.store import Tx

_EXPIRY = 86_400


async def on_demand_encode(call: Call) -> Work:
    """Answer `onDemandEncode`: the source is looked at, its tokens reserved, the job queued."""
    body = call.body_as(OnDemandEncodeRequest)
    if body.output_dropbox is not None:
        raise _no_dropbox()
    settings = lifecycle.settings_of(call.wire, {"quality": "better"})
    refuse(lifecycle.misfits(settings))
    if body.output_s3 is not None:
        raise not_yet("writing outputs to S3")
    if body.output_google_drive is not None:
        raise not_yet("writing outputs to Google Drive")
    await call.service.sources.check_url(body.source_url)
    duration = await call.service.sources.look(body.source_url)

    def work(call: Call, tx: Tx) -> OnDemandEncodeResponse:
        job = lifecycle.new_job(
            tx,
            call,
            "ondemand",
            settings,
            lifecycle.filename_of(None, body.source_url),
            external_id=body.external_id,
            metadata=body.metadata,
            source_url=body.source_url,
            duration=duration,
            high_priority=body.priority == "high",
            output_expiry=_EXPIRY if body.output_expiry is None else body.output_expiry,
            webhook=body.webhook,
        )
        tx.add_job(job)
        return _taken(call, lifecycle.queue(tx, job))

    return work


def _taken(call: Call, job: Job) -> OnDemandEncodeResponse:
    base, factor = tokens.per_minute(job.settings), tokens.multiplier(high_priority=job.high_priority)
    return OnDemandEncodeResponse(
        job_id=job.id,
        external_id=job.external_id,
        metadata=job.metadata,
        source_filename=job.source_filename,
        output_filename=job.output_filename,
        status=job.status,
        estimated_duration=round(tokens.NOMINAL_DURATION if job.duration is None else job.duration),
        pricing=OnDemandPricing(
            base_per_minute=base,
            on_demand_per_minute=base * factor,
            multiplier=factor,
            total_neu=job.price,
            reserved=job.reserved,
        ),
        status_url=f"{call.origin}/ondemand/status/{job.id}",
        webhook=job.webhook,
    )


def on_demand_status(call: Call, tx: Tx) -> OnDemandStatusResponse:
    """Answer `onDemandStatus`."""
    job = _job(call, tx)
    url = jobs.download_url(call, tx, job)
    expires_in = None
    if url is not None and job.finished_at is not None and job.output_expiry is not None:
        expires_in = int(job.finished_at + job.output_expiry - tx.now)
    return OnDemandStatusResponse(
        job_id=job.id,
        external_id=job.external_id,
        metadata=job.metadata,
        source_filename=job.source_filename,
        output_filename=job.output_filename,
        status=job.status,
        progress=jobs.progress(call, job),
        encoder=job.encoder,
        download_url=url,
        expires_in=expires_in,
        destination=OnDemandDestination(type="cdn") if job.status == SUCCESS else None,
        created_at=from_time(job.created_at),
        started_at=from_time(job.started_at),
        finished_at=from_time(job.finished_at),
        failure_message=job.failure_message,
    )


def on_demand_cancel(call: Call, tx: Tx) -> OnDemandCancelResponse:
    """Answer `onDemandCancel`: a running encode ends too; a job that has ended stays as it is."""
    job = _job(call, tx)
    if job.ended:
        return OnDemandCancelResponse(ok=True, released=0)
    lifecycle.cancel(tx, job)
    return OnDemandCancelResponse(ok=True, released=job.reserved)


def _job(call: Call, tx: Tx) -> Job:
    job = call.job(tx, call.path["jobId"])
    if job.kind != "ondemand":
        raise not_found()
    return job


def _no_dropbox() -> Problem:
    return Problem(410, "deprecated_dropbox", "Dropbox is no longer offered.")


async def on_demand_ingest_folder(call: Call) -> Work:
    """Answer `onDemandIngestFolder`: what can be refused is refused; listing folders is not there yet."""
    body = call.body_as(OnDemandFolderIngestRequest)
    if body.source_dropbox is not None or body.output_dropbox is not None:
        raise _no_dropbox()
    refuse(lifecycle.misfits(lifecycle.settings_of(call.wire)))
    if (body.source_s3 is None) == (body.source_google_drive is None):
        refuse([Issue("sourceS3", "is required, or sourceGoogleDrive is, and not both")])
    drive = body.source_google_drive or body.output_google_drive
    if drive is not None and drive.access_token is None and drive.refresh_token is None:
        raise Problem(401, "google_drive_not_connected", "There is no valid Google Drive token.")
    raise not_yet("listing folders in S3 or Google Drive")


HANDLERS: Mapping[str, Handler] = {
    "onDemandEncode": on_demand_encode,
    "onDemandIngestFolder": on_demand_ingest_folder,
    "onDemandStatus": on_demand_status,
    "onDemandCancel": on_demand_cancel,
}
