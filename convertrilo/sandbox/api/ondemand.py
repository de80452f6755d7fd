"""Handlers of on-demand jobs: encoded from a URL in one request, priced with a multiplier, canceled at any time."""

from collections.abc import Mapping

from convertrilo import operations
from convertrilo._model import Model
from convertrilo.errors import Issue
from convertrilo.models import (
    OnDemandCancelResponse,
    OnDemandDestination,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    OnDemandPricing,
    OnDemandStatusResponse,
)
from convertrilo.sandbox.api import jobs
from convertrilo.sandbox.api.call import ApiCall, Handler, Work, refuse
from convertrilo.sandbox.outside.s3 import place_issues
from convertrilo.sandbox.state import books, lifecycle
from convertrilo.sandbox.state.clock import to_datetime
from convertrilo.sandbox.state.filenames import output_name, source_name
from convertrilo.sandbox.state.problem import Problem, not_found
from convertrilo.sandbox.state.records import SUCCESS, Job
from convertrilo.sandbox.state.settings import settings_issues, settings_of
from convertrilo.sandbox.state.store import Tx

OUTPUT_SECONDS = 86_400
"""The default lifetime of an on-demand job's output."""


async def on_demand_encode(call: ApiCall) -> Work:
    """Answer `onDemandEncode`: check the source, reserve the price, queue the job."""
    body = call.body_as(OnDemandEncodeRequest)
    refuse_dropbox(call, body.output_dropbox)
    settings = settings_of(call.wire, {"quality": "better"})
    s3, drive = call.wire.get("outputS3"), call.wire.get("outputGoogleDrive")
    issues = settings_issues(settings)
    if s3 is not None:
        issues += place_issues(s3, "outputS3", needs_key=True)
        if drive is not None:
            issues.append(Issue("outputGoogleDrive", "cannot be given together with outputS3"))
    refuse(issues)
    places = call.backend.places
    if s3 is not None:
        await places.s3.check(s3)
    if drive is not None:
        await places.drive.check(drive)
    await places.web.check_url(body.source_url)
    duration = await places.web.estimate_duration(body.source_url)
    filename = source_name(None, body.source_url)

    def work(call: ApiCall, tx: Tx) -> OnDemandEncodeResponse:
        job = call.new_job(
            tx,
            "ondemand",
            settings,
            filename,
            external_id=body.external_id,
            metadata=body.metadata,
            source_url=body.source_url,
            duration=duration,
            high_priority=body.priority == "high",
            output_expiry=OUTPUT_SECONDS if body.output_expiry is None else body.output_expiry,
            webhook=body.webhook,
            destination=s3 if drive is None else {"fileName": output_name(filename, settings), **drive},
        )
        tx.add_job(job)
        return _accepted(call, lifecycle.queue(tx, job))

    return work


def _accepted(call: ApiCall, job: Job) -> OnDemandEncodeResponse:
    base, factor = books.per_minute(job.settings), books.multiplier(high_priority=job.high_priority)
    return OnDemandEncodeResponse(
        job_id=job.id,
        external_id=job.external_id,
        metadata=job.metadata,
        source_filename=job.source_filename,
        output_filename=job.output_filename,
        status=job.status,
        estimated_duration=round(books.NOMINAL_DURATION if job.duration is None else job.duration),
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


def on_demand_status(call: ApiCall, tx: Tx) -> OnDemandStatusResponse:
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
        destination=_destination(job) if job.status == SUCCESS else None,
        created_at=to_datetime(job.created_at),
        started_at=to_datetime(job.started_at),
        finished_at=to_datetime(job.finished_at),
        failure_message=job.failure_message,
    )


def _destination(job: Job) -> OnDemandDestination:
    place = job.destination
    if place is None:
        return OnDemandDestination(type="cdn")
    if "bucket" in place:
        return OnDemandDestination(type="s3", bucket=place["bucket"], key=place["key"])
    return OnDemandDestination(type="google-drive", folder_id=place["folderId"], file_name=place["fileName"])


def on_demand_cancel(call: ApiCall, tx: Tx) -> OnDemandCancelResponse:
    """Answer `onDemandCancel`: stop a running encode, too; a job that has ended is left unchanged."""
    job = _job(call, tx)
    if job.ended:
        return OnDemandCancelResponse(ok=True, released=0)
    lifecycle.cancel(tx, job)
    return OnDemandCancelResponse(ok=True, released=job.reserved)


def _job(call: ApiCall, tx: Tx) -> Job:
    job = call.job(tx, call.path["jobId"])
    if job.kind != "ondemand":
        raise not_found()
    return job


def refuse_dropbox(call: ApiCall, *places: Model | None) -> None:
    """Refuse a request with a source or destination in Dropbox.

    Raises:
        Problem: 410 `deprecated_dropbox`, or 401 `dropbox_not_connected`, depending on the rules.
    """
    if any(place is not None for place in places):
        if call.backend.rules.dropbox == "not_connected":
            raise Problem(401, "dropbox_not_connected", "No Dropbox is connected to this account.")
        raise Problem(410, "deprecated_dropbox", "Dropbox is no longer supported.")


HANDLERS: Mapping[str, Handler] = {
    operations.ON_DEMAND_ENCODE.id: on_demand_encode,
    operations.ON_DEMAND_STATUS.id: on_demand_status,
    operations.ON_DEMAND_CANCEL.id: on_demand_cancel,
}
