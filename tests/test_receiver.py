"""The webhook receiver: it verifies deliveries, handles each event once, and answers in time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fake_clock import FakeClock
from loopback import until
from webhook_help import DATA, NOW, SECRET, ask, body_of, headers_of, serving

from convertrilo import AsyncClient, MemoryDedupe, SQLiteDedupe, WebhookEvent, WebhookReceiver
from convertrilo.dedupe import LEASE, DedupeStore
from convertrilo.errors import ConfigurationError
from convertrilo.sandbox import Sandbox
from convertrilo.webhooks import MAX_BYTES

BODY = body_of()
HEADERS = headers_of(BODY)
ON_DEMAND = {"sourceUrl": "https://media.example/holiday.mov", "externalId": "holiday"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW, sleepers="wait")


class Handler:
    """Records its events, and raises as often as the test wants."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.events: list[WebhookEvent] = []

    async def __call__(self, event: WebhookEvent) -> None:
        self.events.append(event)
        await anyio.lowlevel.checkpoint()
        if len(self.events) <= self.failures:
            raise LookupError("no such video")

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]


class Stuck(Handler):
    """Does not return before the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = anyio.Event()
        self.ended = 0

    async def __call__(self, event: WebhookEvent) -> None:
        self.events.append(event)
        await self.may_end.wait()
        self.ended += 1


def receiver_of(handler: Any, clock: FakeClock, **options: Any) -> WebhookReceiver:
    return WebhookReceiver(SECRET, handler, clock=clock, **options)


# ---- real deliveries, over sockets into real servers


class WebhookSender:
    """A sandbox with webhooks that it delivers over sockets."""

    def __init__(self, sandbox: Sandbox, client: AsyncClient) -> None:
        self.sandbox = sandbox
        self.client = client
        self.webhooks: list[str] = []

    async def subscribe(self, url: str, *events: str) -> str:
        """Create a webhook, and return its secret."""
        made = await self.client.create_webhook({"url": url, "events": list(events or ["job.completed"])})
        assert made.id is not None
        assert made.secret is not None
        self.webhooks.append(made.id)
        return made.secret

    async def encode(self) -> str:
        return (await self.client.on_demand_encode(ON_DEMAND)).job_id

    async def answers(self) -> list[int | None]:
        """The response statuses of all deliveries, the oldest first."""
        listed = [await self.client.get_webhook_deliveries(webhook) for webhook in self.webhooks]
        return [each.status_code for page in listed for each in reversed(page.deliveries or ())]


@pytest.fixture
async def service(clock: FakeClock) -> AsyncIterator[WebhookSender]:
    async with Sandbox(clock=clock, seed=7) as sandbox, sandbox.client(clock=clock) as client:
        yield WebhookSender(sandbox, client)


@asynccontextmanager
async def received(
    service: WebhookSender, backend: str, make: Callable[[list[str]], Any], *, webhooks: int = 1
) -> AsyncIterator[str]:
    """Serve an app that knows the secrets of some webhooks, and yield the URL that they deliver to."""
    app: Any = WebhookReceiver("unused", print)  # the secrets are not known before the port is

    async def late(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    async with serving(late, backend) as url:
        url = f"{url}/webhooks/convertrilo"
        app = make([await service.subscribe(url) for _ in range(webhooks)])
        yield url


async def test_the_end_of_a_job_is_told_by_the_service_and_handled(
    service: WebhookSender, clock: FakeClock, anyio_backend: str
) -> None:
    handler = Handler()
    make = partial(WebhookReceiver, handler=handler, path="/webhooks/convertrilo", clock=clock)
    async with received(service, anyio_backend, make):
        job_id = await service.encode()
        await service.sandbox.wait_until_idle()
        assert await service.answers() == [204]
    [event] = handler.events
    assert (event.event, event.job_id, event.status) == ("job.completed", job_id, "success")
    assert (event.external_id, event.user_id) == ("holiday", service.sandbox.account_id)


async def test_an_event_whose_handler_failed_comes_again_and_is_handled_then(
    service: WebhookSender, clock: FakeClock, anyio_backend: str
) -> None:
    handler = Handler(failures=2)
    make = partial(WebhookReceiver, handler=handler, path="/webhooks/convertrilo", clock=clock)
    async with received(service, anyio_backend, make):
        await service.encode()
        await service.sandbox.wait_until_idle()
        assert await service.answers() == [500]
        for minutes in (1, 5):
            clock.advance(minutes * 60)
            await service.sandbox.wait_until_idle()
        assert await service.answers() == [500, 500, 204]
        clock.advance(30 * 60)
        await service.sandbox.wait_until_idle()
    assert handler.names == ["job.completed"] * 3


async def test_an_event_delivered_twice_at_once_is_handled_once(
    service: WebhookSender, clock: FakeClock, anyio_backend: str
) -> None:
    # Two webhooks, as one account may have: the service delivers to both at the same time, each with its own secret.
    stuck = Stuck()
    arrived: list[str] = []

    def make(secrets: list[str]) -> Any:
        receiver = WebhookReceiver(secrets, stuck, path="/webhooks/convertrilo", clock=clock)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            arrived.append(scope["path"])
            await receiver(scope, receive, send)

        return app

    async with received(service, anyio_backend, make, webhooks=2):
        await service.encode()
        await until(lambda: len(arrived) == 2 and bool(stuck.events))
        stuck.may_end.set()
        await service.sandbox.wait_until_idle()
        assert await service.answers() == [204, 204]
    assert (len(stuck.events), stuck.ended) == (1, 1)


async def test_a_handler_slower_than_the_service_waits_is_answered_for_in_time_and_not_run_again(
    service: WebhookSender, clock: FakeClock, anyio_backend: str
) -> None:
    stuck = Stuck()
    make = partial(WebhookReceiver, handler=stuck, path="/webhooks/convertrilo", clock=clock)
    async with received(service, anyio_backend, make):
        await service.encode()
        await until(lambda: bool(stuck.events))
        await clock.until_asleep(10)
        clock.advance(10)
        await service.sandbox.wait_until_idle()
        assert await service.answers() == [503]
        assert stuck.ended == 0
        stuck.may_end.set()
        await until(lambda: stuck.ended == 1)
        clock.advance(60)
        await service.sandbox.wait_until_idle()
        assert await service.answers() == [503, 204]
    assert len(stuck.events) == 1


async def test_a_delivery_altered_by_a_byte_anywhere_is_refused(clock: FakeClock, anyio_backend: str) -> None:
    handler = Handler()
    app = receiver_of(handler, clock, path="/hook")
    async with serving(app, anyio_backend) as url, httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def post(body: bytes, headers: Any) -> int:
            answer = await http.post(f"{url}/hook", content=body, headers=headers)
            assert not answer.content
            return answer.status_code

        statuses = set()
        for index in range(len(BODY)):
            statuses.add(await post(BODY[:index] + bytes([BODY[index] ^ 1]) + BODY[index + 1 :], HEADERS))
        for name in ("X-Webhook-Signature", "X-Webhook-Event"):
            value = HEADERS[name]
            for index in range(len(value)):
                altered = value[:index] + chr(ord(value[index]) ^ 1) + value[index + 1 :]
                statuses.add(await post(BODY, {**HEADERS, name: altered}))
        assert statuses == {401}
        assert not handler.events
        assert await post(BODY, HEADERS) == 204


async def test_a_webhook_ends_a_wait_at_once(clock: FakeClock, anyio_backend: str) -> None:
    started = clock.time()
    async with Sandbox(clock=clock, seed=7, encode_seconds=5) as sandbox, sandbox.client(clock=clock) as client:
        slow = WebhookSender(sandbox, client)
        make = partial(WebhookReceiver, handler=client.notify, path="/webhooks/convertrilo", clock=clock)
        async with received(slow, anyio_backend, make), anyio.create_task_group() as tasks:
            job_id = await slow.encode()
            done: list[Any] = []

            async def wait() -> None:
                done.append(await client.wait_for_on_demand(job_id, timeout=600))

            tasks.start_soon(wait)
            await until(lambda: any("/status" in each.path for each in sandbox.requests))
            await clock.until_asleep(5)
            clock.advance(5)
            await until(lambda: bool(done))
    assert done[0].status == "success"
    assert clock.time() == started + 5


# ---- what is no delivery

NO_DELIVERIES: dict[str, tuple[int, dict[str, Any]]] = {
    "another path": (404, {"path": "/other"}),
    "below its path": (404, {"path": "/hook/x"}),
    "GET": (405, {"method": "GET"}),
    "HEAD": (405, {"method": "HEAD"}),
    "PUT": (405, {"method": "PUT"}),
    "no signature": (401, {"headers": {}}),
    "another's signature": (401, {"headers": headers_of(BODY, secret="x")}),
    "an empty body": (401, {"body": b""}),
    "a long body that says so": (413, {"body": b"x", "headers": {**HEADERS, "Content-Length": "1000001"}}),
    "a long body that does not": (413, {"body": [b"x" * 400_000] * 4}),
    "a body that is cut off": (0, {"body": []}),
    "a length that is none": (401, {"body": b"x", "headers": {**HEADERS, "Content-Length": "9" * 5000}}),
}


@pytest.mark.parametrize(("status", "given"), NO_DELIVERIES.values(), ids=NO_DELIVERIES)
async def test_what_is_no_delivery_is_refused_without_a_reason(status: int, given: Any, clock: FakeClock) -> None:
    handler = Handler()
    app = receiver_of(handler, clock, path="/hook", max_bytes=1_000_000)
    assert await ask(app, **{"body": BODY, "headers": HEADERS, "path": "/hook", **given}) == (status, b"")
    assert not handler.events


async def test_a_body_in_pieces_is_one_body(clock: FakeClock) -> None:
    handler = Handler()
    app = receiver_of(handler, clock, max_bytes=len(BODY))
    assert (await ask(app, [BODY[:1], b"", BODY[1:50], BODY[50:]], HEADERS))[0] == 204
    assert handler.names == ["job.completed"]


async def test_a_long_body_is_not_read_to_its_end(clock: FakeClock) -> None:
    pieces = [b"x" * MAX_BYTES, b"x", b"never read"]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await receiver_of(Handler(), clock)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert pieces == [b"never read"]


async def test_an_event_that_is_too_old_is_refused(clock: FakeClock) -> None:
    handler = Handler()
    clock.advance(43 * 60)
    assert (await ask(receiver_of(handler, clock), BODY, HEADERS))[0] == 401
    assert (await ask(receiver_of(handler, clock, tolerance=3600), BODY, HEADERS))[0] == 204


async def test_a_signed_body_that_cannot_be_read_is_told_apart(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"event":"job.completed"}'
    assert await ask(receiver_of(Handler(), clock), body, headers_of(body)) == (400, b"")
    assert "a signed webhook cannot be decoded" in caplog.text


async def test_the_log_says_why_a_delivery_was_refused_and_no_secret(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(receiver_of(Handler(), clock), BODY + b" ", HEADERS)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the signature does not match the body" in caplog.text
    assert SECRET not in caplog.text
    assert HEADERS["X-Webhook-Signature"] not in caplog.text


async def test_a_websocket_is_turned_away(clock: FakeClock) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await receiver_of(Handler(), clock)({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


async def test_who_hangs_up_does_not_stop_the_handler(clock: FakeClock) -> None:
    handler = Handler()
    app = receiver_of(handler, clock)
    pieces = [{"type": "http.request", "body": BODY}]

    async def receive() -> Any:
        return pieces.pop()

    async def send(_: Any) -> None:
        raise BrokenPipeError

    raw = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    await app({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive, send)
    assert (await ask(app, BODY, HEADERS))[0] == 204
    assert handler.names == ["job.completed"]


# ---- once

BOTH_STORES = pytest.mark.parametrize("kind", ["memory", "SQLite"])


def store_of(kind: str, folder: Path, clock: FakeClock) -> DedupeStore:
    return MemoryDedupe() if kind == "memory" else SQLiteDedupe(folder / "webhooks.db", clock=clock)


@BOTH_STORES
async def test_an_event_is_handled_once_however_often_it_comes(kind: str, clock: FakeClock, tmp_path: Path) -> None:
    handler = Handler()
    async with receiver_of(handler, clock, dedupe=store_of(kind, tmp_path, clock)) as app:
        assert [(await ask(app, BODY, HEADERS))[0] for _ in range(3)] == [204, 204, 204]
    assert handler.names == ["job.completed"]


@BOTH_STORES
async def test_another_event_of_a_job_and_the_same_of_another_are_others(
    kind: str, clock: FakeClock, tmp_path: Path
) -> None:
    handler = Handler()
    async with receiver_of(handler, clock, dedupe=store_of(kind, tmp_path, clock)) as app:
        for body, event in (
            (body_of("job.queued"), "job.queued"),
            (body_of("job.running"), "job.running"),
            (body_of("job.queued", jobId="j-2"), "job.queued"),
        ):
            assert (await ask(app, body, headers_of(body, event)))[0] == 204
    assert handler.names == ["job.queued", "job.running", "job.queued"]


async def test_every_test_event_is_handled(clock: FakeClock) -> None:
    handler = Handler()
    app = receiver_of(handler, clock)
    for second in (1, 2, 2):
        body = body_of("webhook.test", f"2026-01-01T00:00:0{second}Z", jobId=None)
        assert (await ask(app, body, headers_of(body, "webhook.test")))[0] == 204
    assert handler.names == ["webhook.test"] * 2


@BOTH_STORES
async def test_who_comes_while_the_handler_works_hears_what_comes_of_it(
    kind: str, clock: FakeClock, tmp_path: Path
) -> None:
    gate, runs = anyio.Event(), 0

    async def handler(_: WebhookEvent) -> None:
        nonlocal runs
        runs += 1
        await gate.wait()
        if runs == 1:
            raise LookupError

    statuses: list[int] = []

    async def deliver() -> None:
        statuses.append((await ask(app, BODY, HEADERS))[0])

    async with receiver_of(handler, clock, dedupe=store_of(kind, tmp_path, clock)) as app:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(deliver)
            await until(lambda: runs == 1)
            gate.set()
        assert (statuses, runs) == ([500] * 5, 1)
        await deliver()  # a failed event is not remembered
        assert (statuses[-1], runs) == (204, 2)


async def test_a_delivery_that_is_cancelled_frees_its_event(clock: FakeClock) -> None:
    stuck = Stuck()
    app = receiver_of(stuck, clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, app, BODY, HEADERS)
        await until(lambda: bool(stuck.events))
        tasks.cancel_scope.cancel()
    stuck.may_end.set()
    assert (await ask(app, BODY, HEADERS))[0] == 204
    assert (len(stuck.events), stuck.ended) == (2, 1)


async def test_a_plain_function_can_handle_events(clock: FakeClock) -> None:
    events: list[WebhookEvent] = []
    assert (await ask(receiver_of(events.append, clock), BODY, HEADERS))[0] == 204
    assert [event.job_id for event in events] == [DATA["jobId"]]


async def test_what_was_handled_is_remembered_past_a_restart(clock: FakeClock, tmp_path: Path) -> None:
    handler = Handler()
    for _ in range(2):
        async with receiver_of(handler, clock, dedupe=SQLiteDedupe(tmp_path / "webhooks.db", clock=clock)) as app:
            assert (await ask(app, BODY, HEADERS))[0] == 204
    assert handler.names == ["job.completed"]


async def test_two_processes_with_one_file_handle_an_event_once(clock: FakeClock, tmp_path: Path) -> None:
    stuck, other = Stuck(), Handler()
    statuses: list[int] = []

    async def deliver(app: WebhookReceiver) -> None:
        statuses.append((await ask(app, BODY, HEADERS))[0])

    async with (
        receiver_of(stuck, clock, dedupe=SQLiteDedupe(tmp_path / "webhooks.db", clock=clock)) as one,
        receiver_of(other, clock, dedupe=SQLiteDedupe(tmp_path / "webhooks.db", clock=clock)) as two,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(deliver, one)
        await until(lambda: bool(stuck.events))
        tasks.start_soon(deliver, two)
        for _ in range(3):
            await clock.until_asleep(0.25)
            clock.advance(0.25)
        await clock.until_asleep(0.25)  # it asks again only after the other one is done
        assert statuses == []
        stuck.may_end.set()
        await until(lambda: statuses == [204])
        clock.advance(0.25)
    assert statuses == [204, 204]
    assert (stuck.ended, other.events) == (1, [])


async def test_a_store_that_is_not_open_fails_deliveries_and_says_so(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = receiver_of(Handler(), clock, dedupe=SQLiteDedupe(tmp_path / "webhooks.db"))
    assert (await ask(app, BODY, HEADERS))[0] == 500
    assert "it is not open; use it inside `async with`" in caplog.text


# ---- the queue


def queue_of(handler: Any, clock: FakeClock, folder: Path) -> WebhookReceiver:
    return receiver_of(handler, clock, queue=True, dedupe=SQLiteDedupe(folder / "webhooks.db", clock=clock))


async def test_a_queued_event_is_answered_for_before_it_is_handled(clock: FakeClock, tmp_path: Path) -> None:
    stuck = Stuck()
    async with queue_of(stuck, clock, tmp_path) as app:
        assert [(await ask(app, BODY, HEADERS))[0] for _ in range(3)] == [204, 204, 204]
        await until(lambda: bool(stuck.events))
        stuck.may_end.set()
        await until(lambda: stuck.ended == 1)
        assert (await ask(app, BODY, HEADERS))[0] == 204
    assert stuck.events[0].metadata == DATA["metadata"]
    assert len(stuck.events) == 1


async def test_a_queued_event_outlives_the_process(clock: FakeClock, tmp_path: Path) -> None:
    stuck, handler = Stuck(), Handler()
    async with queue_of(stuck, clock, tmp_path) as app:
        assert (await ask(app, BODY, HEADERS))[0] == 204
        await until(lambda: bool(stuck.events))
    assert stuck.ended == 0
    async with queue_of(handler, clock, tmp_path):
        await until(lambda: bool(handler.events))
    assert handler.names == ["job.completed"]


async def test_a_queued_event_whose_handler_fails_is_handled_again_and_at_last_given_up(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(failures=4)
    async with queue_of(handler, clock, tmp_path) as app:
        await ask(app, BODY, HEADERS)
        for attempt, minutes in ((1, 1), (2, 5), (3, 30)):
            await until(lambda attempt=attempt: len(logged(caplog)) == attempt)  # type: ignore[misc]  # a loop's own
            clock.advance(minutes * 60 - 31)
            await anyio.wait_all_tasks_blocked()
            assert len(handler.events) == attempt
            clock.advance(31)
            await until(lambda attempt=attempt: len(handler.events) == attempt + 1)  # type: ignore[misc]  # a loop's own
        await until(lambda: len(logged(caplog)) == 4)
        assert "dropped" in logged(caplog)[-1]
        body = body_of(timestamp="2026-01-01T00:36:00Z")
        await ask(app, body, headers_of(body))  # the dropped event can be queued again
        await until(lambda: len(handler.events) == 5)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # in trio, a task does not see the cancellation of another
async def test_a_handler_whose_own_task_is_cancelled_has_failed_and_ends_no_other(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[str | None] = []

    async def handle(event: WebhookEvent) -> None:
        if event.external_id != "good":
            task = asyncio.create_task(asyncio.sleep(60))
            task.cancel()
            await task
        handled.append(event.job_id)

    good = body_of(jobId="j-2", externalId="good")
    async with queue_of(handle, clock, tmp_path) as app:
        assert (await ask(app, BODY, HEADERS))[0] == 204
        await until(lambda: len(logged(caplog)) == 1)
        assert logged(caplog)[0].endswith(" was not handled; it is tried again in 60 s")
        assert (await ask(app, good, headers_of(good)))[0] == 204
        await until(lambda: handled == ["j-2"])
    app = receiver_of(handle, clock)
    assert (await ask(app, BODY, HEADERS))[0] == 500
    assert (await ask(app, good, headers_of(good)))[0] == 204


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "convertrilo"]


async def test_queued_events_are_handled_a_few_at_a_time(clock: FakeClock, tmp_path: Path) -> None:
    stuck = Stuck()
    async with queue_of(stuck, clock, tmp_path) as app:
        for number in range(12):
            body = body_of(jobId=f"j-{number}")
            assert (await ask(app, body, headers_of(body)))[0] == 204
        await until(lambda: len(stuck.events) == 8)
        await anyio.wait_all_tasks_blocked()
        assert len(stuck.events) == 8
        stuck.may_end.set()
        await until(lambda: stuck.ended == 12)
    assert sorted(str(event.job_id) for event in stuck.events) == sorted(f"j-{number}" for number in range(12))


async def test_a_long_handler_keeps_its_queued_event(clock: FakeClock, tmp_path: Path) -> None:
    renewed = 0

    class Counting(SQLiteDedupe):
        async def renew(self, key: tuple[str, str]) -> None:
            nonlocal renewed
            await super().renew(key)
            renewed += 1

    stuck, other = Stuck(), Handler()
    dedupe = Counting(tmp_path / "webhooks.db", clock=clock)
    async with receiver_of(stuck, clock, queue=True, dedupe=dedupe) as app:
        await ask(app, BODY, HEADERS)
        await until(lambda: bool(stuck.events))
        async with queue_of(other, clock, tmp_path):
            for count in range(12):
                await anyio.wait_all_tasks_blocked()
                clock.advance(LEASE / 3)
                await until(lambda count=count: renewed > count)  # type: ignore[misc]  # a loop's own
        assert (len(stuck.events), other.events) == (1, [])
        stuck.may_end.set()
        await until(lambda: stuck.ended == 1)


async def test_a_queue_that_nobody_works_off_takes_nothing(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await ask(queue_of(Handler(), clock, tmp_path), BODY, HEADERS))[0] == 500
    assert "the receiver is not running" in caplog.text


# ---- settings and lifetime

UNUSABLE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no secret": (None, {}, "no usable secret"),
    "an empty secret": ("", {}, "no usable secret"),
    "no secrets": ([], {}, "no usable secret"),
    "a number": (12, {}, "must be str or bytes"),
    "the service's own timeout": (SECRET, {"timeout": 15}, "below 15 s"),
    "no timeout": (SECRET, {"timeout": 0}, "above 0"),
    "a negative tolerance": (SECRET, {"tolerance": -1}, "tolerance"),
    "a queue in memory": (SECRET, {"queue": True}, "SQLiteDedupe"),
    "a queue in given memory": (SECRET, {"queue": True, "dedupe": MemoryDedupe()}, "SQLiteDedupe"),
}


@pytest.mark.parametrize(("secrets", "options", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_settings_that_cannot_work_are_refused_at_once(secrets: Any, options: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        WebhookReceiver(secrets, print, **options)


async def test_a_receiver_runs_once_at_a_time(clock: FakeClock) -> None:
    app = receiver_of(Handler(), clock)
    for _ in range(2):
        async with app:
            with pytest.raises(ConfigurationError, match="running already"):
                await app.__aenter__()


async def live(app: WebhookReceiver, between: Callable[[], Awaitable[object]]) -> list[Any]:
    """Run an app's lifespan as a server does; return the app's messages."""
    sent: list[Any] = []
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "lifespan.startup"}
        await between()
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent


async def test_the_servers_lifetime_is_the_receivers(clock: FakeClock, tmp_path: Path) -> None:
    handler = Handler()
    app = queue_of(handler, clock, tmp_path)

    async def between() -> None:
        assert (await ask(app, BODY, HEADERS))[0] == 204
        await until(lambda: bool(handler.events))

    messages = await live(app, between)
    assert [each["type"] for each in messages] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_receiver_that_cannot_start_says_why(clock: FakeClock, tmp_path: Path) -> None:
    async def never() -> None:
        raise AssertionError

    [message] = await live(queue_of(Handler(), clock, tmp_path / "nowhere"), never)
    assert message["type"] == "lifespan.startup.failed"
    assert "cannot be used" in message["message"]


# ---- mounted

MOUNTS = [
    ("/", "/", ""),
    ("/", "", ""),
    ("/hook", "/hook", ""),
    ("/hook", "/hook/", ""),
    ("hook/", "/hook", ""),
    ("/", "/api", "/api"),
    ("/", "/api/", "/api"),
    ("/hook", "/api/hook", "/api"),
    ("/hook", "/api/hook", "/api/"),
    ("/hook", "/hook", "/api"),  # a framework that removes the mount point from the path
    ("/apihook", "/apihook", "/api"),
]


@pytest.mark.parametrize(("path", "requested", "root_path"), MOUNTS)
async def test_its_path_is_relative_to_where_it_is_mounted(
    path: str, requested: str, root_path: str, clock: FakeClock
) -> None:
    app = receiver_of(Handler(), clock, path=path)
    assert (await ask(app, BODY, HEADERS, path=requested, root_path=root_path))[0] == 204
    assert (await ask(app, BODY, HEADERS, path=f"{requested}/x", root_path=root_path))[0] == 404


async def test_it_can_be_mounted_in_fastapi_and_starlette(clock: FakeClock) -> None:
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    handler = Handler()
    mounted, routed = receiver_of(handler, clock), receiver_of(handler, clock, path="/hooks/in")
    fastapi = FastAPI(routes=[Route("/hooks/in", routed)])
    fastapi.mount("/hooks", mounted)
    starlette = Starlette(routes=[Route("/hooks/in", routed), Mount("/hooks", mounted)])
    for app in (fastapi, starlette):
        handler.events.clear()
        for path in ("/hooks/", "/hooks/in"):
            for number in (1, 2):
                body = body_of(jobId=f"{id(app)}-{path}-{number}")
                assert (await ask(app, body, headers_of(body), **scope_of(path)))[0] == 204
        assert (await ask(app, BODY, {}, **scope_of("/hooks/in")))[0] == 401
        assert len(handler.events) == 4


async def test_it_can_be_mounted_in_litestar_and_quart(clock: FakeClock) -> None:
    from hypercorn.middleware import DispatcherMiddleware
    from litestar import Litestar, asgi
    from quart import Quart

    handler = Handler()
    receiver = receiver_of(handler, clock, path="/convertrilo")
    litestar = Litestar(route_handlers=[asgi("/webhooks", is_mount=True, copy_scope=True)(receiver)])
    mounts: Any = {"/webhooks": receiver, "": Quart("app")}
    apps: dict[str, Any] = {"litestar": litestar, "quart": DispatcherMiddleware(mounts)}
    for name, app in apps.items():
        body = body_of(jobId=name)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test") as http:
            answers = [
                await http.post(f"/webhooks{path}", content=body, headers=headers)
                for path, headers in (("/convertrilo", headers_of(body)), ("/convertrilo", {}), ("/other", {}))
            ]
        assert [each.status_code for each in answers] == [204, 401, 404]
    assert [event.job_id for event in handler.events] == ["litestar", "quart"]


def scope_of(path: str) -> dict[str, Any]:
    return {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "http_version": "1.1"}
