"""Authentication and authorization: API keys, access tokens, scopes."""

from typing import Any

import httpx
import pytest
from sandbox_help import JOB, client_of

from convertrilo.operations import OPERATIONS, Auth, Operation
from convertrilo.sandbox import Sandbox, VirtualClock

ROWS = list(OPERATIONS.values())


def path_of(row: Operation[Any]) -> str:
    return row.path.format(id="x", jobId="x", index=1)


async def bearer(sandbox: Sandbox, http: httpx.AsyncClient) -> dict[str, str]:
    session = (await http.post("/auth/login", json={"email": sandbox.email, "password": sandbox.password})).json()
    return {"authorization": f"Bearer {session['accessToken']}"}


@pytest.mark.parametrize(
    "headers", [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}], ids=str
)
async def test_wrong_or_missing_credentials_are_refused(bare: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for row in ROWS:
        if row.auth is not Auth.NONE:
            answer = await bare.request(row.method, path_of(row), headers=headers)
            assert (row.id, answer.status_code, answer.json()["code"]) == (row.id, 401, "invalid_api_key")


async def test_an_access_token_works_until_it_expires(
    sandbox: Sandbox, bare: httpx.AsyncClient, clock: VirtualClock
) -> None:
    token = await bearer(sandbox, bare)
    assert (await bare.get("/tokens/balance", headers=token)).status_code == 200
    clock.advance(3600)
    assert (await bare.get("/tokens/balance", headers=token)).json()["code"] == "invalid_api_key"


@pytest.mark.parametrize("field", ["email", "password"])
async def test_a_wrong_login_is_refused(sandbox: Sandbox, bare: httpx.AsyncClient, field: str) -> None:
    body = {"email": sandbox.email, "password": sandbox.password, field: "wrong@example.com"}
    answer = await bare.post("/auth/login", json=body)
    assert (answer.status_code, answer.json()["code"]) == (401, "user_not_found")


async def test_a_key_is_shown_once_works_and_is_revoked(sandbox: Sandbox, bare: httpx.AsyncClient) -> None:
    token = await bearer(sandbox, bare)
    made = (await bare.post("/api-keys", json={"name": "ci"}, headers=token)).json()
    listed = (await bare.get("/api-keys", headers=token)).json()["keys"]
    assert [key["name"] for key in listed] == ["sandbox", "ci"]
    assert not any("key" in key for key in listed)
    assert made["key"].startswith(made["prefix"])
    mine = {"x-api-key": made["key"]}
    assert (await bare.get("/tokens/balance", headers=mine)).status_code == 200
    assert (await bare.delete(f"/api-keys/{made['id']}", headers=token)).status_code == 204
    assert (await bare.get("/tokens/balance", headers=mine)).json()["code"] == "invalid_api_key"
    assert (await bare.delete(f"/api-keys/{made['id']}", headers=token)).status_code == 404


async def test_a_key_expires(sandbox: Sandbox, bare: httpx.AsyncClient, clock: VirtualClock) -> None:
    token = await bearer(sandbox, bare)
    made = (await bare.post("/api-keys", json={"name": "ci", "expiresInDays": 1}, headers=token)).json()
    clock.advance(86_400)
    answer = await bare.get("/tokens/balance", headers={"x-api-key": made["key"]})
    assert (answer.status_code, answer.json()["code"]) == (401, "api_key_expired")


@pytest.mark.parametrize("row", [row for row in ROWS if row.auth is Auth.BEARER], ids=lambda row: row.id)
async def test_an_api_key_does_not_manage_api_keys(http: httpx.AsyncClient, row: Operation[Any]) -> None:
    assert (await http.request(row.method, path_of(row), json={"name": "x"})).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/jobs", "jobs:create"),
        ("POST", "/jobs/x/confirm", "jobs:create"),
        ("GET", "/jobs/x/status", "jobs:read"),
        ("POST", "/jobs/x/cancel", "jobs:cancel"),
        ("DELETE", "/ondemand/x", "jobs:cancel"),
        ("GET", "/tokens/balance", "tokens:read"),
        ("POST", "/tokens/reserve", "tokens:write"),
        ("GET", "/webhooks", "webhooks:manage"),
    ],
)
async def test_a_missing_scope_is_named(
    sandbox: Sandbox, bare: httpx.AsyncClient, method: str, path: str, scope: str
) -> None:
    token = await bearer(sandbox, bare)
    made = (await bare.post("/api-keys", json={"name": "x", "scopes": ["credentials:manage"]}, headers=token)).json()
    answer = await bare.request(method, path, headers={"x-api-key": made["key"]})
    assert (answer.status_code, answer.json()["code"]) == (403, "missing_required_scope")
    assert answer.json()["requiredScope"] == scope
    made = (await bare.post("/api-keys", json={"name": "x", "scopes": [scope]}, headers=token)).json()
    assert (await bare.request(method, path, headers={"x-api-key": made["key"]})).status_code not in (401, 403)


async def test_another_accounts_jobs_are_not_found(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json=JOB)).json()["jobId"]
    _, api_key = await sandbox.add_account("other@example.com", "other-password")
    async with client_of(sandbox, **{"x-api-key": api_key}) as other:
        for method, path in (("GET", "status"), ("POST", "confirm"), ("POST", "cancel"), ("POST", "stream/init")):
            answer = await other.request(method, f"/jobs/{job}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert (await other.get("/jobs/bulk/status", params={"ids": job})).json() == {"jobs": [], "missing": [job]}
