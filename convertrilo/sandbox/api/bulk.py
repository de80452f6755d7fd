"""Many jobs in one request, each with an outcome of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio.lowlevel

from convertrilo.errors import Issue, ValidationError
from convertrilo.models import (
    BulkConfirmRequest,
    BulkConfirmResponse,
    BulkCreateItem,
    BulkCreateResponse,
    BulkItemEstimate,
    BulkStatusResponse,
    JobCreateRequest,
)
from convertrilo.sandbox.api import jobs
from convertrilo.sandbox.api.call import Call, Handler, Work, read_body, refuse
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import Problem, invalid_body, invalid_request
from convertrilo.sandbox.state.records import Job
from convertrilo.sandbox.state.store import Tx

_Accepted = tuple[JobCreateRequest, Mapping[str, Any], Mapping[str, Any]]
"""A job as asked for, as a model and in the wire's shape, and its settings."""

_TURN = 50
"""After how many jobs others have a turn: some ten milliseconds."""


# ---- creation


async def create_jobs_bulk(call: Call) -> Work:
    """Answer `createJobsBulk`.

    With `failFast` one job that is refused refuses them all: nothing is created, and every item says so.
    """
    items: list[Any] = call.wire["jobs"]
    limit = call.service.rules.max_bulk_jobs
    if not 1 <= len(items) <= limit:
        raise invalid_body([Issue("jobs", f"must have 1 to {limit} items, not {len(items)}")])
    settings: Mapping[str, Any] = call.wire.get("settings") or {}
    fail_fast, dry_run = bool(settings.get("failFast")), bool(settings.get("dryRun"))
    checked: list[_Accepted | str] = []
    hosts: set[str] = set()
    for index, item in enumerate(items):
        if index % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        checked.append(await _check(call, item, settings, hosts))
        if fail_fast and isinstance(checked[-1], str):
            break

    def work(call: Call, tx: Tx) -> BulkCreateResponse:
        outcomes: list[_Outcome] = []
        try:
            with tx.attempt():
                for each in checked:
                    outcomes.append(_estimate(tx, call, each) if dry_run else _create(tx, call, each, settings))
                    if fail_fast and isinstance(outcomes[-1], str):
                        raise _RefusedError(outcomes[-1])
        except _RefusedError as refused:
            outcomes = _all_refused(len(items), len(outcomes) - 1, str(refused))
        return _answer(items, outcomes, dry_run=dry_run)

    return work


_Outcome = Job | str
"""What became of one job: it is there, or why it is not."""


class _RefusedError(Exception):
    """One job of a batch with `failFast` was refused."""


async def _check(call: Call, item: Any, settings: Mapping[str, Any], hosts: set[str]) -> _Accepted | str:
    try:
        body = read_body(JobCreateRequest, item)
        merged = lifecycle.settings_of(item, settings)
        await jobs.check_creation(call, item, merged, hosts)
        if settings.get("confirm") and body.source_url is None and body.source_s3 is None:
            refuse([Issue("sourceUrl", "is required with confirm: an upload is confirmed once it is there")])
    except ValidationError as error:
        return _reason(invalid_body(error.issues))
    except Problem as problem:
        return _reason(problem)
    return body, item, merged


def _estimate(tx: Tx, call: Call, checked: _Accepted | str) -> _Outcome:
    if isinstance(checked, str):
        return checked
    body, _, settings = checked
    return lifecycle.new_job(tx, call, "url", settings, None, external_id=body.external_id, metadata=body.metadata)


def _create(tx: Tx, call: Call, checked: _Accepted | str, settings: Mapping[str, Any]) -> _Outcome:
    if isinstance(checked, str):
        return checked
    body, wire, merged = checked
    try:
        with tx.attempt():
            job = jobs.make_job(call, tx, body, wire, merged)
            return lifecycle.queue(tx, job) if body.confirm or settings.get("confirm") else job
    except Problem as problem:
        return _reason(problem)


def _reason(problem: Problem) -> str:
    issues = "; ".join(f"{issue['path']} {issue['message']}" for issue in problem.fields.get("issues", ()))
    return f"{problem.code}: {issues or problem.message}"


def _all_refused(count: int, index: int, reason: str) -> list[_Outcome]:
    refused: list[_Outcome] = [f"not created: failFast is set, and job {index} was refused"] * count
    refused[index] = reason
    return refused


def _answer(items: Sequence[Any], outcomes: Sequence[_Outcome], *, dry_run: bool) -> BulkCreateResponse:
    made = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    return BulkCreateResponse(
        total_jobs=len(items),
        total_estimated_neu=sum(lifecycle.quote(job) for job in made),
        reserved=sum(job.reserved for job in made),
        jobs=[
            _item(index, item, outcome, dry_run=dry_run)
            for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        ],
    )


def _item(index: int, item: Any, outcome: _Outcome, *, dry_run: bool) -> BulkCreateItem:
    if isinstance(outcome, str):
        external_id = cast("dict[str, Any]", item).get("externalId") if isinstance(item, dict) else None
        return BulkCreateItem(
            index=index, external_id=external_id if isinstance(external_id, str) else None, error=outcome
        )
    return BulkCreateItem(
        index=index,
        job_id=None if dry_run else outcome.id,
        external_id=outcome.external_id,
        metadata=outcome.metadata,
        status=None if dry_run else outcome.status,
        estimate=BulkItemEstimate(neu=lifecycle.quote(outcome)),
    )


# ---- status and confirmation


def bulk_status(call: Call, tx: Tx) -> BulkStatusResponse:
    """Answer `bulkStatus`: each job once, in the order asked for."""
    ids = list(dict.fromkeys(each for part in call.query["ids"].split(",") if (each := part.strip())))
    limit = call.service.rules.max_bulk_ids
    if not 1 <= len(ids) <= limit:
        raise invalid_request(f"ids takes 1 to {limit} job ids, not {len(ids)}.")
    found: list[Job] = []
    missing: list[str] = []
    for job_id in ids:
        job = tx.job(job_id)
        known = job is not None and job.account == call.account_id
        if job is None or not known or (job.kind == "ondemand" and not call.service.rules.bulk_status_on_demand):
            missing.append(job_id)
        else:
            found.append(job)
    return BulkStatusResponse(jobs=[jobs.status(call, tx, job) for job in found], missing=missing)


def bulk_confirm(call: Call, tx: Tx) -> BulkConfirmResponse:
    """Answer `bulkConfirm`: each job has an outcome of its own."""
    body = call.body_as(BulkConfirmRequest)
    limit = call.service.rules.max_bulk_ids
    if not 1 <= len(body.job_ids) <= limit:
        raise invalid_body([Issue("jobIds", f"must have 1 to {limit} items, not {len(body.job_ids)}")])
    outcomes = [_confirm(call, tx, job_id, call.wire.get("settings") or {}) for job_id in body.job_ids]
    return BulkConfirmResponse(queued=sum("error" not in each for each in outcomes), jobs=outcomes)


def _confirm(call: Call, tx: Tx, job_id: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with tx.attempt():
            job = jobs.confirm(call, tx, job_id, settings)
            return {"jobId": job_id, "status": job.status, "reserved": job.reserved}
    except Problem as problem:
        return {"jobId": job_id, "error": _reason(problem)}


HANDLERS: Mapping[str, Handler] = {
    "createJobsBulk": create_jobs_bulk,
    "bulkStatus": bulk_status,
    "bulkConfirm": bulk_confirm,
}


def without_items(wire: Any) -> Any:
    """Return a bulk body without its jobs, which are judged one by one."""
    if isinstance(wire, dict):
        body = cast("dict[str, Any]", wire)
        if isinstance(body.get("jobs"), list):
            return {**body, "jobs": []}
    return cast("Any", wire)
