"""Webhooks: subscriptions and their deliveries."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from sandbox_help import ON_DEMAND, URL_JOB, client_of
from starlette.types import Receive, Scope, Send

from convertrilo.sandbox import Rules, Sandbox, VirtualClock

HOOK = {"url": "https://hooks.example/a", "events": ["job.completed", "job.failed"]}


class Receiver(httpx.AsyncBaseTransport):
    """A webhook receiver that answers with a fixed status."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.taken.append(request)
        return httpx.Response(self.status, text="x" * 3000)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def sandbox(clock: VirtualClock, receiver: Receiver) -> AsyncIterator[Sandbox]:
    async with Sandbox(clock=clock, seed=1, webhook_transport=receiver) as sandbox:
        yield sandbox


async def test_a_webhook_is_managed(http: httpx.AsyncClient) -> None:
    made = (await http.post("/webhooks", json=HOOK)).json()
    assert made["secret"]
    assert (made["isActive"], made["failureCount"], made["events"]) == (True, 0, HOOK["events"])
    listed = (await http.get("/webhooks")).json()["webhooks"]
    assert listed == [{name: value for name, value in made.items() if name != "secret"}]
    changed = (await http.patch(f"/webhooks/{made['id']}", json={"isActive": False, "events": ["job.queued"]})).json()
    assert (changed["isActive"], changed["events"], changed["url"]) == (False, ["job.queued"], HOOK["url"])
    answer = await http.patch(f"/webhooks/{made['id']}", json={})
    assert (answer.status_code, answer.json()["code"]) == (400, "no_updates_provided")
    assert (await http.delete(f"/webhooks/{made['id']}")).status_code == 204
    assert (await http.get("/webhooks")).json() == {"webhooks": []}


async def test_an_account_has_so_many_webhooks_at_most(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, rules=Rules(max_webhooks=1)) as sandbox, client_of(sandbox) as http:
        assert (await http.post("/webhooks", json=HOOK)).status_code == 200
        answer = await http.post("/webhooks", json=HOOK)
        assert (answer.status_code, answer.json()["code"]) == (400, "webhook_limit_exceeded")


async def test_events_are_delivered_signed_over_the_raw_body(
    sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    made = (await http.post("/webhooks", json=HOOK)).json()
    job = (await http.post("/jobs", json={**URL_JOB, "confirm": True, "externalId": "a", "metadata": {"b": 1}})).json()
    await sandbox.wait_until_idle()
    [delivery] = receiver.taken
    body = delivery.content
    signature = hmac.new(made["secret"].encode(), body, hashlib.sha256).hexdigest()
    assert delivery.headers["x-webhook-signature"] == signature
    assert (delivery.headers["x-webhook-event"], delivery.headers["x-webhook-id"]) == ("job.completed", made["id"])
    assert json.loads(body) == {
        "event": "job.completed",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "data": {
            "jobId": job["jobId"],
            "userId": sandbox.account_id,
            "status": "success",
            "encoder": "instant",
            "durationSec": 60,
            "finalNeu": 2,
            "externalId": "a",
            "metadata": {"b": 1},
        },
    }
    [recorded] = (await http.get(f"/webhooks/{made['id']}/deliveries")).json()["deliveries"]
    assert (recorded["status"], recorded["statusCode"], recorded["attempt"]) == ("success", 200, 1)
    assert len(recorded["responseBody"]) == 2048


async def test_every_status_has_its_event(sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver) -> None:
    events = ["job.created", "job.queued", "job.running", "job.completed", "job.failed", "job.canceled"]
    await http.post("/webhooks", json={**HOOK, "events": events})
    await http.post("/ondemand/encode", json=ON_DEMAND)
    await sandbox.wait_until_idle()
    sandbox.fail_jobs("no")
    await http.post("/ondemand/encode", json=ON_DEMAND)
    await sandbox.wait_until_idle()
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    await http.post(f"/jobs/{job}/cancel")
    await sandbox.wait_until_idle()
    seen = sorted(each.headers["x-webhook-event"] for each in receiver.taken)
    assert seen == sorted([*events[:3] * 2, "job.created", *events[3:]])
    failed = next(json.loads(each.content) for each in receiver.taken if each.headers["x-webhook-event"] == events[4])
    assert (failed["data"]["error"], failed["data"]["failureCode"]) == ("no", "encode_failed")


async def test_a_failed_delivery_is_tried_again_after_1_5_and_30_minutes(
    sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver, clock: VirtualClock
) -> None:
    receiver.status = 500
    made = (await http.post("/webhooks", json=HOOK)).json()
    await http.post(f"/webhooks/{made['id']}/test")
    await sandbox.wait_until_idle()
    for attempts, minutes in ((1, 1), (2, 5), (3, 30)):
        assert len(receiver.taken) == attempts
        clock.advance(minutes * 60 - 1)
        await sandbox.wait_until_idle()
        assert len(receiver.taken) == attempts
        clock.advance(1)
        await sandbox.wait_until_idle()
    clock.advance(86_400)
    await sandbox.wait_until_idle()
    assert len(receiver.taken) == 4
    assert len({each.content for each in receiver.taken}) == 1
    assert len({each.headers["x-webhook-signature"] for each in receiver.taken}) == 1
    recorded = (await http.get(f"/webhooks/{made['id']}/deliveries")).json()["deliveries"]
    assert [(each["attempt"], each["status"], each["event"]) for each in recorded] == [
        (4, "failed", "webhook.test"),
        (3, "failed", "webhook.test"),
        (2, "failed", "webhook.test"),
        (1, "failed", "webhook.test"),
    ]
    assert [each["retriedAt"] is None for each in recorded] == [True, False, False, False]
    assert recorded[0]["nextRetryAt"] is None
    assert recorded[3]["nextRetryAt"] == "2026-01-01T00:01:00Z"


async def test_ten_failures_in_a_row_switch_a_webhook_off_until_it_is_switched_on(
    sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.status = 500
    made = (await http.post("/webhooks", json=HOOK)).json()
    for _ in range(10):
        await http.post("/ondemand/encode", json=ON_DEMAND)
        await sandbox.wait_until_idle()
    [webhook] = (await http.get("/webhooks")).json()["webhooks"]
    assert (webhook["isActive"], webhook["failureCount"]) == (False, 10)
    await http.post("/ondemand/encode", json=ON_DEMAND)
    await sandbox.wait_until_idle()
    assert len(receiver.taken) == 10
    receiver.status = 200
    on = (await http.patch(f"/webhooks/{made['id']}", json={"isActive": True})).json()
    assert (on["isActive"], on["failureCount"]) == (True, 0)
    await http.post("/ondemand/encode", json=ON_DEMAND)
    await sandbox.wait_until_idle()
    assert len(receiver.taken) == 11


async def test_a_webhook_that_is_switched_off_is_sent_nothing_more(
    sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver, clock: VirtualClock
) -> None:
    receiver.status = 500
    path = f"/webhooks/{(await http.post('/webhooks', json=HOOK)).json()['id']}"
    await http.post("/ondemand/encode", json=ON_DEMAND)
    await sandbox.wait_until_idle()
    await http.patch(path, json={"isActive": False})
    [recorded] = (await http.get(f"{path}/deliveries")).json()["deliveries"]
    assert recorded["nextRetryAt"] is None
    clock.advance(60)
    await sandbox.wait_until_idle()
    await http.patch(path, json={"isActive": True})
    clock.advance(3_600)
    await sandbox.wait_until_idle()
    assert len(receiver.taken) == 1


async def _app_with_a_bug(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("a bug")


def _in_an_odd_encoding(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/plain; charset=hex"}, content=b"zz")


@pytest.mark.parametrize(
    ("url", "transport", "error"),
    [
        ("https://hooks.example/a", httpx.ASGITransport(_app_with_a_bug), "ZeroDivisionError: a bug"),
        ("https://hooks.example/a", httpx.MockTransport(_in_an_odd_encoding), None),
        ("https://xn--/", httpx.MockTransport(_in_an_odd_encoding), "IDNAError"),
        ("http://127.0.0.1:99999/", None, ""),
    ],
    ids=["an app that raises", "an encoding that is none of text", "a host that is none", "a port that is none"],
)
async def test_whatever_a_receiver_does_the_sandbox_lives_on(
    url: str, transport: httpx.AsyncBaseTransport | None, error: str | None
) -> None:
    async with Sandbox(clock=VirtualClock(), webhook_transport=transport) as sandbox, client_of(sandbox) as http:
        await http.post("/webhooks", json={**HOOK, "url": url})
        for _ in range(2):
            await http.post("/ondemand/encode", json=ON_DEMAND)
            await sandbox.wait_until_idle()
        assert [each.status for each in sandbox.webhooks] == ["success" if error is None else "failed"] * 2
        assert all(error is None or error in str(each.error) for each in sandbox.webhooks)


async def test_a_one_off_callback_is_unsigned_and_comes_once_at_the_end(
    sandbox: Sandbox, http: httpx.AsyncClient, receiver: Receiver, clock: VirtualClock
) -> None:
    receiver.status = 500
    await http.post("/ondemand/encode", json={**ON_DEMAND, "webhook": "https://hooks.example/b"})
    await sandbox.wait_until_idle()
    clock.advance(86_400)
    await sandbox.wait_until_idle()
    [callback] = receiver.taken
    assert callback.url == "https://hooks.example/b"
    assert "x-webhook-signature" not in callback.headers
    assert json.loads(callback.content)["event"] == "job.completed"
