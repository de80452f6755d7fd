"""On-demand jobs: encoded from an address in one request, priced with a multiplier, cancelled at any time."""

from collections.abc import Mapping

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
from convertrilo.sandbox.api import jobs, tokens
from convertrilo.sandbox.api.accounts import from_time
from convertrilo.sandbox.api.call import Call, Handler, Work, refuse
from convertrilo.sandbox.outside.s3 import issues_of
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import Problem, not_found
from convertrilo.sandbox.state.records import SUCCESS, Job
from convertrilo.sandbox.state.store import Tx

OUTPUT_SECONDS = 86_400
"""For how long an on-demand job's output stays unless the job says otherwise."""


async def on_demand_encode(call: Call) -> Work:
    """Answer `onDemandEncode`: the source is looked at, its tokens reserved, the job queued."""
    body = call.body_as(OnDemandEncodeRequest)
    refuse_dropbox(call, body.output_dropbox)
    settings = lifecycle.settings_of(call.wire, {"quality": "better"})
    s3, drive = call.wire.get("outputS3"), call.wire.get("outputGoogleDrive")
    issues = lifecycle.misfits(settings)
    if s3 is not None:
        issues += issues_of(s3, "outputS3", needs_key=True)
        if drive is not None:
            issues.append(Issue("outputGoogleDrive", "cannot be given together with outputS3"))
    refuse(issues)
    places = call.service.places
    if s3 is not None:
        await places.s3.check(s3)
    if drive is not None:
        await places.drive.check(drive)
    await places.web.check_url(body.source_url)
    duration = await places.web.look(body.source_url)
    filename = lifecycle.filename_of(None, body.source_url)

    def work(call: Call, tx: Tx) -> OnDemandEncodeResponse:
        job = lifecycle.new_job(
            tx,
            call,
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
            destination=s3 if drive is None else {"fileName": lifecycle.output_name(filename, settings), **drive},
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
        destination=_destination(job) if job.status == SUCCESS else None,
        created_at=from_time(job.created_at),
        started_at=from_time(job.started_at),
        finished_at=from_time(job.finished_at),
        failure_message=job.failure_message,
    )


def _destination(job: Job) -> OnDemandDestination:
    place = job.destination
    if place is None:
        return OnDemandDestination(type="cdn")
    if "bucket" in place:
        return OnDemandDestination(type="s3", bucket=place["bucket"], key=place["key"])
    return OnDemandDestination(type="google-drive", folder_id=place["folderId"], file_name=place["fileName"])


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


def refuse_dropbox(call: Call, *places: Model | None) -> None:
    """Refuse a request that names a place in Dropbox.

    Raises:
        Problem: 410 `deprecated_dropbox`, or 401 `dropbox_not_connected` by the rules.
    """
    if any(place is not None for place in places):
        if call.service.rules.dropbox == "not_connected":
            raise Problem(401, "dropbox_not_connected", "There is no Dropbox connected to this account.")
        raise Problem(410, "deprecated_dropbox", "Dropbox is no longer offered.")


HANDLERS: Mapping[str, Handler] = {
    "onDemandEncode": on_demand_encode,
    "onDemandStatus": on_demand_status,
    "onDemandCancel": on_demand_cancel,
}
