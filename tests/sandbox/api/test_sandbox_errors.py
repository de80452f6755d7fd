"""Requests that are refused, and the error responses."""

import json
from typing import Any

import httpx
import pytest
from sandbox_help import JOB, ON_DEMAND, URL_JOB, client_of

from convertrilo.operations import OPERATIONS
from convertrilo.sandbox import Rules, Sandbox
from convertrilo.sandbox.api import app, replay
from convertrilo.sandbox.api.app import HANDLERS


def test_every_operation_has_a_handler() -> None:
    assert set(HANDLERS) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/jobs", {}, ["codec", "resolution", "fps"]),
        ("/jobs", {**JOB, "fps": 0, "codec": "vp9"}, ["codec", "fps"]),
        ("/jobs", {**JOB, "externalId": "x" * 256}, ["externalId"]),
        ("/jobs", {**JOB, "container": "webm"}, ["container"]),
        ("/jobs", {**JOB, "codec": "av1", "container": "mov"}, ["container"]),
        ("/jobs", {**JOB, "confirm": True}, ["confirm"]),
        ("/jobs", {**URL_JOB, "sourceS3": {"bucket": "b-1", "key": "k"}}, ["sourceS3"]),
        ("/jobs", [], [""]),
        ("/jobs/bulk", {"jobs": []}, ["jobs"]),
        ("/jobs/bulk", {"jobs": 1}, ["jobs"]),
        ("/jobs/bulk", {"jobs": [JOB], "settings": {"container": "avi"}}, ["settings.container"]),
        ("/jobs/bulk/confirm", {"jobIds": []}, ["jobIds"]),
        ("/ondemand/encode", {}, ["sourceUrl"]),
        ("/ondemand/encode", {**ON_DEMAND, "outputExpiry": 1}, ["outputExpiry"]),
        ("/ondemand/encode", {**ON_DEMAND, "codec": "h265", "container": "webm"}, ["container"]),
        ("/ondemand/encode", {**ON_DEMAND, "outputS3": {"bucket": "b"}}, ["outputS3.key"]),
        ("/ondemand/ingest/folder", {}, ["sourceS3"]),
        ("/webhooks", {"url": "https://a.example", "events": ["job.lost"]}, ["events[0]"]),
        ("/tokens/reserve", {"jobId": "x", "amount": 0}, ["amount"]),
    ],
)
async def test_a_wrong_body_is_refused_field_by_field(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: Any, where: list[str]
) -> None:
    answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert [issue["path"] for issue in answer.json()["issues"]] == where
    assert all(issue["message"] for issue in answer.json()["issues"])
    assert not sandbox.jobs


NO_JSON = [b"", b"{", b"\xff", b"[" * 100_000, b"NaN", b'{"codec": "\\ud800"}', b'{"metadata": {"\\ud800": 1}}']
RULES = {"bytes": Rules(), "json": Rules(compare="json"), "no credentials": Rules(compare_credentials=False)}


@pytest.mark.parametrize("library", ["orjson", "json"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
async def test_a_body_that_is_no_json_is_refused(monkeypatch: pytest.MonkeyPatch, rules: Rules, library: str) -> None:
    if library == "json":  # as without orjson
        for module in (app, replay):
            monkeypatch.setattr(module, "loads", json.loads)
        monkeypatch.setattr(app, "dumps", lambda value: json.dumps(value, ensure_ascii=False).encode())
    async with Sandbox(rules=rules) as sandbox, client_of(sandbox) as http:
        for number, body in enumerate(NO_JSON):
            answer = await http.post("/jobs", content=body, headers={"idempotency-key": str(number)})
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("depth", [101, 200, 500])
async def test_metadata_that_no_answer_could_repeat_is_refused(
    sandbox: Sandbox, http: httpx.AsyncClient, depth: int
) -> None:
    deep: dict[str, Any] = {}
    for _ in range(depth):
        deep = {"a": deep}
    for path, body in (("/jobs", JOB), ("/ondemand/encode", ON_DEMAND)):
        answer = await http.post(path, json={**body, "metadata": deep})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert not sandbox.jobs


async def test_a_null_is_refused_in_a_job_of_many_as_in_one(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    wrong = [{**JOB, "externalId": None}, {**JOB, "sourceS3": {"bucket": "b-1", "key": "k", "region": None}}]
    many = (await http.post("/jobs/bulk", json={"jobs": wrong})).json()["jobs"]
    for body, outcome in zip(wrong, many, strict=True):
        [issue] = (await http.post("/jobs", json=body)).json()["issues"]
        assert outcome["error"] == f"invalid_body: {issue['path']} {issue['message']}"
    assert not sandbox.jobs


@pytest.mark.parametrize("amount", [2**63, 2**70])
async def test_more_tokens_than_there_can_be_are_too_many(http: httpx.AsyncClient, amount: int) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    for path in ("/tokens/reserve", "/tokens/deduct"):
        answer = await http.post(path, json={"jobId": job, "amount": amount})
        assert (answer.status_code, answer.json()["required"]) == (402, amount)


async def test_settings_of_an_approval_are_checked(http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    answer = await http.post(
        f"/jobs/{job}/approve-unified", json={"resolution": "1p", "fps": 1000, "container": "webm"}
    )
    assert [issue["path"] for issue in answer.json()["issues"]] == ["container", "resolution", "fps"]
    assert (await http.get(f"/jobs/{job}/status")).json()["status"] == "created"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/jobs", 405, "invalid_request"),
        ("GET", "/jobs/x/status", 404, "not_found"),
        ("GET", "/jobs/bulk/status", 400, "invalid_request"),
        ("GET", "/jobs/bulk/status?ids=,", 400, "invalid_request"),
        ("GET", "/public/jobs/x/status", 400, "invalid_request"),
        ("GET", "/ondemand/status/x", 404, "not_found"),
        ("DELETE", "/ondemand/x", 404, "not_found"),
        ("GET", "/webhooks/x/deliveries", 404, "webhook_not_found"),
        ("DELETE", "/webhooks/x", 404, "webhook_not_found"),
        ("GET", "/storage/in/x/source", 400, "invalid_request"),
    ],
)
async def test_what_is_not_there_is_said_so(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/ondemand/encode", {**ON_DEMAND, "outputDropbox": {"path": "/x"}}, 410, "deprecated_dropbox"),
        ("/ondemand/ingest/folder", {"sourceDropbox": {"path": "/x"}}, 410, "deprecated_dropbox"),
        (
            "/ondemand/ingest/folder",
            {"sourceGoogleDrive": {"folderId": "x"}},
            401,
            "google_drive_not_connected",
        ),
    ],
)
async def test_what_is_withdrawn_or_not_there_yet_is_said_so(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not sandbox.jobs


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/ondemand/encode", {**ON_DEMAND, "passes": "2"}, "passes"),
        ("/ondemand/encode", {**ON_DEMAND, "passes": 5, "policy": []}, "passes policy"),
        ("/ondemand/encode", {**ON_DEMAND, "optimize": "vmaf", "vmafTarget": "92"}, "vmafTarget"),
        ("/public/jobs", {**JOB, "resolution": "480p", "quality": {}}, "quality"),
        ("/jobs/{}/confirm", {"fps": "30", "codec": [], "resolution": 5}, "codec resolution fps"),
    ],
)
async def test_a_setting_that_an_operation_does_not_have_is_checked_like_one(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: Any, where: str
) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    answer = await http.post(path.format(job), json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert [issue["path"] for issue in answer.json()["issues"]] == where.split()
    assert [(each.id, each.status) for each in sandbox.jobs] == [(job, "created")]


async def test_the_settings_of_a_bulk_are_checked_with_each_of_its_jobs(http: httpx.AsyncClient) -> None:
    many = await http.post("/jobs/bulk", json={"jobs": [URL_JOB], "settings": {"passes": "2"}})
    assert many.json()["jobs"][0]["error"].startswith("invalid_body: passes ")
    confirmed = {"jobIds": [(await http.post("/jobs", json=URL_JOB)).json()["jobId"]], "settings": {"fps": "30"}}
    assert (
        (await http.post("/jobs/bulk/confirm", json=confirmed))
        .json()["jobs"][0]["error"]
        .startswith("invalid_body: fps ")
    )


async def test_unknown_fields_of_the_future_do_no_harm(http: httpx.AsyncClient) -> None:
    assert (await http.post("/jobs", json={**JOB, "hologram": True})).status_code == 200


async def test_every_answer_has_a_request_id(http: httpx.AsyncClient) -> None:
    ids = [(await http.get(path)).headers["x-request-id"] for path in ("/tokens/balance", "/jobs/x/status")]
    assert len(set(ids)) == 2
