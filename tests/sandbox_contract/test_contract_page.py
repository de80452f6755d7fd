"""The contract's rules beyond its schemas, in the order of the contract, and the tests that show them.

Most rules are tested with their part of the sandbox. The table names those tests; the other rules are tested below.

| the contract says | shown by |
|---|---|
| **Authentication**: an API key, else a bearer token asked for per request | test_client.py; test_sandbox_auth.py |
| `login` and `/public` send no credentials | `test_login_and_public_operations_take_no_credentials` |
| `/api-keys` takes a bearer token only | test_sandbox_auth.py: an_api_key_does_not_manage_api_keys |
| base URL and environment | test_client.py |
| a missing scope is 403 with `requiredScope` | test_sandbox_auth.py: a_missing_scope_is_named |
| **Idempotency**: four operations, at most 255 characters, optional | test_sandbox_keys.py; test_table.py |
| same key, same body: the original response; nothing twice | test_sandbox_keys.py; below, for tokens and the queue |
| other body: 409 `idempotency_conflict`; still running: `idempotency_in_progress` | test_sandbox_keys.py |
| jobs cannot be listed, nor found by `externalId` | `test_jobs_cannot_be_listed_nor_found_by_their_external_id` |
| **Errors**: body, `code`, `issues`, `required`, `available` | test_sandbox_codes.py, test_sandbox_errors.py |
| a proxy may answer HTML or nothing | `test_what_a_proxy_answers_becomes_a_clear_error` |
| new codes, statuses, fields and values break no client | `test_what_the_future_brings_breaks_no_client` |
| **Life of a job**: created, queued, running (percent), ended | test_sandbox_jobs.py |
| `upload` is there or null | `test_only_a_job_without_a_source_is_told_where_to_upload` |
| `approveUnified` reserves and does not queue; `confirmJob` reserves if needed and queues | below |
| `confirm: true` queues at once | test_sandbox_jobs.py; test_sandbox_bulk.py |
| chunked upload | test_sandbox_uploads.py |
| `cancelJob` is a no-op later; `onDemandCancel` tells what was released | test_sandbox_jobs.py; below |
| tokens, available and reserved; 1.5 and 2 times | test_sandbox_tokens.py; test_books.py |
| `downloadUrl` is signed and temporary; `outputExpiry`, by default 86400 | test_sandbox_uploads.py; below |
| a 200 means queued; the job may fail later | `test_an_accepted_job_may_fail_later_and_says_why` |
| **Bulk**: per item, `failFast`, `dryRun`, `confirm`; `missing` | test_sandbox_bulk.py |
| a replay repeats the failures; a new batch with a new key does not | below |
| **Folder ingest** | test_sandbox_s3.py, test_sandbox_drive.py, test_sandbox_codes.py |
| no session-token field | `test_s3_credentials_have_no_session_token` |
| **Webhooks**: signature, headers, body, events, secret once, retries, switched off | test_sandbox_webhooks.py |
| 15 s to answer | `test_a_receiver_has_fifteen_seconds` |
| the last 50 attempts, cut at 2048 characters | below; test_sandbox_webhooks.py |
| `webhook` on `onDemandEncode`: one, unsigned | test_sandbox_webhooks.py |
"""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from convertrilo import APIError, AsyncClient, JobFailedError, RetryPolicy, ServerError, models
from convertrilo._model import field_specs
from convertrilo.operations import OPERATIONS, Auth
from convertrilo.sandbox import Sandbox, VirtualClock
from convertrilo.sandbox.outside import deliveries

JOB = {"codec": "h264", "resolution": "720p", "fps": 30}
SOURCE = "https://media.example/holiday.mov"
ON_DEMAND = {"sourceUrl": SOURCE}


@pytest.fixture
async def bare(convertrilo_sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    sandbox = convertrilo_sandbox
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url) as http:
        yield http


# ---- Authentication


async def test_login_and_public_operations_take_no_credentials(
    convertrilo_sandbox: Sandbox, bare: httpx.AsyncClient
) -> None:
    login = {"email": convertrilo_sandbox.email, "password": convertrilo_sandbox.password}
    wrong = {"x-api-key": "wrong", "authorization": "Bearer wrong"}
    for headers in ({}, wrong):
        assert (await bare.post("/auth/login", json=login, headers=headers)).status_code == 200
        job = (await bare.post("/public/jobs", json={**JOB, "sourceUrl": SOURCE}, headers=headers)).json()
        path = f"/public/jobs/{job['jobId']}"
        assert (await bare.get(f"{path}/probe-duration", headers=headers)).status_code == 200
        assert (await bare.post(f"{path}/confirm", headers=headers)).status_code == 200
        assert (await bare.get(f"{path}/status", params={"token": job["token"]}, headers=headers)).status_code == 200
    public = {name for name, row in OPERATIONS.items() if row.auth is Auth.NONE}
    assert public == {"login", "createPublicJob", "probePublicDuration", "confirmPublicJob", "publicJobStatus"}


# ---- Idempotency


async def test_a_repeated_request_reserves_and_queues_nothing_more(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    body = {**JOB, "sourceUrl": SOURCE, "confirm": True}
    first = await convertrilo_client.create_job(body, idempotency_key="once")
    await convertrilo_sandbox.wait_until_idle()
    books = convertrilo_sandbox.tokens
    assert await convertrilo_client.create_job(body, idempotency_key="once") == first
    await convertrilo_sandbox.wait_until_idle()
    assert convertrilo_sandbox.tokens == books
    assert len(convertrilo_sandbox.jobs) == 1


async def test_jobs_cannot_be_listed_nor_found_by_their_external_id(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient, bare: httpx.AsyncClient
) -> None:
    await convertrilo_client.create_job({**JOB, "externalId": "holiday-42"})
    bare.headers["x-api-key"] = convertrilo_sandbox.api_key
    assert (await bare.get("/jobs")).status_code == 405
    assert (await bare.get("/jobs/holiday-42/status")).status_code == 404
    answer = (await bare.get("/jobs/bulk/status", params={"ids": "holiday-42"})).json()
    assert answer == {"jobs": [], "missing": ["holiday-42"]}


# ---- Errors


@pytest.mark.parametrize("body", ["<html><h1>502 Bad Gateway</h1></html>", b""])
async def test_what_a_proxy_answers_becomes_a_clear_error(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient, body: str | bytes
) -> None:
    convertrilo_sandbox.faults.status("jobStatus", 502, headers={"content-type": "text/html"}, body=body, times=None)
    with pytest.raises(ServerError, match="502") as caught:
        await convertrilo_client.with_options(retry=RetryPolicy.none()).job_status("any")
    assert caught.value.status == 502


async def test_what_the_future_brings_breaks_no_client(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    faults = convertrilo_sandbox.faults
    faults.status("jobStatus", 418, body={"code": "teapot", "message": "short and stout", "spout": 1})
    with pytest.raises(APIError) as caught:
        await convertrilo_client.job_status("any")
    assert (caught.value.status, caught.value.code) == (418, "teapot")
    faults.status("jobStatus", 200, body={"id": "j", "status": "napping", "dreams": ["of sheep"]})
    status = await convertrilo_client.job_status("j")
    assert status.status == "napping"
    assert status.extra["dreams"] == ["of sheep"]


# ---- Life of a job


async def test_only_a_job_without_a_source_is_told_where_to_upload(convertrilo_client: AsyncClient) -> None:
    place = {"bucket": "videos", "key": "a.mov", "region": "eu-west-1", "accessKeyId": "a", "secretAccessKey": "s"}
    assert (await convertrilo_client.create_job(JOB)).upload is not None
    assert (await convertrilo_client.create_job({**JOB, "sourceUrl": SOURCE})).upload is None
    assert (await convertrilo_client.create_job({**JOB, "sourceS3": place})).upload is None


async def test_approval_reserves_and_does_not_queue_and_confirmation_queues(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    approved, confirmed = [(await convertrilo_client.create_job({**JOB, "sourceUrl": SOURCE})).job_id for _ in range(2)]
    answer = await convertrilo_client.approve_unified(approved)
    assert answer.estimate is not None
    price = convertrilo_sandbox.tokens.reserved
    assert answer.estimate.total_neu == answer.estimate.reserved == price > 0
    await convertrilo_sandbox.wait_until_idle()
    assert {job.status for job in convertrilo_sandbox.jobs} == {"created"}
    for job, reserved in ((confirmed, price), (approved, 0)):
        await convertrilo_client.confirm_job(job)
        await convertrilo_sandbox.wait_until_idle()
        assert (await convertrilo_client.job_status(job)).status == "success"
        assert convertrilo_sandbox.tokens.reserved == reserved
    assert convertrilo_sandbox.tokens.spent == 2 * price


@pytest.mark.convertrilo(encode_seconds=60)
async def test_an_on_demand_cancellation_tells_what_it_released(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    job = (await convertrilo_client.on_demand_encode(ON_DEMAND)).job_id
    reserved = convertrilo_sandbox.tokens.reserved
    assert reserved > 0
    assert (await convertrilo_client.on_demand_cancel(job)).released == reserved
    assert (await convertrilo_client.on_demand_cancel(job)).released == 0
    assert convertrilo_sandbox.tokens.reserved == 0


@pytest.mark.parametrize(("asked", "seconds"), [({}, 86_400), ({"outputExpiry": 3600}, 3600)])
async def test_an_on_demand_output_stays_for_its_time(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient, asked: dict[str, Any], seconds: int
) -> None:
    job = (await convertrilo_client.on_demand_encode({**ON_DEMAND, **asked})).job_id
    await convertrilo_sandbox.wait_until_idle()
    status = await convertrilo_client.on_demand_status(job)
    assert status.download_url is not None
    assert status.expires_in == seconds
    assert isinstance(convertrilo_sandbox.clock, VirtualClock)
    convertrilo_sandbox.clock.advance(seconds)
    assert (await convertrilo_client.on_demand_status(job)).download_url is None


async def test_an_accepted_job_may_fail_later_and_says_why(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    convertrilo_sandbox.fail_jobs("the film tore")
    job = await convertrilo_client.on_demand_encode(ON_DEMAND)
    assert job.status == "queued"
    with pytest.raises(JobFailedError, match="the film tore"):
        await convertrilo_client.wait_for_on_demand(job.job_id)
    assert (await convertrilo_client.on_demand_status(job.job_id)).failure_message == "the film tore"


# ---- Bulk


@pytest.mark.convertrilo(tokens=2)
async def test_a_replayed_batch_repeats_its_failures_and_a_new_one_tries_them_again(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    jobs = [{**JOB, "sourceUrl": SOURCE, "externalId": name} for name in ("a", "b")]
    batch: dict[str, Any] = {"jobs": jobs, "settings": {"confirm": True}}
    convertrilo_sandbox.fail_jobs("so its tokens come back")
    first = await convertrilo_client.create_jobs_bulk(batch, idempotency_key="batch-1")
    assert [item.error is None for item in first.jobs or ()] == [True, False]
    await convertrilo_sandbox.wait_until_idle()
    assert await convertrilo_client.create_jobs_bulk(batch, idempotency_key="batch-1") == first
    again = {**batch, "jobs": jobs[1:]}
    second = await convertrilo_client.create_jobs_bulk(again, idempotency_key="batch-2")
    assert [(item.external_id, item.error) for item in second.jobs or ()] == [("b", None)]
    convertrilo_sandbox.assert_created_once(external_id="a")
    convertrilo_sandbox.assert_created_once(external_id="b")


# ---- Folder ingest


def test_s3_credentials_have_no_session_token() -> None:
    for model in (models.S3Source, models.S3Output, models.S3FolderSource, models.S3FolderOutput):
        names = {spec.name for spec in field_specs(model)}
        assert {"access_key_id", "secret_access_key", "endpoint", "force_path_style"} <= names
        assert not any("session" in name for name in names)


# ---- Webhooks


class _NeverAnswers(httpx.AsyncBaseTransport):
    async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_receiver_has_fifteen_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deliveries.TIMEOUT_SECONDS == 15
    monkeypatch.setattr(deliveries, "TIMEOUT_SECONDS", 0.01)
    async with Sandbox(seed=1, webhook_transport=_NeverAnswers()) as sandbox, sandbox.client() as client:
        hook = await client.create_webhook({"url": "https://app.example/hook", "events": ["job.completed"]})
        assert hook.id is not None
        await client.test_webhook(hook.id)
        await sandbox.wait_until_idle()
        [attempt] = sandbox.webhooks
    assert (attempt.status, attempt.status_code, attempt.event) == ("failed", None, "webhook.test")
    assert "TimeoutError" in (attempt.error or "")


async def test_the_last_fifty_attempts_are_listed(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    hook = await convertrilo_client.create_webhook({"url": "https://app.example/hook", "events": ["job.completed"]})
    assert hook.id is not None
    for _ in range(52):
        await convertrilo_client.test_webhook(hook.id)
    await convertrilo_sandbox.wait_until_idle()
    listed = (await convertrilo_client.get_webhook_deliveries(hook.id)).deliveries
    made = [each.id for each in convertrilo_sandbox.webhooks]
    assert len(made) == 52
    assert listed is not None
    assert sorted(str(each.id) for each in listed) == sorted(made[2:])
