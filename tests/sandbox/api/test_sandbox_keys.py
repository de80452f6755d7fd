"""Idempotency keys on the server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from sandbox_help import JOB, ON_DEMAND, URL_JOB, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock

KEYED: list[tuple[str, dict[str, Any]]] = [
    ("/jobs", JOB),
    ("/jobs/bulk", {"jobs": [JOB, {**JOB, "container": "webm"}]}),
    ("/ondemand/encode", ON_DEMAND),
]


def keyed(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


@pytest.mark.parametrize(("path", "body"), KEYED)
async def test_the_same_key_and_body_bring_the_same_answer_and_no_second_job(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    first = await http.post(path, json=body, headers=keyed("k"))
    books = sandbox.tokens
    again = await http.post(path, json=body, headers=keyed("k"))
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert len(sandbox.jobs) == 1
    await sandbox.wait_until_idle()
    assert sandbox.tokens.granted == books.granted
    assert [request.replayed for request in sandbox.requests] == [False, True]


@pytest.mark.parametrize(("path", "body"), KEYED)
async def test_without_a_key_every_request_is_a_job_of_its_own(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    for _ in range(10):
        await http.post(path, json=body)
    assert len(sandbox.jobs) == 10


@pytest.mark.parametrize(("path", "body"), KEYED)
async def test_the_same_key_with_another_body_is_a_conflict(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    await http.post(path, json=body, headers=keyed("k"))
    other = await http.post(path, json={**body, "unknown": 1}, headers=keyed("k"))
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len(sandbox.jobs) == 1


async def test_a_key_belongs_to_its_operation(http: httpx.AsyncClient) -> None:
    await http.post("/jobs", json=URL_JOB, headers=keyed("k"))
    other = await http.post("/ondemand/encode", json=URL_JOB, headers=keyed("k"))
    assert other.json()["code"] == "idempotency_conflict"


class _Held(httpx.AsyncBaseTransport):
    """A source server that responds only when told to."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.released = anyio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002 - httpx's signature
        self.asked.set()
        await self.released.wait()
        return httpx.Response(200, headers={"content-type": "video/mp4"}, content=b"film" * 1000)


@pytest.fixture
async def held(clock: VirtualClock) -> AsyncIterator[tuple[Sandbox, _Held]]:
    source = _Held()
    async with Sandbox(clock=clock, source_transport=source) as sandbox:
        yield sandbox, source


async def test_a_key_whose_first_request_still_runs_is_in_progress(held: tuple[Sandbox, _Held]) -> None:
    sandbox, source = held
    answers: list[httpx.Response] = []
    async with client_of(sandbox) as http:

        async def first() -> None:
            answers.append(await http.post("/ondemand/encode", json=ON_DEMAND, headers=keyed("k")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await source.asked.wait()
            second = await http.post("/ondemand/encode", json=ON_DEMAND, headers=keyed("k"))
            other = await http.post("/ondemand/encode", json={**ON_DEMAND, "fps": 25}, headers=keyed("k"))
            source.released.set()
        assert (second.status_code, second.json()["code"]) == (409, "idempotency_in_progress")
        assert other.json()["code"] == "idempotency_conflict"
        third = await http.post("/ondemand/encode", json=ON_DEMAND, headers=keyed("k"))
        assert third.content == answers[0].content
        assert len(sandbox.jobs) == 1
        await sandbox.wait_until_idle()


async def test_a_caller_who_hangs_up_leaves_the_server_working(held: tuple[Sandbox, _Held]) -> None:
    sandbox, source = held
    async with client_of(sandbox) as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: http.post("/ondemand/encode", json=ON_DEMAND, headers=keyed("k")))
            await source.asked.wait()
            tasks.cancel_scope.cancel()
        source.released.set()
        with anyio.fail_after(60):
            while True:
                again = await http.post("/ondemand/encode", json=ON_DEMAND, headers=keyed("k"))
                if again.status_code == 200:
                    break
                assert again.json()["code"] == "idempotency_in_progress"
        assert [job.id for job in sandbox.jobs] == [again.json()["jobId"]]
        await sandbox.wait_until_idle()


BAD: dict[str, Any] = {**JOB, "container": "webm"}


async def test_an_error_is_not_remembered_unless_the_rules_say_so(http: httpx.AsyncClient) -> None:
    assert (await http.post("/jobs", json=BAD, headers=keyed("k"))).status_code == 400
    assert (await http.post("/jobs", json=JOB, headers=keyed("k"))).status_code == 200


async def test_a_remembered_error_is_replayed(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, rules=Rules(replay_errors=True)) as sandbox, client_of(sandbox) as http:
        first = await http.post("/jobs", json=BAD, headers=keyed("k"))
        again = await http.post("/jobs", json=BAD, headers=keyed("k"))
        other = await http.post("/jobs", json=JOB, headers=keyed("k"))
        assert (again.status_code, again.content) == (400, first.content)
        assert other.json()["code"] == "idempotency_conflict"
        assert sandbox.requests[1].replayed


async def test_a_key_is_forgotten_after_its_lifetime(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, rules=Rules(key_lifetime=60)) as sandbox, client_of(sandbox) as http:
        for seconds, jobs in ((0, 1), (59, 1), (1, 2)):
            clock.advance(seconds)
            await http.post("/jobs", json=JOB, headers=keyed("k"))
            assert len(sandbox.jobs) == jobs


REORDERED = json.dumps(dict(reversed(JOB.items())))
WITH_SECRET: dict[str, Any] = {**JOB, "sourceS3": {"bucket": "b", "key": "k", "secretAccessKey": "one"}}
ROTATED: dict[str, Any] = {**JOB, "sourceS3": {"bucket": "b", "key": "k", "secretAccessKey": "two"}}


@pytest.mark.parametrize(
    ("rules", "code"),
    [(Rules(), "idempotency_conflict"), (Rules(compare="json"), None), (Rules(compare_credentials=False), None)],
)
async def test_reordered_json_is_the_same_body_only_if_the_rules_compare_json(
    clock: VirtualClock, rules: Rules, code: str | None
) -> None:
    async with Sandbox(clock=clock, rules=rules) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", content=json.dumps(JOB), headers=keyed("k"))
        again = await http.post("/jobs", content=REORDERED, headers=keyed("k"))
        assert again.json().get("code") == code


@pytest.mark.parametrize("counts", [True, False])
async def test_a_rotated_credential_is_a_conflict_unless_the_rules_let_it_pass(
    clock: VirtualClock, *, counts: bool
) -> None:
    rules = Rules(compare_credentials=counts, replay_errors=True)
    async with Sandbox(clock=clock, rules=rules) as sandbox, client_of(sandbox) as http:
        body = {"sourceS3": {"bucket": "b", "secretAccessKey": "one"}, "codec": "h264", "container": "webm"}
        first = await http.post("/ondemand/ingest/folder", json=body, headers=keyed("k"))
        assert first.status_code == 400
        body["sourceS3"] = {"bucket": "b", "secretAccessKey": "two"}
        again = await http.post("/ondemand/ingest/folder", json=body, headers=keyed("k"))
        assert again.json()["code"] == ("idempotency_conflict" if counts else "invalid_body")


@pytest.mark.parametrize(("scope", "jobs"), [("account", 1), ("api_key", 2)])
async def test_two_api_keys_of_an_account_share_an_idempotency_key_or_do_not(
    clock: VirtualClock, scope: Any, jobs: int
) -> None:
    async with Sandbox(clock=clock, rules=Rules(key_scope=scope)) as sandbox, client_of(sandbox) as http:
        session = (await http.post("/auth/login", json={"email": sandbox.email, "password": sandbox.password})).json()
        bearer = {"authorization": f"Bearer {session['accessToken']}"}
        other = (await http.post("/api-keys", json={"name": "other"}, headers=bearer)).json()["key"]
        await http.post("/jobs", json=JOB, headers=keyed("k"))
        await http.post("/jobs", json=JOB, headers={"x-api-key": other, **keyed("k")})
        assert len(sandbox.jobs) == jobs


async def test_another_accounts_key_is_another_key(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    _, api_key = await sandbox.add_account("other@example.com", "other-password")
    mine = await http.post("/jobs", json=JOB, headers=keyed("k"))
    theirs = await http.post("/jobs", json=JOB, headers={"x-api-key": api_key, **keyed("k")})
    assert mine.json()["jobId"] != theirs.json()["jobId"]
    assert (await http.get(f"/jobs/{theirs.json()['jobId']}/status")).status_code == 404


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_that_is_none_is_refused(sandbox: Sandbox, http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post("/jobs", json=JOB, headers=keyed(key))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert not sandbox.jobs


async def test_too_few_tokens_are_not_remembered(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, tokens=1) as sandbox, client_of(sandbox) as http:
        body = {**URL_JOB, "confirm": True}
        poor = await http.post("/jobs", json=body, headers=keyed("k"))
        assert (poor.status_code, poor.json()["required"], poor.json()["available"]) == (402, 2, 1)
        assert not sandbox.jobs
        smaller = await http.post("/jobs", json={**body, "resolution": "480p"}, headers=keyed("k"))
        assert smaller.status_code == 200
