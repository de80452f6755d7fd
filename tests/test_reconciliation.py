"""`reconcile` passes the ends of jobs without a webhook to the handler, once each."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_clock import FakeClock
from support import Script, Sent, client_of, ok, problem
from webhook_help import NOW, SECRET, ask, headers_of

from convertrilo import AsyncClient, Journal, MemoryDedupe, WebhookEvent, WebhookReceiver, reconcile
from convertrilo.reconciliation import Reconciliation
from convertrilo.sandbox import Sandbox

JOB = {"codec": "h264", "resolution": "720p", "fps": 30, "sourceUrl": "https://media.example/a.mov"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW, sleepers="wait")


@pytest.fixture
async def journal(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Journal]:
    async with Journal(tmp_path / "journal.db", clock=clock) as journal:
        yield journal


@pytest.fixture
async def sandbox(clock: FakeClock) -> AsyncIterator[Sandbox]:
    async with Sandbox(clock=clock, seed=3) as sandbox:
        yield sandbox


@pytest.fixture
async def client(sandbox: Sandbox, journal: Journal, clock: FakeClock) -> AsyncIterator[AsyncClient]:
    async with sandbox.client(journal=journal, clock=clock) as client:
        yield client


async def test_the_ends_of_all_kinds_of_jobs_are_handed_over_once(
    sandbox: Sandbox, client: AsyncClient, journal: Journal, clock: FakeClock
) -> None:
    events: list[WebhookEvent] = []
    dedupe = MemoryDedupe()

    async def run() -> Reconciliation:
        return await reconcile(client, journal, events.append, dedupe=dedupe, clock=clock)

    single = await client.create_job({**JOB, "externalId": "single", "metadata": {"a": 1}})
    canceled = await client.create_job({**JOB, "externalId": "canceled"})
    await client.cancel_job(canceled.job_id)
    bulk = await client.create_jobs_bulk({"jobs": [JOB, {**JOB, "externalId": "b"}], "settings": {"confirm": True}})
    await sandbox.wait_until_idle()
    sandbox.fail_jobs("no video stream")
    failed = await client.on_demand_encode({"sourceUrl": "https://media.example/a.mov"})
    await sandbox.wait_until_idle()

    assert await run() == Reconciliation(open=1, handled=4, failed=0)
    told = {event.job_id: (event.event, event.status, event.error) for event in events}
    assert told == {
        canceled.job_id: ("job.canceled", "canceled", None),
        **{item.job_id: ("job.completed", "success", None) for item in bulk.jobs or ()},
        failed.job_id: ("job.failed", "failed", "no video stream"),
    }
    assert await run() == Reconciliation(open=1, handled=0, failed=0)

    await client.confirm_job(single.job_id)
    await sandbox.wait_until_idle()
    assert await run() == Reconciliation(open=0, handled=1, failed=0)
    assert (events[-1].job_id, events[-1].external_id, events[-1].metadata) == (single.job_id, "single", {"a": 1})
    assert len(events) == 5


async def test_jobs_that_were_submitted_in_batches_are_among_them(
    sandbox: Sandbox, client: AsyncClient, journal: Journal, clock: FakeClock
) -> None:
    jobs = [{**JOB, "externalId": f"video-{number}"} for number in range(250)]
    made = {each.job_id async for each in client.submit_jobs(jobs, settings={"confirm": True}, batch_size=100)}
    await sandbox.wait_until_idle()
    events: list[WebhookEvent] = []
    result = await reconcile(client, journal, events.append, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=0, handled=250, failed=0)
    assert {event.job_id for event in events} == made


async def test_what_the_receiver_handled_is_not_handed_over_and_what_was_is_not_received_again(
    sandbox: Sandbox, client: AsyncClient, journal: Journal, clock: FakeClock
) -> None:
    events: list[WebhookEvent] = []
    dedupe = MemoryDedupe()
    receiver = WebhookReceiver(SECRET, events.append, dedupe=dedupe, clock=clock)
    jobs = [await client.on_demand_encode({"sourceUrl": f"https://media.example/{name}.mov"}) for name in "ab"]
    await sandbox.wait_until_idle()

    async def deliver(job_id: str) -> None:
        data = {"jobId": job_id, "status": "success"}
        body = json.dumps({"event": "job.completed", "timestamp": "2026-01-01T00:00:00Z", "data": data}).encode()
        assert await ask(receiver, body, headers_of(body)) == (204, b"")

    await deliver(jobs[0].job_id)
    assert (await reconcile(client, journal, events.append, dedupe=dedupe, clock=clock)).handled == 1
    await deliver(jobs[1].job_id)
    assert [event.job_id for event in events] == [job.job_id for job in jobs]


async def test_one_event_that_fails_keeps_no_other_back_and_comes_again(
    sandbox: Sandbox, client: AsyncClient, journal: Journal, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[WebhookEvent] = []

    async def handler(event: WebhookEvent) -> None:
        events.append(event)
        if len(events) == 2:
            raise LookupError("no such video")

    for name in "abc":
        await client.on_demand_encode({"sourceUrl": f"https://media.example/{name}.mov"})
    await sandbox.wait_until_idle()
    dedupe = MemoryDedupe()
    assert await reconcile(client, journal, handler, dedupe=dedupe, clock=clock) == Reconciliation(
        open=0, handled=2, failed=1
    )
    assert "no such video" in caplog.text
    assert await reconcile(client, journal, handler, dedupe=dedupe, clock=clock) == Reconciliation(
        open=0, handled=1, failed=0
    )
    assert events[3].job_id == events[1].job_id


async def test_jobs_of_long_ago_are_left_alone(
    sandbox: Sandbox, client: AsyncClient, journal: Journal, clock: FakeClock
) -> None:
    await client.on_demand_encode({"sourceUrl": "https://media.example/a.mov"})
    await sandbox.wait_until_idle()
    clock.advance(100)
    result = await reconcile(client, journal, print, dedupe=MemoryDedupe(), within=99, clock=clock)
    assert result == Reconciliation(open=0, handled=0, failed=0)


# ---- what a service may be like


async def made(journal: Journal, operation: str, answer: Any, key: str | None = None) -> None:
    """Record an answered operation in the journal."""
    key = key or operation
    await journal.begin(service="localhost", operation=operation, key=key, body=b"{}", identity="key", name=None)
    await journal.answer(key, json.dumps(answer).encode())


def bulk_answer(count: int) -> dict[str, Any]:
    return {"jobs": [{"jobId": f"j-{number}"} for number in range(count)]}


async def test_a_thousand_jobs_cost_ten_requests(journal: Journal, clock: FakeClock) -> None:
    async def answer(sent: Sent) -> Any:
        ids = sent.target.partition("ids=")[2].replace("%2C", ",").split(",")
        return ok({"jobs": [{"id": job_id, "status": "success"} for job_id in ids]})

    await made(journal, "createJobsBulk", bulk_answer(1000))
    script = Script(answer)
    events: list[WebhookEvent] = []
    async with client_of(script) as client:
        result = await reconcile(client, journal, events.append, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=0, handled=1000, failed=0)
    assert script.attempts == 10
    assert len({event.job_id for event in events}) == 1000


async def test_a_service_that_minds_how_many_are_asked_for_is_asked_for_fewer(
    journal: Journal, clock: FakeClock
) -> None:
    async def answer(sent: Sent) -> Any:
        ids = sent.target.partition("ids=")[2].replace("%2C", ",").split(",")
        if len(ids) > 30 or ids == ["j-7"]:
            return problem(400, "invalid_request")
        ids = [job_id for job_id in ids if job_id != "j-7"]
        return ok({"jobs": [{"id": job_id, "status": "failed", "failureMessage": "no"} for job_id in ids]})

    await made(journal, "createJobsBulk", bulk_answer(100))
    events: list[WebhookEvent] = []
    async with client_of(Script(answer)) as client:
        result = await reconcile(client, journal, events.append, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=1, handled=99, failed=0)
    assert {(event.event, event.error) for event in events} == {("job.failed", "no")}


async def test_on_demand_jobs_that_bulk_status_does_not_know_are_asked_for_one_by_one(
    journal: Journal, clock: FakeClock
) -> None:
    async def answer(sent: Sent) -> Any:
        if "bulk" in sent.target:
            return ok({"jobs": [], "missing": ["o-1", "o-2", "j-1"]})
        if sent.target.endswith("o-1"):
            return ok({"jobId": "o-1", "status": "success", "finishedAt": "2025-12-31T23:00:00Z"})
        return problem(404, "job_not_found")

    await made(journal, "onDemandIngestFolder", {"jobs": [{"jobId": "o-1"}, {"jobId": "o-2"}, {"fileName": "a"}]})
    await made(journal, "createJob", {"jobId": "j-1", "upload": None, "output": {"key": "a"}})
    script = Script(answer)
    events: list[WebhookEvent] = []
    async with client_of(script) as client:
        result = await reconcile(client, journal, events.append, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=2, handled=1, failed=0)
    assert [sent.target.rpartition("/")[2] for sent in script.sent[1:]] == ["o-1", "o-2"]
    assert events[0].timestamp.isoformat() == "2025-12-31T23:00:00+00:00"


async def test_an_answer_in_the_journal_that_makes_no_sense_stops_nothing(journal: Journal, clock: FakeClock) -> None:
    await made(journal, "createJob", ["?"])
    await made(journal, "createJobsBulk", bulk_answer(1))
    await made(journal, "renamedOperation", {"jobId": "j-9"})
    async with client_of(Script(ok({"jobs": [{"id": "j-0", "status": "success"}]}))) as client:
        result = await reconcile(client, journal, print, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=0, handled=1, failed=0)


async def test_on_demand_jobs_are_read_some_at_a_time(journal: Journal, clock: FakeClock) -> None:
    together, most = anyio.Event(), 0

    async def answer(sent: Sent) -> Any:
        nonlocal most
        if "bulk" in sent.target:
            return ok({"jobs": [], "missing": []})
        most += 1
        if most == 8:
            together.set()
        await together.wait()  # blocks for ever if the requests come one after the other
        most -= 1
        return ok({"jobId": sent.target.rpartition("/")[2], "status": "success"})

    for number in range(20):
        await made(
            journal, "onDemandEncode", {"jobId": f"j-{number}", "status": "queued", "statusUrl": "/"}, f"k-{number}"
        )
    events: list[WebhookEvent] = []
    script = Script(answer)
    async with client_of(script, journal=None) as client:
        with anyio.fail_after(60):
            result = await reconcile(client, journal, events.append, dedupe=MemoryDedupe(), clock=clock)
    assert result == Reconciliation(open=0, handled=20, failed=0)
    assert [event.job_id for event in events] == [f"j-{number}" for number in range(20)]
