"""The outbox: webhook deliveries to make, added in the transaction of the event."""

from typing import Any

from convertrilo._json import dumps
from convertrilo.sandbox.state.clock import timestamp
from convertrilo.sandbox.state.records import CANCELED, CREATED, FAILED, QUEUED, RUNNING, SUCCESS, Job
from convertrilo.sandbox.state.store import Tx

_EVENTS = {
    CREATED: "job.created",
    QUEUED: "job.queued",
    RUNNING: "job.running",
    SUCCESS: "job.completed",
    FAILED: "job.failed",
    CANCELED: "job.canceled",
}


def emit(tx: Tx) -> None:
    """Add the deliveries for a transaction's status changes, in the same transaction."""
    hooks: dict[str | None, list[tuple[str, str, str]]] = {}
    for job in tx.changed_jobs:
        if job.account not in hooks:
            hooks[job.account] = tx.rows(
                "SELECT id, url, events FROM webhooks WHERE account = ? AND is_active ORDER BY n", job.account
            )
        event = _EVENTS[job.status]
        for webhook, url, events in hooks[job.account]:
            if event in events.split():
                add(tx, webhook, url, event, job.id, _body(event, tx.now, job), tx.now)
        if job.webhook is not None and job.ended:
            add(tx, None, job.webhook, event, job.id, _body(event, tx.now, job), tx.now)


def _body(event: str, now: float, job: Job) -> bytes:
    data: dict[str, Any] = {
        "jobId": job.id,
        "userId": job.account,
        "status": job.status,
        "encoder": job.encoder,
        "durationSec": job.duration,
        "finalNeu": job.spent,
    }
    if job.external_id is not None:
        data["externalId"] = job.external_id
    if job.metadata is not None:
        data["metadata"] = job.metadata
    if job.failure_message is not None:
        data |= {"error": job.failure_message, "failureCode": "encode_failed"}
    return dumps({"event": event, "timestamp": timestamp(now), "data": data})


def add(
    tx: Tx, webhook: str | None, url: str, event: str, job: str | None, body: bytes, due_at: float, attempt: int = 1
) -> None:
    """Add one delivery, in the transaction of the event."""
    delivery = tx.ids.uuid()
    tx.run(
        "INSERT INTO deliveries (id, webhook, url, event, job, body, attempt, due_at, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(delivery, webhook, url, event, job, body, attempt, due_at, tx.now),
    )
    tx.new_deliveries.append(delivery)


def drop_waiting(tx: Tx, webhook: str) -> None:
    """Drop the waiting deliveries of a webhook that was switched off."""
    tx.run("UPDATE deliveries SET due_at = NULL WHERE webhook = ?", webhook)
    tx.run("UPDATE deliveries SET next_retry_at = NULL WHERE webhook = ? AND retried_at IS NULL", webhook)
