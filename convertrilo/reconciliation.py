"""What no webhook told: the ends of jobs whose event never came, read from the service and handed on as events."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs

from convertrilo._base_client import BaseClient
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._tasks import together
from convertrilo.codec import read_answer
from convertrilo.dedupe.memory import DedupeStore, once
from convertrilo.errors import DecodeError, InvalidRequestError, NotFoundError
from convertrilo.events import logger
from convertrilo.journal import Entry, Journal
from convertrilo.models import OnDemandStatusResponse, StatusResponse
from convertrilo.operations import OPERATIONS
from convertrilo.receiver import Handler, call_handler
from convertrilo.webhooks import WebhookEvent

EVENTS = {"success": "job.completed", "failed": "job.failed", "canceled": "job.canceled"}
"""The event that tells of each end of a job."""

_AT_ONCE = 100
_SINGLE_READS = 8  # at the same time
_ON_DEMAND = frozenset({"onDemandEncode", "onDemandIngestFolder"})


@attrs.frozen(kw_only=True)
class Reconciliation:
    """What `reconcile` did, in jobs."""

    open: int
    """Jobs that have not ended yet, or of which the service knows nothing."""
    handled: int
    """Jobs whose end was handed to the handler."""
    failed: int
    """Jobs for whose end the handler raised; the next run hands it over again."""


async def reconcile(
    client: BaseClient,
    journal: Journal,
    handler: Handler,
    *,
    dedupe: DedupeStore,
    within: float = 7 * 86400.0,
    clock: Clock = SYSTEM_CLOCK,
) -> Reconciliation:
    """Hand the handler the ends of jobs that no webhook told of (`bulkStatus`, `onDemandStatus`).

    For jobs that the journal knows: the receiver was down for longer than the service repeats, or the webhook was
    switched off. Their statuses are read, a hundred at a time, and those that have ended become the event that should
    have come. Such an event has what the status has: `duration_sec`, `final_neu`, `user_id` and `failure_code` are
    `None`. An event that the receiver handled is not handed over again, nor one that this function handed over.

    Args:
        client: Whom to ask.
        journal: Where the jobs are from; open, as it is while a client that has it is.
        handler: What the receiver's handler is. What it raises is logged, and counts.
        dedupe: The receiver's own, open: what remembers which events were handled.
        within: How old a job may be, in seconds; not older than `dedupe` remembers.
        clock: Tells the time.

    Raises:
        ConvertriloError: The statuses or the journal cannot be read.
    """
    still_open = handled = failed = 0
    async for jobs in _batches(journal, datetime.fromtimestamp(clock.time() - within, UTC)):
        job_ids = await dedupe.unseen(list(jobs), EVENTS.values())
        events = [event async for event in _ends(client, job_ids, jobs, clock)]
        still_open += len(job_ids) - len(events)
        for job_id, event in events:
            try:
                handled += await once(dedupe, (job_id, event.event), partial(call_handler, handler, event), clock)
            except Exception:  # noqa: BLE001  # the handler's; the other jobs are not to suffer for it
                failed += 1
                logger.exception("%s of %s was not handled; the next reconciliation hands it over", event.event, job_id)
    return Reconciliation(open=still_open, handled=handled, failed=failed)


async def _batches(journal: Journal, since: datetime) -> AsyncIterator[dict[str, bool]]:
    """Iterate over the jobs that the journal knows, a hundred at a time; with each, whether it is on-demand."""
    batch: dict[str, bool] = {}
    async for entry in journal.answered():
        if entry.answered_at is None or entry.answered_at < since:
            continue
        for job_id in _job_ids(entry):
            batch[job_id] = entry.operation in _ON_DEMAND
            if len(batch) == _AT_ONCE:
                yield batch
                batch = {}
    if batch:
        yield batch


def _job_ids(entry: Entry) -> list[str]:
    row = OPERATIONS.get(entry.operation)
    if row is None or row.returns is None or entry.answer is None:
        return []
    try:
        answer: Any = read_answer(row.returns, entry.answer)
    except DecodeError:  # the call that got it raised this already
        return []
    items = [answer] if hasattr(answer, "job_id") else answer.jobs or []
    return [item.job_id for item in items if item.job_id]


async def _ends(
    client: BaseClient, job_ids: Sequence[str], jobs: Mapping[str, bool], clock: Clock
) -> AsyncIterator[tuple[str, WebhookEvent]]:
    """Iterate over those of the jobs that have ended, and the events that tell of it."""
    statuses = {status.id: status for status in await _read_together(client, job_ids)}
    # bulkStatus may know nothing of on-demand jobs
    on_demand = await _read_on_demand(client, [each for each in job_ids if jobs[each] and each not in statuses])
    for job_id in job_ids:
        status = statuses.get(job_id) or on_demand.get(job_id)
        if status is not None and status.status in EVENTS:
            yield job_id, _event(job_id, status, clock)


async def _read_together(client: BaseClient, job_ids: Sequence[str]) -> list[StatusResponse]:
    if not job_ids:
        return []
    try:
        return list((await client.bulk_status(job_ids)).jobs or ())
    except InvalidRequestError:  # too many for one call, or one of them is not to the service's liking
        half = len(job_ids) // 2
        if not half:
            return []
    return [*await _read_together(client, job_ids[:half]), *await _read_together(client, job_ids[half:])]


async def _read_on_demand(client: BaseClient, job_ids: Sequence[str]) -> dict[str, OnDemandStatusResponse]:
    """Read the statuses of on-demand jobs, one request for each and some at a time; those that are known."""
    found: dict[str, OnDemandStatusResponse] = {}
    waiting = list(reversed(job_ids))

    async def read() -> None:
        while waiting:
            job_id = waiting.pop()
            with contextlib.suppress(NotFoundError):
                found[job_id] = await client.on_demand_status(job_id)

    await together([read] * min(_SINGLE_READS, len(waiting)))
    return found


def _event(job_id: str, status: StatusResponse | OnDemandStatusResponse, clock: Clock) -> WebhookEvent:
    assert status.status is not None
    return WebhookEvent(
        event=EVENTS[status.status],
        timestamp=status.finished_at or datetime.fromtimestamp(clock.time(), UTC),
        job_id=job_id,
        status=status.status,
        external_id=status.external_id,
        metadata=status.metadata,
        encoder=status.encoder,
        error=status.failure_message,
    )
