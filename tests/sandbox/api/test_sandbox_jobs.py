"""The life of every kind of job, from creation to download."""

from functools import partial
from typing import Any

import httpx
import pytest
from loopback import until
from sandbox_help import JOB, ON_DEMAND, URL_JOB, client_of

from convertrilo.sandbox import Sandbox, VirtualClock
from convertrilo.sandbox.encoding.sample import SAMPLE_MP4


def is_running(sandbox: Sandbox) -> bool:
    return any(job.status == "running" for job in sandbox.jobs)


def have_ended(sandbox: Sandbox, count: int) -> bool:
    return sum(job.ended for job in sandbox.jobs) == count


async def test_an_upload_job_goes_from_creation_to_download(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    created = (await http.post("/jobs", json={**JOB, "externalId": "a", "originalFilename": "My film.mov"})).json()
    job = created["jobId"]
    assert created["upload"]["key"] == f"in/{job}/source"
    assert (created["sourceFilename"], created["outputFilename"]) == ("My film.mov", "My film.mp4")
    assert (await bare.put(created["upload"]["url"], content=b"a film")).status_code == 200

    probed = (await http.get(f"/jobs/{job}/probe-duration")).json()
    assert probed == {"durationSec": 60, "durationMinutes": 1}
    approved = (await http.post(f"/jobs/{job}/approve-unified", json={"resolution": "1080p", "codec": "av1"})).json()
    assert approved["estimate"] == {"perMinuteNeu": 4, "durationSec": 60, "totalNeu": 4, "reserved": 4}
    assert (await http.get(f"/jobs/{job}/status")).json()["status"] == "created"

    assert (await http.post(f"/jobs/{job}/confirm")).json() == {"ok": True}
    await sandbox.wait_until_idle()
    status = (await http.get(f"/jobs/{job}/status")).json()
    assert (status["status"], status["pct"], status["externalId"]) == ("success", 100, "a")
    download = await bare.get(status["downloadUrl"])
    assert download.content[4:8] == b"ftyp"
    assert download.headers["content-disposition"] == "attachment; filename*=utf-8''My%20film.mp4"


async def test_confirm_at_creation_queues_a_job_that_names_its_source(
    sandbox: Sandbox, http: httpx.AsyncClient
) -> None:
    created = (await http.post("/jobs", json={**URL_JOB, "confirm": True, "metadata": {"a": [1, None]}})).json()
    assert (created["status"], created["upload"], created["metadata"]) == ("queued", None, {"a": [1, None]})
    assert created["estimate"]["reserved"] == created["estimate"]["totalNeu"] == 2
    await sandbox.wait_until_idle()
    assert [job.status for job in sandbox.jobs] == ["success"]


async def test_an_on_demand_job_is_queued_by_the_request_that_makes_it(
    sandbox: Sandbox, http: httpx.AsyncClient, clock: VirtualClock
) -> None:
    taken = (await http.post("/ondemand/encode", json={**ON_DEMAND, "priority": "high", "outputExpiry": 7200})).json()
    assert taken["status"] == "queued"
    assert taken["pricing"] == {
        "basePerMinute": 2,
        "onDemandPerMinute": 4,
        "multiplier": 2,
        "totalNeu": 4,
        "reserved": 4,
    }
    await sandbox.wait_until_idle()
    clock.advance(200)
    status = (await http.get(taken["statusUrl"])).json()
    assert (status["status"], status["progress"], status["expiresIn"]) == ("success", 100, 7000)
    assert status["destination"]["type"] == "cdn"


async def test_a_public_job_needs_its_token_and_no_account(sandbox: Sandbox, bare: httpx.AsyncClient) -> None:
    created = (await bare.post("/public/jobs", json=JOB)).json()
    job, token = created["jobId"], created["token"]
    await bare.put(created["upload"]["url"], content=b"a film")
    assert (await bare.get(f"/public/jobs/{job}/probe-duration")).json()["durationSec"] == 60
    assert (await bare.post(f"/public/jobs/{job}/confirm", json={"container": "mkv"})).status_code == 200
    await sandbox.wait_until_idle()
    status = (await bare.get(f"/public/jobs/{job}/status", params={"token": token})).json()
    assert status["status"] == "success"
    assert status["output"]["key"].endswith(".mkv")
    wrong = await bare.get(f"/public/jobs/{job}/status", params={"token": "wrong"})
    assert (wrong.status_code, wrong.json()["code"]) == (404, "not_found")
    assert sandbox.tokens.spent == 0


async def test_a_job_runs_for_as_long_as_the_clock_says_and_reports_its_progress(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, encode_seconds=10) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json={**URL_JOB, "confirm": True})).json()["jobId"]
        await until(lambda: is_running(sandbox))
        clock.advance(4)
        status = (await http.get(f"/jobs/{job}/status")).json()
        assert (status["status"], status["pct"]) == ("running", 40)
        clock.advance(6)
        await sandbox.wait_until_idle()
        status = (await http.get(f"/jobs/{job}/status")).json()
        assert status["status"] == "success"
        assert (status["startedAt"], status["finishedAt"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z")
        async with httpx.AsyncClient(transport=sandbox.transport()) as bare:
            assert (await bare.get(status["downloadUrl"])).content == SAMPLE_MP4


async def test_high_priority_overtakes_the_queue(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, encode_seconds=1, max_encodes=1) as sandbox, client_of(sandbox) as http:
        names = ["first", "second", "third", "urgent"]
        for name in names:
            priority = "high" if name == "urgent" else "normal"
            await http.post("/ondemand/encode", json={**ON_DEMAND, "externalId": name, "priority": priority})
            if name == "first":
                await until(lambda: is_running(sandbox))
        for ended in range(1, len(names) + 1):
            clock.advance(1)
            await until(partial(have_ended, sandbox, ended))
            await until(lambda: all(job.ended for job in sandbox.jobs) or is_running(sandbox))
        in_order = sorted(sandbox.jobs, key=lambda job: job.finished_at or 0)
        assert [job.external_id for job in in_order] == ["first", "urgent", "second", "third"]


async def test_cancelling_a_created_job_releases_its_tokens(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    await http.post(f"/jobs/{job}/approve-unified")
    assert sandbox.tokens.reserved == 2
    assert (await http.post(f"/jobs/{job}/cancel")).status_code == 200
    assert [each.status for each in sandbox.jobs] == ["canceled"]
    assert sandbox.tokens.reserved == 0
    assert (await http.post(f"/jobs/{job}/cancel")).status_code == 200


async def test_cancelling_is_a_no_op_on_a_running_job_but_ends_a_running_on_demand_job(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, encode_seconds=10) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json={**URL_JOB, "confirm": True})).json()["jobId"]
        await until(lambda: is_running(sandbox))
        await http.post(f"/jobs/{job}/cancel")
        clock.advance(10)
        await sandbox.wait_until_idle()
        on_demand = (await http.post("/ondemand/encode", json=ON_DEMAND)).json()["jobId"]
        await until(lambda: is_running(sandbox))
        assert (await http.delete(f"/ondemand/{on_demand}")).json() == {"ok": True, "released": 3}
        await sandbox.wait_until_idle()
        assert (await http.delete(f"/ondemand/{on_demand}")).json() == {"ok": True, "released": 0}
        assert [each.status for each in sandbox.jobs] == ["success", "canceled"]
        assert (sandbox.tokens.reserved, sandbox.tokens.spent) == (0, 2)


async def test_a_job_that_fails_says_why_and_costs_nothing(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    sandbox.fail_jobs("the moon was in the way")
    job = (await http.post("/ondemand/encode", json=ON_DEMAND)).json()["jobId"]
    await sandbox.wait_until_idle()
    status = (await http.get(f"/ondemand/status/{job}")).json()
    assert (status["status"], status["failureMessage"]) == ("failed", "the moon was in the way")
    assert (sandbox.tokens.reserved, sandbox.tokens.spent) == (0, 0)


async def test_an_empty_upload_fails_even_with_the_instant_encoder(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    created = (await http.post("/jobs", json=JOB)).json()
    await bare.put(created["upload"]["url"], content=b"")
    await http.post(f"/jobs/{created['jobId']}/confirm")
    await sandbox.wait_until_idle()
    assert sandbox.jobs[0].failure_message == "the source is empty (0 bytes)"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("GET probe-duration", "No source has been uploaded"),
        ("POST approve-unified", "No source has been uploaded"),
        ("POST confirm", "No source has been uploaded"),
    ],
)
async def test_nothing_goes_on_before_the_upload(http: httpx.AsyncClient, step: str, message: str) -> None:
    job = (await http.post("/jobs", json=JOB)).json()["jobId"]
    method, path = step.split()
    answer = await http.request(method, f"/jobs/{job}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert message in answer.json()["message"]


async def test_a_job_is_confirmed_once(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    assert (await http.post(f"/jobs/{job}/confirm")).status_code == 200
    again = await http.post(f"/jobs/{job}/confirm")
    assert (again.status_code, again.json()["code"]) == (400, "invalid_request")
    await sandbox.wait_until_idle()
    assert sandbox.tokens.spent == 2


async def test_the_two_kinds_of_status_keep_apart(http: httpx.AsyncClient) -> None:
    on_demand = (await http.post("/ondemand/encode", json=ON_DEMAND)).json()["jobId"]
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    assert (await http.get(f"/jobs/{on_demand}/status")).status_code == 404
    assert (await http.get(f"/ondemand/status/{job}")).status_code == 404
    assert (await http.delete(f"/ondemand/{job}")).status_code == 404


async def test_equal_seeds_make_equal_ids(clock: VirtualClock) -> None:
    runs: list[Any] = []
    for _ in range(2):
        async with Sandbox(clock=clock, seed=7) as sandbox, client_of(sandbox) as http:
            job = (await http.post("/jobs", json=JOB)).json()
            runs.append((sandbox.api_key, job["jobId"]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("holiday.mov", "holiday.mp4"),
        ("../../etc/passwd", "passwd.mp4"),
        ("C:\\films\\a.b.mkv", "a.b.mp4"),
        ("no extension", "no extension.mp4"),
        ("..", None),
        ("line\nbreak.mov", "linebreak.mp4"),
    ],
)
async def test_the_outputs_name_is_made_of_the_sources_and_names_no_folder(
    http: httpx.AsyncClient, name: str, shown: str | None
) -> None:
    created = (await http.post("/jobs", json={**JOB, "originalFilename": name})).json()
    assert created["outputFilename"] == shown
