"""Deliver the webhook events in the outbox, with retries."""

import hashlib
import hmac
import logging

import anyio
import attrs
import httpx

from convertrilo._clock import Clock
from convertrilo.sandbox.state import outbox
from convertrilo.sandbox.state.store import Store, Tx

RETRY_DELAYS = (60.0, 300.0, 1_800.0)
MAX_FAILURES = 10
TIMEOUT_SECONDS = 15.0
_MAX_TEXT = 2_048
_AT_ONCE = 8

_log = logging.getLogger("convertrilo.sandbox")


@attrs.frozen
class _Due:
    """A delivery that is due."""

    id: str
    webhook: str | None
    url: str
    event: str
    job: str | None
    body: bytes = attrs.field(repr=False)
    attempt: int
    secret: str | None = attrs.field(repr=False)


@attrs.frozen
class _AttemptResult:
    """The result of one delivery attempt."""

    milliseconds: int
    status_code: int | None = None
    response_body: str | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


class Deliverer:
    """Delivers the events in the outbox; failed deliveries are retried after 1, 5 and 30 minutes.

    Args:
        store: holds the outbox.
        clock: tells when a delivery is due.
        transport: sends the deliveries; None opens network connections.
    """

    def __init__(self, store: Store, clock: Clock, transport: httpx.AsyncBaseTransport | None) -> None:
        self._store = store
        self._clock = clock
        self._transport = transport
        self._woken = anyio.Event()
        self._quiet = anyio.Event()
        self.is_asleep: bool = False
        """Whether the deliverer only waits for the clock."""

    def wake(self) -> None:
        """Look for due deliveries."""
        self._woken.set()

    async def wait_until_quiet(self) -> None:
        """Wait until every delivery that is due has been attempted."""
        while True:
            quiet = self._quiet
            if not await self._store.transaction(_next_due_now):
                return
            await quiet.wait()

    async def run(self) -> None:
        """Deliver events until cancelled."""
        while True:
            self._woken = anyio.Event()
            due, next_at = await self._store.transaction(_due)
            if due:
                # Create a client only if there is something to send: its TLS context takes 20 ms.
                async with (
                    httpx.AsyncClient(transport=self._transport, timeout=TIMEOUT_SECONDS, trust_env=False) as client,
                    anyio.create_task_group() as attempts,
                ):
                    for delivery in due:
                        attempts.start_soon(self._deliver, client, delivery)
                continue
            self._quiet.set()
            self._quiet = anyio.Event()
            if next_at is None:
                await self._woken.wait()
            else:
                await self._wait(next_at)

    async def _wait(self, until: float) -> None:
        async def sleep() -> None:
            self.is_asleep = True
            try:
                await self._clock.sleep(until - self._clock.time())
            finally:
                self.is_asleep = False
            self._woken.set()

        async with anyio.create_task_group() as sleeper:
            sleeper.start_soon(sleep)
            await self._woken.wait()
            sleeper.cancel_scope.cancel()

    async def _deliver(self, client: httpx.AsyncClient, delivery: _Due) -> None:
        result = await _send(client, delivery)
        await self._store.transaction(lambda tx: _record(tx, delivery, result))


async def _send(client: httpx.AsyncClient, delivery: _Due) -> _AttemptResult:
    headers = {"content-type": "application/json", "x-webhook-event": delivery.event}
    if delivery.webhook is not None and delivery.secret is not None:
        signature = hmac.new(delivery.secret.encode(), delivery.body, hashlib.sha256).hexdigest()
        headers |= {"x-webhook-signature": signature, "x-webhook-id": delivery.webhook}
    started = anyio.current_time()

    def milliseconds() -> int:
        return round((anyio.current_time() - started) * 1000)

    try:
        with anyio.fail_after(TIMEOUT_SECONDS):
            response = await client.post(delivery.url, content=delivery.body, headers=headers)
    except Exception as error:  # noqa: BLE001 - an invalid URL, or an in-process app that raises: deliver the others
        if not isinstance(error, httpx.HTTPError | TimeoutError):
            _log.warning("the delivery of %s raised an exception", delivery.event, exc_info=True)
        return _AttemptResult(milliseconds(), error=f"{type(error).__name__}: {error}"[:_MAX_TEXT])
    failed = None if response.is_success else f"the receiver answered {response.status_code}"
    text = response.content.decode(errors="replace")  # a receiver may declare a charset that is not a text encoding
    return _AttemptResult(milliseconds(), response.status_code, text[:_MAX_TEXT], failed)


def _due(tx: Tx) -> tuple[list[_Due], float | None]:
    rows = tx.rows(
        "SELECT d.id, webhook, d.url, event, job, body, attempt, secret FROM deliveries d"
        " LEFT JOIN webhooks w ON w.id = d.webhook WHERE due_at <= ? ORDER BY due_at, d.n LIMIT ?",
        tx.now,
        _AT_ONCE,
    )
    next_row = tx.row("SELECT min(due_at) FROM deliveries WHERE due_at IS NOT NULL")
    return [_Due(*row) for row in rows], next_row[0] if next_row else None


def _next_due_now(tx: Tx) -> bool:
    return tx.row("SELECT 1 FROM deliveries WHERE due_at <= ? LIMIT 1", tx.now) is not None


def _record(tx: Tx, delivery: _Due, result: _AttemptResult) -> None:
    retry_at = None
    if not result.is_success and delivery.webhook is not None and delivery.attempt <= len(RETRY_DELAYS):
        retry_at = tx.now + RETRY_DELAYS[delivery.attempt - 1]
    tx.run(
        "UPDATE deliveries SET due_at = NULL, status = ?, status_code = ?, duration_ms = ?, response_body = ?,"
        " error = ?, next_retry_at = ?, created_at = ? WHERE id = ?",
        *("success" if result.is_success else "failed", result.status_code, result.milliseconds),
        *(result.response_body, result.error, retry_at, tx.now, delivery.id),
    )
    if delivery.attempt > 1:
        tx.run(
            "UPDATE deliveries SET retried_at = ? WHERE webhook = ? AND body = ? AND attempt = ?",
            *(tx.now, delivery.webhook, delivery.body, delivery.attempt - 1),
        )
    if delivery.webhook is None:
        return  # a one-off callback is not retried
    if result.is_success:
        tx.run("UPDATE webhooks SET failure_count = 0, last_triggered_at = ? WHERE id = ?", tx.now, delivery.webhook)
        return
    tx.run(
        "UPDATE webhooks SET failure_count = failure_count + 1, last_triggered_at = ?1, last_failed_at = ?1,"
        " is_active = is_active AND failure_count + 1 < ?2 WHERE id = ?3",
        *(tx.now, MAX_FAILURES, delivery.webhook),
    )
    active = tx.row("SELECT is_active FROM webhooks WHERE id = ?", delivery.webhook)
    if active is None or not active[0]:
        outbox.drop_waiting(tx, delivery.webhook)
    elif retry_at is not None:
        outbox.add(
            tx,
            delivery.webhook,
            delivery.url,
            delivery.event,
            delivery.job,
            delivery.body,
            retry_at,
            delivery.attempt + 1,
        )
