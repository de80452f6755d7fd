"""`ingest_folder` as an agent meets it: against a real S3 server and the sandbox, on asyncio and trio."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from mcp import Client
from object_store import ObjectStore
from test_mcp import agent, problem_of, value_of

from convertrilo import S3FolderSource, ingest_folder
from convertrilo.mcp import folders
from convertrilo.mcp.calls import RecordingJournal
from convertrilo.mcp.storage import StorageProfile
from convertrilo.retry import RetryPolicy
from convertrilo.sandbox import Sandbox

JOB = {"codec": "h264", "resolution": "720p", "fps": 30}


def videos(count: int, start: int = 0) -> dict[str, bytes]:
    return {f"films/{number:03}.mp4": str(number).encode() for number in range(start, start + count)}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1, allow_private_sources=True) as sandbox:
        yield sandbox


@asynccontextmanager
async def using(sandbox: Sandbox, store: ObjectStore, folder: Path, *, patient: bool = True) -> AsyncIterator[Client]:
    """Yield the official client of a server that knows the store's credentials as the profile `store`."""
    profile = StorageProfile(store.access_key_id, store.secret_access_key, store.endpoint, "us-east-1")
    client = sandbox.client(**({} if patient else {"retry": RetryPolicy.none()}))
    async with agent(client, RecordingJournal(folder / "mcp.db"), profiles={"store": profile}) as talking:
        yield talking


def of_folder(bucket: str, **more: Any) -> dict[str, Any]:
    return {"sourceS3": {"bucket": bucket, "prefix": "films/", "storageProfile": "store"}, "job": JOB, **more}


async def test_a_folder_is_looked_into_first_and_encoded_once_when_that_is_confirmed(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**videos(3), **{"films/notes.txt": b""})
    call = of_folder(bucket)
    async with using(sandbox, object_store, tmp_path) as talking:
        looked = value_of(await talking.call_tool("ingest_folder", call))
        assert sandbox.jobs == []
        assert (looked["dryRun"], looked["listed"], looked["passedOver"], looked["submitted"]) == (True, 3, 1, 0)
        assert looked["estimatedNeu"] > 0
        assert looked["reservedNeu"] is None
        assert [each["key"] for each in looked["objects"]] == sorted(videos(3))
        assert {each["status"] for each in looked["objects"]} == {"listed"}

        confirmed = {**call, "confirmation": looked["confirmation"]}
        made = value_of(await talking.call_tool("ingest_folder", confirmed))
        assert (made["dryRun"], made["replayed"], made["submitted"], made["unfinished"]) == (False, False, 3, 3)
        assert {each["jobId"] for each in made["objects"]} == {job.id for job in sandbox.jobs}
        assert made["reservedNeu"] == looked["estimatedNeu"]
        assert "confirmation" not in made
        again = value_of(await talking.call_tool("ingest_folder", confirmed))
        assert again == {**made, "replayed": True}
        assert "confirmation" not in value_of(await talking.call_tool("ingest_folder", call)), "there is nothing new"
    assert len(sandbox.jobs) == 3
    sandbox.assert_no_duplicates()


async def test_what_has_come_since_needs_a_dry_run_of_its_own(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**videos(2))
    call = of_folder(bucket)
    async with using(sandbox, object_store, tmp_path) as talking:
        confirmation = value_of(await talking.call_tool("ingest_folder", call))["confirmation"]
        object_store.s3.put_object(Bucket=bucket, Key="films/002.mp4", Body=b"new")
        made = value_of(await talking.call_tool("ingest_folder", {**call, "confirmation": confirmation}))
        assert made["submitted"] == len(sandbox.jobs) == 2
        looked = value_of(await talking.call_tool("ingest_folder", call))
        assert (looked["listed"], looked["submitted"]) == (3, 2)
        more = value_of(await talking.call_tool("ingest_folder", {**call, "confirmation": looked["confirmation"]}))
        assert (more["submitted"], more["replayed"]) == (3, False)
    assert len(sandbox.jobs) == 3


@pytest.mark.parametrize(
    "change",
    [{"maxFiles": 1}, {"job": {**JOB, "fps": 60}}, {"include": ["*"]}, {"confirmation": "2-0000000000000000"},
     {"confirmation": "yes"}, {"confirmation": "99"}],
)  # fmt: skip
async def test_a_confirmation_is_for_what_was_looked_into_only(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    call = of_folder(object_store.private_bucket(**videos(2)))
    async with using(sandbox, object_store, tmp_path) as talking:
        confirmation = value_of(await talking.call_tool("ingest_folder", call))["confirmation"]
        told = problem_of(await talking.call_tool("ingest_folder", {**call, "confirmation": confirmation, **change}))
    assert told["code"] == "invalid_arguments"
    assert "was not returned by a dry run with these arguments" in told["message"]
    assert sandbox.jobs == []


async def test_a_call_whose_answer_was_lost_makes_nothing_twice(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    call = of_folder(object_store.private_bucket(**videos(2)))
    async with using(sandbox, object_store, tmp_path, patient=False) as talking:
        call["confirmation"] = value_of(await talking.call_tool("ingest_folder", call))["confirmation"]
        sandbox.faults.lose_response("createJobsBulk")
        told = problem_of(await talking.call_tool("ingest_folder", call))
        assert (told["code"], len(sandbox.jobs)) == ("no_answer", 2)
    async with using(sandbox, object_store, tmp_path, patient=False) as talking:  # another process, later
        made = value_of(await talking.call_tool("ingest_folder", call))
    assert (made["submitted"], made["replayed"], len(sandbox.jobs)) == (2, False, 2)  # their answer is news
    assert {each["jobId"] for each in made["objects"]} == {job.id for job in sandbox.jobs}


async def test_videos_that_may_have_a_job_come_first_and_are_not_called_refused(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**videos(2))
    call = of_folder(bucket)
    async with using(sandbox, object_store, tmp_path, patient=False) as talking:
        call["confirmation"] = value_of(await talking.call_tool("ingest_folder", call))["confirmation"]
        sandbox.faults.lose_response("createJobsBulk")
        problem_of(await talking.call_tool("ingest_folder", call))
    rotated = attrs.evolve(object_store, secret_access_key="another secret")
    async with using(sandbox, rotated, tmp_path, patient=False) as talking:
        made = value_of(await talking.call_tool("ingest_folder", call))
    assert (made["refused"], made["unknown"], made["submitted"], len(sandbox.jobs)) == (0, 2, 0, 2)
    assert {each["status"] for each in made["objects"]} == {"unknown"}
    assert all("sent before with other credentials" in each["error"] for each in made["objects"])
    async with using(sandbox, object_store, tmp_path, patient=False) as talking:
        looked = value_of(await talking.call_tool("ingest_folder", of_folder(bucket)))
        assert (looked["unknown"], looked["confirmation"]) == (2, call["confirmation"])
        made = value_of(await talking.call_tool("ingest_folder", call))
    assert (made["unknown"], made["submitted"], len(sandbox.jobs)) == (0, 2, 2)


async def test_videos_that_are_refused_come_first_with_the_reason(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    call = of_folder(object_store.private_bucket(**videos(60)), job={**JOB, "container": "webm"})
    heard: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert (total, "found" in str(message)) == (None, True)
        heard.append(progress)

    async with using(sandbox, object_store, tmp_path) as talking:
        looked = value_of(await talking.call_tool("ingest_folder", call, progress_callback=hear))
    assert (looked["refused"], looked["more"], len(looked["objects"])) == (60, True, 50)
    assert {each["status"] for each in looked["objects"]} == {"refused"}
    assert "webm cannot carry h264" in looked["objects"][0]["error"]
    assert "confirmation" not in looked
    assert heard == sorted(set(heard))
    assert heard


async def test_a_folder_that_cannot_be_listed_says_so_without_its_credentials(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    async with using(sandbox, object_store, tmp_path) as talking:
        result = await talking.call_tool("ingest_folder", of_folder("no-such-bucket"))
    told = problem_of(result)
    assert told["code"] == "storage"
    assert "NoSuchBucket" in told["message"]
    assert object_store.secret_access_key not in repr(result)
    assert object_store.access_key_id not in repr(result)


async def test_without_a_profile_the_machines_own_credentials_are_not_used(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[S3FolderSource, bool]] = []
    really: Any = ingest_folder

    async def remembered(client: Any, source: S3FolderSource, *rest: Any, anonymous: bool, **more: Any) -> Any:
        asked.append((source, anonymous))
        here = S3FolderSource(bucket=source.bucket, prefix=source.prefix, endpoint=object_store.endpoint)
        return await really(client, here, *rest, anonymous=anonymous, **more)  # it would be Amazon's

    monkeypatch.setattr(folders, "ingest_folder", remembered)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHISMACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of this machine")
    bucket = object_store.bucket(**videos(1))
    source = {"bucket": bucket, "prefix": "films/"}
    call = {"sourceS3": source, "job": JOB}
    async with using(sandbox, object_store, tmp_path) as talking:
        looked = value_of(await talking.call_tool("ingest_folder", call))
        await talking.call_tool("ingest_folder", {**call, "confirmation": looked["confirmation"]})
        elsewhere = {**source, "endpoint": "http://127.0.0.1:1"}
        told = problem_of(await talking.call_tool("ingest_folder", {**call, "sourceS3": elsewhere}))
    assert told["issues"][0]["path"] == "sourceS3.endpoint"
    assert {anonymous for _, anonymous in asked} == {True}
    [job] = sandbox.jobs
    assert job.source is not None
    assert not {"accessKeyId", "secretAccessKey"} & set(job.source)
