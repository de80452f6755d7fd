"""`submit_jobs` as its user meets it, against the sandbox and against scripted services."""

from typing import Any

import pytest

from convertrilo import AsyncClient, JobRefusedError, ValidationError
from convertrilo.bulk import SubmittedJob
from convertrilo.sandbox import Rules, Sandbox


def job(number: int, **rest: Any) -> dict[str, Any]:
    return {"codec": "h264", "resolution": "720p", "fps": 30, "externalId": f"job-{number}", **rest}


async def submit(client: AsyncClient, jobs: Any, **options: Any) -> list[SubmittedJob]:
    return [each async for each in client.submit_jobs(jobs, **options)]


async def test_every_job_is_made_once_and_its_result_says_which_it_is() -> None:
    async with Sandbox() as sandbox, sandbox.client() as client:
        results = await submit(client, (job(n) for n in range(25)), batch_size=10)
        made = {each.external_id: each.id for each in sandbox.jobs}
    assert len(made) == 25
    assert {each.external_id: each.job_id for each in results} == made


async def test_one_jobs_failure_is_its_own() -> None:
    jobs = [job(0), job(1, fps=0), job(2, sourceUrl="https://videos.test/a.mp4"), job(3)]
    async with Sandbox(rules=Rules(url_ingest=False)) as sandbox, sandbox.client() as client:
        results = {each.request["externalId"]: each for each in await submit(client, jobs)}  # type: ignore[index]
    assert isinstance(results["job-1"].error, ValidationError)
    assert isinstance(results["job-2"].error, JobRefusedError)
    assert results["job-2"].error.code == "url_ingest_disabled"
    assert results["job-0"].job_id
    assert results["job-3"].job_id


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"concurrency": 0}, {"settings": {"failFast": True}}])
async def test_what_makes_no_sense_is_said_at_once(wrong: dict[str, Any]) -> None:
    async with AsyncClient("key") as client:
        with pytest.raises(ValidationError):
            client.submit_jobs([], **wrong)
