"""Handlers of webhook subscriptions: create, change, delete, test, and list deliveries."""

from collections.abc import Mapping
from typing import Any

from convertrilo import operations
from convertrilo._json import dumps
from convertrilo.models import (
    WebhookCreateRequest,
    WebhookDeliveryListResponse,
    WebhookDeliveryResponse,
    WebhookListResponse,
    WebhookResponse,
    WebhookUpdateRequest,
)
from convertrilo.sandbox.api.call import ApiCall, Handler
from convertrilo.sandbox.state import outbox
from convertrilo.sandbox.state.clock import timestamp, to_datetime
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.store import Tx

_LISTED = 50

_COLUMNS = "id, url, events, is_active, failure_count, last_triggered_at, last_failed_at, created_at"


def get_webhooks(call: ApiCall, tx: Tx) -> WebhookListResponse:
    """Answer `getWebhooks`."""
    rows = tx.rows(f"SELECT {_COLUMNS} FROM webhooks WHERE account = ? ORDER BY n", call.account)  # noqa: S608 - names
    return WebhookListResponse(webhooks=[_webhook(row) for row in rows])


def create_webhook(call: ApiCall, tx: Tx) -> WebhookResponse:
    """Answer `createWebhook`; only this response contains the secret."""
    body = call.body_as(WebhookCreateRequest)
    _check_url(body.url)
    count = tx.row("SELECT count(*) FROM webhooks WHERE account = ?", call.account)
    limit = call.backend.rules.max_webhooks
    if count is not None and count[0] >= limit:
        raise Problem(400, "webhook_limit_exceeded", f"An account has at most {limit} webhooks.")
    webhook, secret = tx.ids.uuid(), f"whsec_{tx.ids.secret()}"
    tx.run(
        "INSERT INTO webhooks (id, account, url, events, secret, is_active, failure_count, created_at)"
        " VALUES (?, ?, ?, ?, ?, 1, 0, ?)",
        *(webhook, call.account, body.url, " ".join(body.events), secret, tx.now),
    )
    row = tx.row(f"SELECT {_COLUMNS} FROM webhooks WHERE id = ?", webhook)  # noqa: S608 - names
    assert row is not None
    return _webhook(row, secret)


def update_webhook(call: ApiCall, tx: Tx) -> WebhookResponse:
    """Answer `updateWebhook`: switching off drops waiting deliveries, switching on resets the failure count."""
    body = call.body_as(WebhookUpdateRequest)
    webhook = _find(call, tx, call.path["id"])
    if body.url is None and body.events is None and body.is_active is None:
        raise Problem(400, "no_updates_provided", "The body contains no changes.")
    if body.url is not None:
        _check_url(body.url)
        tx.run("UPDATE webhooks SET url = ? WHERE id = ?", body.url, webhook.id)
    if body.events is not None:
        tx.run("UPDATE webhooks SET events = ? WHERE id = ?", " ".join(body.events), webhook.id)
    if body.is_active is not None:
        tx.run("UPDATE webhooks SET is_active = ? WHERE id = ?", body.is_active, webhook.id)
        if not body.is_active:
            outbox.drop_waiting(tx, call.path["id"])
    if body.is_active and not webhook.is_active:
        tx.run("UPDATE webhooks SET failure_count = 0 WHERE id = ?", webhook.id)
    return _find(call, tx, call.path["id"])


def delete_webhook(call: ApiCall, tx: Tx) -> None:
    """Answer `deleteWebhook`."""
    webhook = _find(call, tx, call.path["id"])
    tx.run("DELETE FROM deliveries WHERE webhook = ?", webhook.id)
    tx.run("DELETE FROM webhooks WHERE id = ?", webhook.id)


def test_webhook(call: ApiCall, tx: Tx) -> None:
    """Answer `testWebhook`: the test event is delivered like any other."""
    webhook = _find(call, tx, call.path["id"])
    assert webhook.id is not None
    assert webhook.url is not None
    data = {"webhookId": webhook.id, "userId": call.account}
    body = dumps({"event": "webhook.test", "timestamp": timestamp(tx.now), "data": data})
    outbox.add(tx, webhook.id, webhook.url, "webhook.test", None, body, tx.now)


def get_webhook_deliveries(call: ApiCall, tx: Tx) -> WebhookDeliveryListResponse:
    """Answer `getWebhookDeliveries`: the latest attempts, newest first."""
    webhook = _find(call, tx, call.path["id"])
    rows = tx.rows(
        "SELECT id, webhook, event, job, status, status_code, duration_ms, response_body, error, attempt,"
        " next_retry_at, retried_at, created_at FROM deliveries WHERE webhook = ? AND status IS NOT NULL"
        " ORDER BY created_at DESC, n DESC LIMIT ?",
        *(webhook.id, _LISTED),
    )
    return WebhookDeliveryListResponse(deliveries=[_delivery(row) for row in rows])


def _delivery(row: tuple[Any, ...]) -> WebhookDeliveryResponse:
    (
        *(delivery, webhook, event, job, status, status_code, milliseconds, response_body, error, attempt),
        next_retry_at,
        retried_at,
        created_at,
    ) = row
    return WebhookDeliveryResponse(
        id=delivery,
        webhook_id=webhook,
        event=event,
        job_id=job,
        status=status,
        status_code=status_code,
        duration_ms=milliseconds,
        response_body=response_body,
        error=error,
        attempt=attempt,
        next_retry_at=to_datetime(next_retry_at),
        retried_at=to_datetime(retried_at),
        created_at=to_datetime(created_at),
    )


def _find(call: ApiCall, tx: Tx, webhook: str) -> WebhookResponse:
    row = tx.row(f"SELECT {_COLUMNS} FROM webhooks WHERE id = ? AND account = ?", webhook, call.account)  # noqa: S608 - names
    if row is None:
        raise Problem(404, "webhook_not_found", "There is no such webhook in this account.")
    return _webhook(row)


def _webhook(row: tuple[Any, ...], secret: str | None = None) -> WebhookResponse:
    webhook, url, events, is_active, failure_count, last_triggered_at, last_failed_at, created_at = row
    return WebhookResponse(
        id=webhook,
        url=url,
        events=events.split(),
        secret=secret,
        is_active=bool(is_active),
        failure_count=failure_count,
        last_triggered_at=to_datetime(last_triggered_at),
        last_failed_at=to_datetime(last_failed_at),
        created_at=to_datetime(created_at),
    )


def _check_url(url: str) -> None:
    if not url.lower().startswith(("http://", "https://")):
        raise Problem(400, "invalid_url", "A webhook URL must be http or https.")


HANDLERS: Mapping[str, Handler] = {
    operations.GET_WEBHOOKS.id: get_webhooks,
    operations.CREATE_WEBHOOK.id: create_webhook,
    operations.UPDATE_WEBHOOK.id: update_webhook,
    operations.DELETE_WEBHOOK.id: delete_webhook,
    operations.TEST_WEBHOOK.id: test_webhook,
    operations.GET_WEBHOOK_DELIVERIES.id: get_webhook_deliveries,
}
