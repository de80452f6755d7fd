"""Handlers of bulk requests: many jobs in one request, each with its own result."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio.lowlevel

from convertrilo import operations
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
from convertrilo.sandbox.api.call import ApiCall, Handler, Work, read_body, refuse
from convertrilo.sandbox.state import books, lifecycle
from convertrilo.sandbox.state.problem import Problem, invalid_body, invalid_request
from convertrilo.sandbox.state.records import Job
from convertrilo.sandbox.state.settings import settings_of
from convertrilo.sandbox.state.store import Tx

_CheckedItem = tuple[JobCreateRequest, Mapping[str, Any], Mapping[str, Any]]
"""A valid job: as a model, in the wire's shape, and its merged settings."""

_CHECKPOINT_EVERY = 50
"""The number of jobs, about ten milliseconds of work, after which other tasks may run."""


# ---- creation


async def create_jobs_bulk(call: ApiCall) -> Work:
    """Answer `createJobsBulk`.

    With `failFast`, one refused job refuses all: nothing is created, and every item has an error.
    """
    items: list[Any] = call.wire["jobs"]
    limit = call.backend.rules.max_bulk_jobs
    if not 1 <= len(items) <= limit:
        raise invalid_body([Issue("jobs", f"must have 1 to {limit} items, not {len(items)}")])
    settings: Mapping[str, Any] = call.wire.get("settings") or {}
    fail_fast, dry_run = bool(settings.get("failFast")), bool(settings.get("dryRun"))
    checked: list[_CheckedItem | str] = []
    hosts: set[str] = set()
    for index, item in enumerate(items):
        if index % _CHECKPOINT_EVERY == 0:
            await anyio.lowlevel.checkpoint()
        checked.append(await _check(call, item, settings, hosts))
        if fail_fast and isinstance(checked[-1], str):
            break

    def work(call: ApiCall, tx: Tx) -> BulkCreateResponse:
        results: list[_ItemResult] = []
        try:
            with tx.attempt():
                for each in checked:
                    results.append(_estimate(tx, call, each) if dry_run else _create(tx, call, each, settings))
                    if fail_fast and isinstance(results[-1], str):
                        raise _RefusedError(results[-1])
        except _RefusedError as refused:
            results = _all_refused(len(items), len(results) - 1, str(refused))
        return _answer(items, results, dry_run=dry_run)

    return work


_ItemResult = Job | str
"""The result of one item: the created job, or the reason for its refusal."""


class _RefusedError(Exception):
    """One job of a bulk request with `failFast` was refused."""


async def _check(call: ApiCall, item: Any, settings: Mapping[str, Any], hosts: set[str]) -> _CheckedItem | str:
    try:
        body = read_body(JobCreateRequest, item)
        merged = settings_of(item, settings)
        await jobs.check_creation(call, item, merged, hosts)
        if settings.get("confirm") and body.source_url is None and body.source_s3 is None:
            refuse(
                [Issue("sourceUrl", "is required with confirm; other jobs can be confirmed only after their upload")]
            )
    except ValidationError as error:
        return _reason(invalid_body(error.issues))
    except Problem as problem:
        return _reason(problem)
    return body, item, merged


def _estimate(tx: Tx, call: ApiCall, checked: _CheckedItem | str) -> _ItemResult:
    if isinstance(checked, str):
        return checked
    body, _, settings = checked
    return call.new_job(tx, "url", settings, None, external_id=body.external_id, metadata=body.metadata)


def _create(tx: Tx, call: ApiCall, checked: _CheckedItem | str, settings: Mapping[str, Any]) -> _ItemResult:
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


def _all_refused(count: int, index: int, reason: str) -> list[_ItemResult]:
    refused: list[_ItemResult] = [f"not created: failFast is set, and job {index} was refused"] * count
    refused[index] = reason
    return refused


def _answer(items: Sequence[Any], results: Sequence[_ItemResult], *, dry_run: bool) -> BulkCreateResponse:
    made = [result for result in results if isinstance(result, Job)]
    return BulkCreateResponse(
        total_jobs=len(items),
        total_estimated_neu=sum(books.quote(job) for job in made),
        reserved=sum(job.reserved for job in made),
        jobs=[
            _item(index, item, result, dry_run=dry_run)
            for index, (item, result) in enumerate(zip(items, results, strict=True))
        ],
    )


def _item(index: int, item: Any, result: _ItemResult, *, dry_run: bool) -> BulkCreateItem:
    if isinstance(result, str):
        external_id = cast("dict[str, Any]", item).get("externalId") if isinstance(item, dict) else None
        return BulkCreateItem(
            index=index, external_id=external_id if isinstance(external_id, str) else None, error=result
        )
    return BulkCreateItem(
        index=index,
        job_id=None if dry_run else result.id,
        external_id=result.external_id,
        metadata=result.metadata,
        status=None if dry_run else result.status,
        estimate=BulkItemEstimate(neu=books.quote(result)),
    )


# ---- status and confirmation


def bulk_status(call: ApiCall, tx: Tx) -> BulkStatusResponse:
    """Answer `bulkStatus`: each job once, in the requested order."""
    ids = list(dict.fromkeys(each for part in call.query["ids"].split(",") if (each := part.strip())))
    limit = call.backend.rules.max_bulk_ids
    if not 1 <= len(ids) <= limit:
        raise invalid_request(f"ids must have 1 to {limit} job ids, not {len(ids)}.")
    found: list[Job] = []
    missing: list[str] = []
    for job_id in ids:
        job = tx.job(job_id)
        known = job is not None and job.account == call.account_id
        if job is None or not known or (job.kind == "ondemand" and not call.backend.rules.bulk_status_on_demand):
            missing.append(job_id)
        else:
            found.append(job)
    return BulkStatusResponse(jobs=[jobs.status(call, tx, job) for job in found], missing=missing)


def bulk_confirm(call: ApiCall, tx: Tx) -> BulkConfirmResponse:
    """Answer `bulkConfirm`: each job has its own result."""
    body = call.body_as(BulkConfirmRequest)
    limit = call.backend.rules.max_bulk_ids
    if not 1 <= len(body.job_ids) <= limit:
        raise invalid_body([Issue("jobIds", f"must have 1 to {limit} items, not {len(body.job_ids)}")])
    results = [_confirm(call, tx, job_id, call.wire.get("settings") or {}) for job_id in body.job_ids]
    return BulkConfirmResponse(queued=sum("error" not in each for each in results), jobs=results)


def _confirm(call: ApiCall, tx: Tx, job_id: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with tx.attempt():
            job = jobs.confirm(call, tx, job_id, settings)
            return {"jobId": job_id, "status": job.status, "reserved": job.reserved}
    except Problem as problem:
        return {"jobId": job_id, "error": _reason(problem)}


HANDLERS: Mapping[str, Handler] = {
    operations.CREATE_JOBS_BULK.id: create_jobs_bulk,
    operations.BULK_STATUS.id: bulk_status,
    operations.BULK_CONFIRM.id: bulk_confirm,
}


def without_items(wire: Any) -> Any:
    """Return a bulk body without its jobs, which the handler validates one by one."""
    if isinstance(wire, dict):
        body = cast("dict[str, Any]", wire)
        if isinstance(body.get("jobs"), list):
            return {**body, "jobs": []}
    return cast("Any", wire)
