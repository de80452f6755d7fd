"""Many jobs in one request."""

from typing import Any

import httpx
from sandbox_help import JOB, URL_JOB, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock

BAD: dict[str, Any] = {**URL_JOB, "container": "webm", "externalId": "bad"}


async def bulk(http: httpx.AsyncClient, *jobs: Any, **settings: Any) -> dict[str, Any]:
    answer = await http.post("/jobs/bulk", json={"jobs": jobs, "settings": settings})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_one_bad_item_does_not_fail_the_others(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    answer = await bulk(http, {**URL_JOB, "externalId": "a"}, BAD, {"codec": "h264"}, 7, {**JOB, "externalId": "b"})
    assert answer["totalJobs"] == 5
    assert answer["totalEstimatedNeu"] == 4
    items = answer["jobs"]
    assert [item["index"] for item in items] == [0, 1, 2, 3, 4]
    assert [item["externalId"] for item in items] == ["a", "bad", None, None, "b"]
    assert [("jobId" in item, "error" in item) for item in items] == [
        (True, False),
        (False, True),
        (False, True),
        (False, True),
        (True, False),
    ]
    assert items[1]["error"].startswith("invalid_body: container webm cannot carry h264")
    assert [job.external_id for job in sandbox.jobs] == ["a", "b"]


async def test_fail_fast_creates_nothing(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    answer = await bulk(http, URL_JOB, BAD, URL_JOB, failFast=True, confirm=True)
    assert all("jobId" not in item for item in answer["jobs"])
    assert answer["jobs"][1]["error"].startswith("invalid_body")
    assert answer["jobs"][0]["error"] == "not created: failFast is set, and job 1 was refused"
    assert not sandbox.jobs
    assert sandbox.tokens.available == sandbox.tokens.granted


async def test_a_dry_run_estimates_and_creates_nothing(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    answer = await bulk(http, URL_JOB, {**URL_JOB, "resolution": "2160p"}, dryRun=True, confirm=True)
    assert [item["estimate"] for item in answer["jobs"]] == [{"neu": 2}, {"neu": 5}]
    assert answer["totalEstimatedNeu"] == 7
    assert not sandbox.jobs


async def test_confirm_queues_them_all_with_the_common_settings(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    answer = await bulk(http, URL_JOB, {**URL_JOB, "container": "mov"}, confirm=True, container="mkv")
    assert [item["status"] for item in answer["jobs"]] == ["queued", "queued"]
    assert answer["reserved"] == 4
    await sandbox.wait_until_idle()
    assert [job.status for job in sandbox.jobs] == ["success", "success"]
    assert [job.settings["container"] for job in sandbox.jobs] == ["mkv", "mov"]


async def test_tokens_that_run_out_fail_the_items_they_are_missing_for(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, tokens=3) as sandbox, client_of(sandbox) as http:
        answer = await bulk(http, URL_JOB, URL_JOB, {**URL_JOB, "resolution": "480p"}, confirm=True)
        assert ["error" in item for item in answer["jobs"]] == [False, True, False]
        assert answer["jobs"][1]["error"].startswith("insufficient_tokens: ")
        await sandbox.wait_until_idle()
        assert (sandbox.tokens.available, sandbox.tokens.spent, len(sandbox.jobs)) == (0, 3, 2)


async def test_status_answers_jobs_in_order_and_names_the_missing(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    ids = [item["jobId"] for item in (await bulk(http, URL_JOB, URL_JOB))["jobs"]]
    asked = ",".join([ids[1], "nowhere", ids[0], ids[1]])
    answer = (await http.get("/jobs/bulk/status", params={"ids": asked})).json()
    assert [job["id"] for job in answer["jobs"]] == [ids[1], ids[0]]
    assert answer["missing"] == ["nowhere"]


async def test_whether_status_covers_on_demand_jobs_is_a_rule(clock: VirtualClock) -> None:
    for covers in (False, True):
        rules = Rules(bulk_status_on_demand=covers)
        async with Sandbox(clock=clock, rules=rules) as sandbox, client_of(sandbox) as http:
            job = (await http.post("/ondemand/encode", json={"sourceUrl": "https://a.example/b"})).json()["jobId"]
            answer = (await http.get("/jobs/bulk/status", params={"ids": job})).json()
            assert (len(answer["jobs"]), len(answer["missing"])) == ((1, 0) if covers else (0, 1))


async def test_confirmation_gives_each_job_an_outcome(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    items = (await bulk(http, URL_JOB, JOB, URL_JOB))["jobs"]
    ids = [item["jobId"] for item in items]
    await http.post(f"/jobs/{ids[2]}/confirm")
    body = {"jobIds": [*ids, "nowhere"], "settings": {"container": "mkv"}}
    answer = (await http.post("/jobs/bulk/confirm", json=body)).json()
    assert answer["queued"] == 1
    assert answer["jobs"][0] == {"jobId": ids[0], "status": "queued", "reserved": 2}
    assert [item["error"].partition(":")[0] for item in answer["jobs"][1:]] == [
        "invalid_request",
        "invalid_request",
        "not_found",
    ]
    await sandbox.wait_until_idle()
    assert [job.settings["container"] for job in sandbox.jobs] == ["mkv", "mp4", "mp4"]


async def test_a_batch_beyond_the_limit_is_refused(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, rules=Rules(max_bulk_jobs=2)) as sandbox, client_of(sandbox) as http:
        answer = await http.post("/jobs/bulk", json={"jobs": [URL_JOB] * 3})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
        assert not sandbox.jobs
