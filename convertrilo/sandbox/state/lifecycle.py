"""A job's way from `created` to its end: the only place where its status changes and its tokens are settled."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from convertrilo._model import Model
from convertrilo.codec import from_request
from convertrilo.errors import Issue, ValidationError
from convertrilo.models import ConfirmRequest, JobCreateRequest
from convertrilo.sandbox.api import tokens
from convertrilo.sandbox.api.call import Call
from convertrilo.sandbox.encoding.ffmpeg import unsupported
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
from convertrilo.sandbox.state.store import Tx

_DEFAULTS: Mapping[str, Any] = {
    "codec": "h264",
    "resolution": "1080p",
    "fps": 30,
    "container": "mp4",
    "preset": "fast",
    "bitrateTier": "medium",
    "passes": 1,
    "policy": "gpu_first",
    "quality": None,
    "optimize": None,
    "vmafTarget": None,
}
_MAX_NAME = 200
_CHECKED_AS: Mapping[type[Model], tuple[str, ...]] = {
    JobCreateRequest: ("codec", "resolution", "fps", "container", "preset", "bitrateTier", "passes", "policy"),
    ConfirmRequest: ("quality", "optimize", "vmafTarget"),  # the widest bounds that the contract has for a target
}


def settings_of(*wires: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that requests in the wire's shape hold together; the first to set one wins."""
    settings = dict(_DEFAULTS)
    for wire in reversed(wires):
        settings.update({name: wire[name] for name in _DEFAULTS if wire.get(name) is not None})
    return settings


def misfits(settings: Mapping[str, Any]) -> list[Issue]:
    """Return what is wrong with settings as a whole: requests may bring some that their operation does not have."""
    issues: list[Issue] = []
    for model, names in _CHECKED_AS.items():
        try:
            from_request(model, {name: settings[name] for name in names if settings[name] is not None})
        except ValidationError as error:
            issues += error.issues
    wrong = {issue.path for issue in issues}
    if not wrong & {"codec", "container"} and (problem := unsupported(settings["codec"], settings["container"])):
        issues.insert(0, Issue("container", problem))
    return issues


def new_job(
    tx: Tx, call: Call, kind: JobKind, settings: Mapping[str, Any], source_filename: str | None, **values: Any
) -> Job:
    """Return a job that `tx.add_job` writes down."""
    return Job(
        id=tx.ids.uuid(),
        account=call.account_id,
        kind=kind,
        idempotency_key=call.idempotency_key,
        settings=settings,
        status=CREATED,
        created_at=tx.now,
        source_filename=source_filename,
        output_filename=output_name(source_filename, settings) if source_filename else None,
        **values,
    )


def filename_of(given: str | None, url: str | None) -> str | None:
    """Return the file name of a source: as given, or the last part of its URL's path; never with a folder."""
    name = given or (unquote(urlsplit(url).path) if url else "")
    name = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[:_MAX_NAME]
    return name if name.strip(". ") else None


def output_name(source_filename: str | None, settings: Mapping[str, Any]) -> str:
    """Return the file name of an output that needs one."""
    stem = PurePosixPath(source_filename).stem if source_filename else "output"
    return f"{stem}.{settings['container']}"


def reconfigure(tx: Tx, job: Job, *wires: Mapping[str, Any]) -> Job:
    """Change a job's settings before it is queued."""
    settings = settings_of(*wires, job.settings)
    if settings == job.settings:
        return job
    name = output_name(job.source_filename, settings) if job.source_filename else None
    return tx.change_job(job, settings=settings, output_filename=name)


def quote(job: Job) -> int:
    """Return what a job costs with its settings, by the duration that is known."""
    rate = tokens.per_minute(job.settings)
    if job.kind == "ondemand":
        rate *= tokens.multiplier(high_priority=job.high_priority)
    return tokens.price(rate, job.duration)


def reserve_price(tx: Tx, job: Job, **changes: Any) -> Job:
    """Reserve what a job costs, no more and no less, and write further changes down with it."""
    price = quote(job)
    if job.reserved > price:
        reserved = tokens.release(tx, job, job.reserved - price)
    else:
        reserved = tokens.reserve(tx, job, price - job.reserved)
    return tx.change_job(job, price=price, reserved=reserved, **changes)


def queue(tx: Tx, job: Job) -> Job:
    """Queue a job whose source is there or is fetched, reserving its price if that was not done.

    Raises:
        Problem: it was queued before, has no source, or its tokens are not to be had.
    """
    if job.status != CREATED:
        raise invalid_request(f"The job is {job.status} already; only a created job can be confirmed.")
    if job.kind == "upload" and not job.uploaded:
        raise invalid_request("No source has been uploaded for this job yet.")
    if job.price is None or job.reserved < job.price:
        return reserve_price(tx, job, status=QUEUED, queued_at=tx.now)
    return tx.change_job(job, status=QUEUED, queued_at=tx.now)


def start(tx: Tx, job: Job, encoder: str | None) -> Job:
    """A worker has taken the job on."""
    return tx.change_job(job, status=RUNNING, started_at=tx.now, encoder=encoder)


def succeed(tx: Tx, job: Job, *, output_size: int, duration: float) -> Job:
    """The output is there: its price is spent, and what is reserved beyond it released."""
    paid = min(job.reserved, job.price or 0)
    tokens.spend(tx, job, paid, released=job.reserved - paid)
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
    """The encode did not work out: nothing is spent."""
    reserved = tokens.release(tx, job, job.reserved)
    changes = {"status": FAILED, "finished_at": tx.now, "failure_message": message, **_without_credentials(job)}
    return tx.change_job(job, reserved=reserved, **changes)


def cancel(tx: Tx, job: Job) -> Job:
    """Nobody wants the job any more: nothing is spent."""
    reserved = tokens.release(tx, job, job.reserved)
    return tx.change_job(job, status=CANCELED, finished_at=tx.now, reserved=reserved, **_without_credentials(job))


def _without_credentials(job: Job) -> dict[str, Any]:
    """Return a job's places as they are kept once nobody goes there any more."""
    places = {"source": job.source, "destination": job.destination}
    return {
        field: {name: value for name, value in place.items() if name not in CREDENTIALS}
        for field, place in places.items()
        if place is not None
    }


def output_gone(job: Job, now: float) -> bool:
    """Whether a job's output has expired, or went elsewhere."""
    if job.destination is not None:
        return True
    return job.output_expiry is not None and (job.finished_at or now) + job.output_expiry <= now


def no_output() -> Problem:
    """Return the answer to a request for an output that is not there."""
    return Problem(404, "output_not_available", "The job has no output, or it has expired.")
