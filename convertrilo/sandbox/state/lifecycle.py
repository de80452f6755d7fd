"""The lifecycle of a job: the only module that changes a job's status and settles its tokens."""

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from convertrilo.sandbox.state import books
from convertrilo.sandbox.state.filenames import output_name
from convertrilo.sandbox.state.problem import Problem, invalid_request
from convertrilo.sandbox.state.records import (
    CANCELED,
    CREATED,
    CREDENTIALS,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCESS,
    Job,
    JobKind,
)
from convertrilo.sandbox.state.settings import settings_of
from convertrilo.sandbox.state.store import Tx


class JobFields(TypedDict, total=False):
    """The optional fields of a new job."""

    external_id: str | None
    metadata: Mapping[str, Any] | None
    source_url: str | None
    source: Mapping[str, Any] | None
    destination: Mapping[str, Any] | None
    duration: float | None
    high_priority: bool
    output_expiry: int | None
    webhook: str | None
    token: str | None


def new_job(
    tx: Tx,
    kind: JobKind,
    settings: Mapping[str, Any],
    source_filename: str | None,
    *,
    account: str | None,
    idempotency_key: str | None,
    **fields: Unpack[JobFields],
) -> Job:
    """Return a new job, which `tx.add_job` stores."""
    return Job(
        id=tx.ids.uuid(),
        account=account,
        kind=kind,
        idempotency_key=idempotency_key,
        settings=settings,
        status=CREATED,
        created_at=tx.now,
        source_filename=source_filename,
        output_filename=output_name(source_filename, settings) if source_filename else None,
        **fields,
    )


def reconfigure(tx: Tx, job: Job, wire: Mapping[str, Any]) -> Job:
    """Change the settings of a job that is not queued yet to those of a request body."""
    settings = settings_of(wire, job.settings)
    if settings == job.settings:
        return job
    name = output_name(job.source_filename, settings) if job.source_filename else None
    return tx.change_job(job, settings=settings, output_filename=name)


def reserve_price(tx: Tx, job: Job, **changes: Any) -> Job:
    """Reserve exactly the price of a job, and store further `changes` with the reservation."""
    price = books.quote(job)
    if job.reserved > price:
        reserved = books.release(tx, job, job.reserved - price)
    else:
        reserved = books.reserve(tx, job, price - job.reserved)
    return tx.change_job(job, price=price, reserved=reserved, **changes)


def queue(tx: Tx, job: Job) -> Job:
    """Queue a created job, reserving its price unless it is reserved already.

    Raises:
        Problem: the job is no longer `created`, lacks its upload, or costs more than is available.
    """
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already; only a created job can be confirmed.")
    if job.kind == "upload" and not job.uploaded:
        raise invalid_request("No source has been uploaded for this job yet.")
    if job.price is None or job.reserved < job.price:
        return reserve_price(tx, job, status=QUEUED, queued_at=tx.now)
    return tx.change_job(job, status=QUEUED, queued_at=tx.now)


def start(tx: Tx, job: Job, encoder: str | None) -> Job:
    """Mark a job as running."""
    return tx.change_job(job, status=RUNNING, started_at=tx.now, encoder=encoder)


def succeed(tx: Tx, job: Job, *, output_size: int, duration: float) -> Job:
    """Mark a job as successful: spend its price and release the rest of its reservation."""
    paid = min(job.reserved, job.price or 0)
    books.spend(tx, job, paid, released=job.reserved - paid)
    return tx.change_job(
        job,
        status=SUCCESS,
        finished_at=tx.now,
        output_size=output_size,
        duration=duration,
        reserved=0,
        spent=job.spent + paid,
        **_without_credentials(job),
    )


def fail(tx: Tx, job: Job, message: str) -> Job:
    """Mark a job as failed and release its tokens."""
    reserved = books.release(tx, job, job.reserved)
    changes = {"status": FAILED, "finished_at": tx.now, "failure_message": message, **_without_credentials(job)}
    return tx.change_job(job, reserved=reserved, **changes)


def cancel(tx: Tx, job: Job) -> Job:
    """Mark a job as canceled and release its tokens."""
    reserved = books.release(tx, job, job.reserved)
    return tx.change_job(job, status=CANCELED, finished_at=tx.now, reserved=reserved, **_without_credentials(job))


def _without_credentials(job: Job) -> dict[str, Any]:
    """Return the job's source and destination without credentials, which an ended job no longer needs."""
    places = {"source": job.source, "destination": job.destination}
    return {
        field: {name: value for name, value in place.items() if name not in CREDENTIALS}
        for field, place in places.items()
        if place is not None
    }


def output_gone(job: Job, now: float) -> bool:
    """Return whether a job's output has expired or was delivered to the job's destination."""
    if job.destination is not None:
        return True
    return job.output_expiry is not None and (job.finished_at or now) + job.output_expiry <= now


def no_output() -> Problem:
    """Return the response to a request for an output that does not exist."""
    return Problem(404, "output_not_available", "The job has no output, or it has expired.")
