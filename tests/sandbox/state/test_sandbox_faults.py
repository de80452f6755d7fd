"""Faults strike as planned, in process and over a port."""

import random
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
from sandbox_help import JOB, URL_JOB, client_of

from convertrilo import NotFoundError
from convertrilo.sandbox import Sandbox, serve_in_thread


@pytest.fixture(params=["in process", "over a port"])
async def struck(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Sandbox, httpx.AsyncClient]]:
    if request.param == "in process":
        async with Sandbox(seed=1) as sandbox, client_of(sandbox) as http:
            yield sandbox, http
        return
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as base_url:
        async with httpx.AsyncClient(base_url=base_url, headers={"x-api-key": sandbox.api_key}, timeout=60) as http:
            yield sandbox, http


Struck = tuple[Sandbox, httpx.AsyncClient]
KEY = {"idempotency-key": "k"}


async def test_an_answer_is_lost_after_the_work_is_committed(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.lose_response("createJob", times=2)
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            await http.post("/jobs", json=JOB, headers=KEY)
    assert len(sandbox.jobs) == 1
    answer = await http.post("/jobs", json=JOB, headers=KEY)
    assert answer.json()["jobId"] == sandbox.jobs[0].id
    assert [(each.fault, each.status, each.replayed) for each in sandbox.requests] == [
        ("lose_response", 200, False),
        ("lose_response", 200, True),
        (None, 200, True),
    ]


async def test_a_lost_answer_without_a_key_doubles_the_job(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.lose_response("createJob")
    with pytest.raises(httpx.TransportError):
        await http.post("/jobs", json=JOB)
    await http.post("/jobs", json=JOB)
    assert len(sandbox.jobs) == 2


@pytest.mark.parametrize("fault", ["refuse", "reset"])
async def test_a_connection_that_breaks_before_the_work_leaves_nothing(struck: Struck, fault: str) -> None:
    sandbox, http = struck
    getattr(sandbox.faults, fault)("createJob")
    with pytest.raises(httpx.TransportError):
        await http.post("/jobs", json=JOB)
    assert not sandbox.jobs
    assert (await http.post("/jobs", json=JOB)).status_code == 200


async def test_an_answer_is_cut_in_the_middle(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.cut_response("createJob")
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post("/jobs", json=JOB)
    assert len(sandbox.jobs) == 1


async def test_an_answer_of_the_future_has_more_in_it_and_is_of_work_that_was_done(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.future(None, times=2)
    made = (await http.post("/jobs", json=JOB)).json()
    assert made["jobId"] == sandbox.jobs[0].id
    assert made["fieldOfTheFuture"] == made["output"]["fieldOfTheFuture"] == {"isNew": True}
    refused = await http.get("/jobs/nothing/status")
    assert (refused.status_code, refused.json()["code"]) == (404, "code_of_the_future")


async def test_the_client_bears_answers_of_the_future() -> None:
    async with Sandbox(seed=1) as sandbox, sandbox.client() as client:
        sandbox.faults.future(None, times=None)
        job = await client.create_job(JOB)
        assert job.extra == job.output.extra == {"fieldOfTheFuture": {"isNew": True}}
        with pytest.raises(NotFoundError) as refused:
            await client.job_status("nothing")
        assert refused.value.code == "code_of_the_future"


async def test_a_stalled_request_ends_with_the_clients_patience(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.stall("createJob")
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/jobs", json=JOB, timeout=httpx.Timeout(60, read=0.05))
    assert not sandbox.jobs
    assert (await http.post("/jobs", json=JOB)).status_code == 200


async def test_a_planned_status_is_answered_and_nothing_happens(struck: Struck) -> None:
    sandbox, http = struck
    page = b"<html>bad gateway</html>"
    sandbox.faults.status("createJob", 502, headers={"Content-Type": "text/html"}, body=page, times=1)
    sandbox.faults.rate_limit("createJob", retry_after="7")
    answer = await http.post("/jobs", json=JOB)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (502, page, "text/html")
    answer = await http.post("/jobs", json=JOB)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
        429,
        "rate_limit_exceeded",
        "7",
    )
    assert not sandbox.jobs


async def test_in_progress_strikes_keyed_operations_only(struck: Struck) -> None:
    sandbox, http = struck
    sandbox.faults.in_progress(times=None)
    answer = await http.post("/jobs", json=JOB, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    assert (await http.get("/tokens/balance")).status_code == 200
    sandbox.faults.clear()
    assert (await http.post("/jobs", json=JOB, headers=KEY)).status_code == 200


async def test_downloads_can_be_cut_too_in_the_middle_of_what_they_hold(struck: Struck) -> None:
    sandbox, http = struck
    whole = random.Random(1).randbytes(200_000)  # more than one piece of the response
    (sandbox.folder / "sample.mp4").write_bytes(whole)
    job = (await http.post("/jobs", json={**URL_JOB, "confirm": True})).json()["jobId"]
    with anyio.fail_after(60):
        while (status := (await http.get(f"/jobs/{job}/status")).json())["status"] != "success":
            pass
    sandbox.faults.cut_response("getObject")
    url = httpx.URL(status["downloadUrl"])
    del http.headers["x-api-key"]
    received = bytearray()

    async def download() -> None:
        async with http.stream("GET", url) as answer:
            async for piece in answer.aiter_raw():
                received.extend(piece)

    with pytest.raises(httpx.RemoteProtocolError):
        await download()
    assert received == whole[: len(whole) // 2]
    rest = await http.get(url, headers={"range": f"bytes={len(received)}-"})
    assert received + rest.content == whole


async def test_chance_is_seeded() -> None:
    async def run(seed: int) -> list[int]:
        async with Sandbox(seed=seed) as sandbox, client_of(sandbox) as http:
            sandbox.faults.status(None, 503, times=None, probability=0.5)
            return [(await http.get("/tokens/balance")).status_code for _ in range(20)]

    first = await run(1)
    assert first == await run(1)
    assert first != await run(2)
    assert {200, 503} == set(first)


async def test_an_unknown_operation_cannot_be_struck(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="there is no operation 'createjob'"):
        sandbox.faults.reset("createjob")
