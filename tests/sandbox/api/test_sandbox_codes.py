"""The sandbox can produce every error code of the contract, in the shape that openapi.yaml defines."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import yaml
from sandbox_help import JOB, ON_DEMAND, URL_JOB, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock

OPENAPI = yaml.safe_load((Path(__file__).parents[3] / "openapi.yaml").read_text(encoding="utf-8"))
DOCUMENTED: list[str] = OPENAPI["components"]["schemas"]["ErrorResponse"]["properties"]["code"]["enum"]
LOGIN = {"email": "someone@example.com", "password": "sandbox-password"}
WEBHOOK = {"url": "https://hooks.example/", "events": ["job.completed"]}
FOLDER = {"sourceS3": {"bucket": "b-1"}}

Act = Callable[[Sandbox, httpx.AsyncClient], Awaitable[httpx.Response]]


def request(method: str, path: str, body: Any = None, **headers: str) -> Act:
    async def act(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
        return await http.request(method, path, json=body, headers=headers)

    return act


def source(url: str) -> Act:
    return request("POST", "/jobs", {**JOB, "sourceUrl": url})


async def with_token(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
    token = (await http.post("/auth/login", json=LOGIN)).json()["accessToken"]
    headers = {"authorization": f"Bearer {token}"}
    return await httpx.AsyncClient(transport=http._transport, base_url=http.base_url).request(
        method, path, json=body, headers=headers
    )


async def key_expired(sandbox: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    key = (await with_token(http, "POST", "/api-keys", {"name": "a", "expiresInDays": 1})).json()["key"]
    assert isinstance(sandbox.clock, VirtualClock)
    sandbox.clock.advance(86_400)
    return await http.get("/tokens/balance", headers={"x-api-key": key})


async def scope_missing(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    key = (await with_token(http, "POST", "/api-keys", {"name": "a", "scopes": ["jobs:read"]})).json()["key"]
    return await http.get("/tokens/balance", headers={"x-api-key": key})


async def banned(sandbox: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    await sandbox.ban()
    return await http.get("/tokens/balance")


async def conflict(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})
    return await http.post("/jobs", json=URL_JOB, headers={"idempotency-key": "k"})


async def in_progress(sandbox: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    sandbox.faults.in_progress("createJob")
    return await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})


async def too_many_webhooks(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    await http.post("/webhooks", json=WEBHOOK)
    return await http.post("/webhooks", json=WEBHOOK)


async def no_updates(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    webhook = (await http.post("/webhooks", json=WEBHOOK)).json()["id"]
    return await http.patch(f"/webhooks/{webhook}", json={})


async def output_expired(sandbox: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    job = (await http.post("/ondemand/encode", json={**ON_DEMAND, "outputExpiry": 3600})).json()["jobId"]
    await sandbox.wait_until_idle()
    url = (await http.get(f"/ondemand/status/{job}")).json()["downloadUrl"]
    await sandbox._store.transaction(lambda tx: tx.run("UPDATE jobs SET output_expiry = 0 WHERE id = ?", job))
    async with client_of(sandbox, accept="*/*") as bare:
        return await bare.get(url)


async def wrong_signature(sandbox: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    url = (await http.post("/jobs", json=JOB)).json()["upload"]["url"]
    async with client_of(sandbox, accept="*/*") as bare:
        return await bare.put(f"{url}0", content=b"film")


async def second_in_a_minute(_: Sandbox, http: httpx.AsyncClient) -> httpx.Response:
    await http.get("/tokens/balance")
    return await http.get("/tokens/balance")


def serving(**answer: Any) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(**{"status_code": 200, **answer}))


async def endless() -> Any:
    yield b"film"


@attrs.frozen
class Case:
    """How to provoke an error code: a request, and the rules and options of the sandbox."""

    status: int
    act: Act
    rules: dict[str, Any] = attrs.field(factory=dict)
    options: dict[str, Any] = attrs.field(factory=dict)


ENCODE = request("POST", "/ondemand/encode", ON_DEMAND)
WEB = "https://media.example/a.mp4"
EMPTY = serving(text="<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
TEXT = serving(headers={"content-type": "text/plain"}, content=b"film")
DRIVE = {"sourceGoogleDrive": {"folderId": "f", "accessToken": "stale"}}
CASES: dict[str, Case] = {
    "invalid_api_key": Case(401, request("GET", "/tokens/balance", **{"x-api-key": "wrong"})),
    "api_key_expired": Case(401, key_expired),
    "user_not_found": Case(401, request("POST", "/auth/login", {**LOGIN, "password": "wrong-password"})),
    "account_banned": Case(403, banned),
    "missing_required_scope": Case(403, scope_missing),
    "invalid_request": Case(400, request("GET", "/jobs/bulk/status")),
    "invalid_body": Case(400, request("POST", "/jobs", {})),
    "invalid_url": Case(400, source("ftp://media.example/a.mp4")),
    "url_ingest_disabled": Case(400, source(WEB), {"url_ingest": False}),
    "url_host_blocked": Case(400, source(WEB), {"blocked_hosts": frozenset({"media.example"})}),
    "signed_url_required": Case(400, source(WEB), {"signed_urls_only": True}),
    "host_not_resolvable": Case(400, source("https://no-such-host.invalid/a.mp4"), {}, {"encoder": "ffmpeg"}),
    "private_ip_blocked": Case(400, source("http://127.0.0.1/a.mp4")),
    "missing_content_length": Case(400, ENCODE, {}, {"source_transport": serving(content=endless())}),
    "file_too_large": Case(400, ENCODE, {"max_source_bytes": 3}, {"source_transport": serving(content=b"film")}),
    "unsupported_content_type": Case(400, ENCODE, {}, {"source_transport": TEXT}),
    "probe_failed": Case(400, ENCODE, {}, {"source_transport": serving(status_code=404)}),
    "insufficient_tokens": Case(402, ENCODE, {}, {"tokens": 1}),
    "idempotency_conflict": Case(409, conflict),
    "idempotency_in_progress": Case(409, in_progress),
    "rate_limit_exceeded": Case(429, second_in_a_minute, {"requests_per_minute": 1}),
    "not_found": Case(404, request("GET", "/jobs/nowhere/status")),
    "forbidden": Case(403, wrong_signature),
    "deprecated_dropbox": Case(410, request("POST", "/ondemand/ingest/folder", {"sourceDropbox": {"path": "/"}})),
    "google_drive_not_connected": Case(401, request("POST", "/ondemand/ingest/folder", DRIVE)),
    "dropbox_not_connected": Case(
        401, request("POST", "/ondemand/ingest/folder", {"sourceDropbox": {"path": "/"}}), {"dropbox": "not_connected"}
    ),
    "no_video_files_found": Case(
        404, request("POST", "/ondemand/ingest/folder", FOLDER), {}, {"source_transport": EMPTY}
    ),
    "webhook_limit_exceeded": Case(400, too_many_webhooks, {"max_webhooks": 1}),
    "webhook_not_found": Case(404, request("DELETE", "/webhooks/nowhere")),
    "no_updates_provided": Case(400, no_updates),
    "output_not_available": Case(404, output_expired),
}


def test_every_documented_code_has_a_case() -> None:
    assert len(DOCUMENTED) == 31
    assert set(CASES) == set(DOCUMENTED)


@pytest.mark.parametrize("code", DOCUMENTED)
async def test_a_code_is_answered_with_its_status_and_prose(clock: VirtualClock, code: str) -> None:
    case = CASES[code]
    options: dict[str, Any] = {"clock": clock, "seed": 1, "rules": Rules(**case.rules), **case.options}
    async with Sandbox(**options) as sandbox, client_of(sandbox) as http:
        answer = await case.act(sandbox, http)
    assert (answer.status_code, answer.json()["code"]) == (case.status, code)
    assert answer.json()["message"].endswith(".")
    further = set(answer.json()) - {"code", "message"}
    expected = {
        "invalid_body": {"issues"},
        "missing_required_scope": {"requiredScope"},
        "insufficient_tokens": {"required", "available"},
    }
    assert further == expected.get(code, set())


async def test_a_banned_account_is_refused_by_every_operation_until_the_ban_is_lifted(
    sandbox: Sandbox, http: httpx.AsyncClient
) -> None:
    other, key = await sandbox.add_account("other@example.com", "other-password")
    await sandbox.ban()
    assert (await http.post("/auth/login", json=LOGIN)).json()["code"] == "account_banned"
    assert (await http.get("/tokens/balance", headers={"x-api-key": key})).status_code == 200
    await sandbox.ban(banned=False)
    assert (await with_token(http, "GET", "/api-keys")).status_code == 200
    await sandbox.ban(other.id)
    assert (await http.get("/tokens/balance", headers={"x-api-key": key})).json()["code"] == "account_banned"


# ---- the rate limit


async def test_the_rate_is_counted_for_each_account_and_minute(clock: VirtualClock) -> None:
    clock.advance(10)
    async with Sandbox(clock=clock, rules=Rules(requests_per_minute=2)) as sandbox, client_of(sandbox) as http:
        _, key = await sandbox.add_account("other@example.com", "other-password")
        answers = [await http.get("/tokens/balance") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
        assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"2"}
        assert [answer.headers.get("retry-after") for answer in answers] == [None, None, "50"]
        assert (await http.get("/tokens/balance", headers={"x-api-key": key})).status_code == 200
        clock.advance(50)
        assert (await http.get("/tokens/balance")).status_code == 200


async def test_a_refusal_for_the_rate_takes_no_key_and_does_nothing(clock: VirtualClock) -> None:
    rules = Rules(requests_per_minute=1, replay_errors=True)
    async with Sandbox(clock=clock, rules=rules) as sandbox, client_of(sandbox) as http:
        await http.get("/tokens/balance")
        assert (await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})).status_code == 429
        clock.advance(60)
        assert (await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})).status_code == 200
        assert len(sandbox.jobs) == 1


@pytest.mark.parametrize(("how", "said"), [("date", "Thu, 01 Jan 2026 00:01:00 GMT"), ("none", None)])
async def test_a_refusal_may_name_a_date_or_nothing(clock: VirtualClock, how: Any, said: str | None) -> None:
    rules = Rules(requests_per_minute=1, retry_after=how)
    async with Sandbox(clock=clock, rules=rules) as sandbox, client_of(sandbox) as http:
        answer = await second_in_a_minute(sandbox, http)
        assert (answer.status_code, answer.headers.get("retry-after")) == (429, said)


async def test_without_a_limit_nothing_is_said_of_it(http: httpx.AsyncClient) -> None:
    assert "x-ratelimit-limit" not in (await http.get("/tokens/balance")).headers
