"""Inspection by tests: webhook deliveries as records, and assertions that print the requests behind a failure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs

from convertrilo._json import loads
from convertrilo.operations import CREATE_PUBLIC_JOB, OPERATIONS, Repeat
from convertrilo.sandbox.state.clock import timestamp
from convertrilo.sandbox.state.records import Job, RequestRecord
from convertrilo.sandbox.state.store import Tx

_CREATES_JOBS = {row.id for row in OPERATIONS.values() if row.repeat is Repeat.KEYED} | {CREATE_PUBLIC_JOB.id}
_SHOWN = 50


# ---- deliveries


@attrs.frozen(kw_only=True)
class Delivery:
    """One finished attempt to deliver an event."""

    id: str
    webhook: str | None
    """The subscription's id; None for the one-off callback of an on-demand job."""
    url: str = attrs.field(repr=False)
    event: str
    job: str | None
    """The job's id; None for `webhook.test`."""
    attempt: int
    """1 for the first attempt, up to 4."""
    status: str
    """`success` or `failed`."""
    status_code: int | None
    """The receiver's status code; None if it did not respond."""
    error: str | None
    body: bytes = attrs.field(repr=False)
    """The bytes that were signed and sent."""
    at: float
    """Seconds since 1970."""

    @property
    def payload(self) -> Any:
        """The body as parsed JSON: `event`, `timestamp` and `data`."""
        return loads(self.body)


def deliveries(tx: Tx) -> list[Delivery]:
    """Return every finished attempt, in order."""
    names = ("id", "webhook", "url", "event", "job", "attempt", "status", "status_code", "error", "body")
    rows = tx.rows(
        f"SELECT {', '.join(names)}, created_at FROM deliveries WHERE status IS NOT NULL ORDER BY created_at, n"  # noqa: S608 - names
    )
    return [Delivery(**dict(zip((*names, "at"), row, strict=True))) for row in rows]


# ---- assertions


def assert_created_once(jobs: Sequence[Job], requests: Sequence[RequestRecord], external_id: str) -> Job:
    """Return the only job with this external id.

    Raises:
        AssertionError: there is no such job, or more than one.
    """
    __tracebackhide__ = True
    found = [job for job in jobs if job.external_id == external_id]
    if len(found) == 1:
        return found[0]
    if found:
        message = [f"{len(found)} jobs have the external id {external_id!r}, not one:", *map(_job_line, found)]
        raise AssertionError(_explain(message, _behind(requests, found)))
    others = sorted({job.external_id for job in jobs if job.external_id is not None})
    known = ", ".join(map(repr, others[:_SHOWN])) or "none"
    message = [f"No job has the external id {external_id!r}. Number of jobs: {len(jobs)}; external ids: {known}."]
    raise AssertionError(_explain(message, _creations(requests)))


def assert_no_duplicates(jobs: Sequence[Job], requests: Sequence[RequestRecord]) -> None:
    """Check that no job was created twice.

    Two jobs of one account with the same external id are duplicates. So are the jobs of two requests with the same
    idempotency key that were both processed, because the key expired in between.

    Raises:
        AssertionError: there are duplicates.
    """
    __tracebackhide__ = True
    message: list[str] = []
    named = [job for job in jobs if job.external_id is not None]
    by_name = Counter((job.account, job.external_id) for job in named)
    doubled = [job for job in named if by_name[job.account, job.external_id] > 1]
    if doubled:
        message += [f"{len(doubled)} jobs share an external id with another job:", *map(_job_line, doubled)]
    processed = [each for each in _creations(requests) if each.idempotency_key and _was_processed(each)]
    owners = Counter(key for _, key in {(job.account, job.idempotency_key) for job in jobs})
    by_key = Counter(each.idempotency_key for each in processed)
    again = [each for each in processed if by_key[each.idempotency_key] > max(1, owners[each.idempotency_key])]
    if again:
        message.append(f"{len(again)} requests were processed again although their idempotency keys had been used.")
    if message:
        behind = {*_behind(requests, doubled), *again}
        raise AssertionError(_explain(message, [each for each in requests if each in behind]))


def _was_processed(request: RequestRecord) -> bool:
    answered = request.status is not None and 200 <= request.status < 300
    return answered and not request.replayed and request.fault != "status"


def _creations(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    return [each for each in requests if each.operation in _CREATES_JOBS]


def _behind(requests: Sequence[RequestRecord], jobs: Sequence[Job]) -> list[RequestRecord]:
    """Return the requests that may have created these jobs: those with the same keys, or all without a key."""
    keys = {job.idempotency_key for job in jobs}
    return [each for each in _creations(requests) if each.idempotency_key in keys]


def _job_line(job: Job) -> str:
    return f"  {job.id}  {timestamp(job.created_at)}  {job.status}  {job.external_id}"


def _explain(message: Sequence[str], requests: Sequence[RequestRecord]) -> str:
    """Return an assertion message: what is wrong, then the requests behind the failure."""
    left_out = [f"  ({len(requests) - _SHOWN} earlier ones)"] if len(requests) > _SHOWN else []
    lines = [
        f"  {timestamp(each.at)}  {each.operation}  key {each.idempotency_key or '-'}"
        f"  {'no answer' if each.status is None else each.status}"
        f"{'  replayed' if each.replayed else ''}{f'  fault: {each.fault}' if each.fault else ''}"
        for each in requests[-_SHOWN:]
    ]
    return "\n".join([*message, "The requests that led to this:", *left_out, *(lines or ["  none"])])
