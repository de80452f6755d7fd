"""`ingest_folder` against a real S3 server and the sandbox: every video of a folder is encoded once."""

import csv
import json
import os
import signal
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import httpx
import pytest
from botocore.credentials import RefreshableCredentials
from fake_clock import FakeClock
from object_store import ObjectStore

from convertrilo import (
    AsyncClient,
    ConfigurationError,
    IngestProgress,
    IngestReport,
    IngestRow,
    JobCreateRequest,
    Journal,
    NotFoundError,
    RetryPolicy,
    S3FolderOutput,
    S3FolderSource,
    TransferError,
    TransportError,
    ValidationError,
    ingest_folder,
)
from convertrilo.ingest import manifest as manifests
from convertrilo.ingest import on_demand, s3_folder, s3_requests
from convertrilo.ingest.objects import Shard
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.sandbox import Sandbox, serve_in_thread

TEMPLATE = {"codec": "h264", "resolution": "720p", "fps": 30}
ODD = [
    "a b+c.mp4",
    "100%41.mp4",
    "a/../b.mp4",
    "#?;=&.mp4",
    "//x.mp4",
    "caf\u00e9.mp4",
    "cafe\u0301.mp4",
    "X.mp4",
    "x.mp4",
]
SECRET = "moto-takes-any-secret"


QUICK: dict[str, Any] = {"clock": FakeClock(sleepers="hurry"), "retry": RetryPolicy(deadline=1e6)}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1, allow_private_sources=True) as sandbox:
        yield sandbox


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[AsyncClient]:
    async with sandbox.client(**QUICK) as client:
        yield client


def videos(count: int, start: int = 0) -> dict[str, bytes]:
    return {f"films/{number:04}.mp4": str(number).encode() for number in range(start, start + count)}


async def rows(report: IngestReport) -> dict[str, IngestRow]:
    found = [each async for each in report.rows()]
    assert len({each.key for each in found}) == len(found)
    return {each.key: each for each in found}


def made(sandbox: Sandbox) -> dict[str | None, str]:
    ids = {each.external_id: each.id for each in sandbox.jobs}
    assert len(ids) == len(sandbox.jobs), "an object has two jobs"
    return ids


# ---- once


async def test_every_video_has_one_job_and_the_report_says_which(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(25), **{"films/notes.txt": b"", "films/": b""})
    folder = object_store.folder(bucket, prefix="films/")
    report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", batch_size=10)
    assert (report.listed, report.passed_over, report.submitted, report.refused) == (25, 2, 25, 0)
    assert (report.unfinished, report.size) == (25, 40)
    assert report.estimated == report.reserved == sum(job.price or 0 for job in sandbox.jobs) > 0
    found = await rows(report)
    assert {each.external_id: each.job_id for each in found.values()} == made(sandbox)
    assert found.keys() == videos(25).keys()
    assert {each.status for each in found.values()} == {"submitted"}


async def test_odd_keys_reach_the_encoder_as_they_are(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(ODD, b"video"))
    report = await ingest_folder(client, object_store.folder(bucket), TEMPLATE, journal=tmp_path / "run.db")
    assert sorted(job.source["key"] for job in sandbox.jobs if job.source) == sorted(ODD)
    assert sorted(await rows(report)) == sorted(ODD)
    assert len(made(sandbox)) == len(ODD)


async def test_run_again_it_sends_nothing_and_a_grown_folder_only_what_is_new(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(30))
    folder = object_store.folder(bucket)
    await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", batch_size=7)
    first, sent = made(sandbox), len(sandbox.requests)
    again = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", batch_size=9)
    assert len(sandbox.requests) == sent
    assert (again.listed, again.submitted) == (30, 30)

    for key, content in {**videos(5, 100), "films/0007x.mp4": b"", "films/0003.mp4": b"changed"}.items():
        object_store.s3.put_object(Bucket=bucket, Key=key, Body=content)
    grown = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db")
    assert (grown.listed, grown.submitted) == (37, 37)
    assert len(made(sandbox)) == 37
    assert first.items() <= made(sandbox).items()


async def test_what_else_is_in_the_journal_is_not_counted_as_the_folders(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(3)))
    async with Journal(tmp_path / "run.db") as journal, sandbox.client(journal=journal, **QUICK) as other:
        job = {**TEMPLATE, "externalId": "another", "sourceUrl": "https://videos.test/1.mp4"}
        made = await other.create_jobs_bulk({"jobs": [job], "settings": {"confirm": True}})
        assert made.reserved
        [another] = [
            each async for each in other.submit_jobs([{**job, "externalId": "more"}], settings={"confirm": True})
        ]
        assert another.job_id is not None
        report = await ingest_folder(other, folder, TEMPLATE, journal=journal)
    assert report.reserved == sum(job.price or 0 for job in sandbox.jobs[2:]) > 0


async def test_what_one_service_has_is_not_said_to_be_anothers(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(1)))
    await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db")
    async with AsyncClient(sandbox.api_key, base_url="https://api.test") as elsewhere:
        with pytest.raises(ConfigurationError, match=r'another ingest: its service is .* not "https://api\.test'):
            await ingest_folder(elsewhere, folder, TEMPLATE, journal=tmp_path / "run.db")


async def test_from_scratch_makes_every_job_anew(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(3))
    folder = object_store.folder(bucket)
    for runs in (1, 2, 3):
        report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", from_scratch=True)
        assert (report.listed, report.submitted) == (3, 3)
        assert len(sandbox.jobs) == 3 * runs
        assert report.reserved == sum(job.price or 0 for job in sandbox.jobs[-3:]) > 0, "of this run only"
    assert len({each.job_id for each in (await rows(report)).values()} & {job.id for job in sandbox.jobs[6:]}) == 3
    await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db")
    assert len(sandbox.jobs) == 9


async def test_from_scratch_asks_anew_for_what_was_refused(tmp_path: Path) -> None:
    answers: dict[str, list[dict[str, str]]] = {}
    said = {"error": "source_not_readable: the bucket is not ours"}

    def answer(request: httpx.Request) -> httpx.Response:
        jobs = json.loads(request.content)["jobs"]
        return httpx.Response(
            200, json={"jobs": answers.setdefault(request.headers["idempotency-key"], [said] * len(jobs))}
        )

    manifest = tmp_path / "keys.txt"
    how: dict[str, Any] = {"journal": tmp_path / "run.db", "anonymous": True}
    manifest.write_text("a.mp4\n")
    async with AsyncClient("key", base_url="https://api.test", transport=httpx.MockTransport(answer)) as client:
        assert (await ingest_folder(client, "s3://films", TEMPLATE, manifest=manifest, **how)).refused == 1
        said = {"jobId": "j-1"}
        assert (await ingest_folder(client, "s3://films", TEMPLATE, manifest=manifest, **how)).refused == 1
        report = await ingest_folder(client, "s3://films", TEMPLATE, manifest=manifest, **how, from_scratch=True)
    assert (report.submitted, report.refused, len(answers)) == (1, 0, 2)


async def test_what_is_made_from_scratch_under_one_name_is_not_what_is_made_under_another(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(2)))
    for name in ("nightly", "weekly"):
        for from_scratch in (False, True, False):
            view, journal = client.with_options(operation=name), tmp_path / f"{name}.db"
            report = await ingest_folder(view, folder, TEMPLATE, journal=journal, from_scratch=from_scratch)
            assert report.reserved == sum(job.price or 0 for job in sandbox.jobs[-2:]) > 0
    assert len(sandbox.jobs) == 8


@pytest.mark.parametrize("change", ["template", "bucket", "shard"])
async def test_a_journal_holds_one_ingest(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, change: str
) -> None:
    buckets = [object_store.bucket(**videos(2)) for _ in range(2)]
    await ingest_folder(client, object_store.folder(buckets[0]), TEMPLATE, journal=tmp_path / "run.db")
    other = {
        "template": (buckets[0], {**TEMPLATE, "codec": "av1"}, None),
        "bucket": (buckets[1], TEMPLATE, None),
        "shard": (buckets[0], TEMPLATE, "0/2"),
    }
    bucket, template, shard = other[change]
    with pytest.raises(ConfigurationError, match="the journal holds another ingest") as refused:
        await ingest_folder(client, object_store.folder(bucket), template, journal=tmp_path / "run.db", shard=shard)
    assert "Use another journal, or begin from scratch" in str(refused.value)
    assert len(sandbox.jobs) == 2


AV1 = {**TEMPLATE, "codec": "av1"}
WAYS: dict[str, dict[str, Any]] = {"batches": {}, "a share": {"shard": "0/1"}, "on demand": {"on_demand": True}}


@pytest.mark.parametrize("way", WAYS)
async def test_what_was_sent_and_never_answered_binds_the_journal_to_its_ingest(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, way: str
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(3)))
    how: dict[str, Any] = {"journal": tmp_path / "run.db", **WAYS[way]}
    sandbox.faults.lose_response("onDemandIngestFolder" if "on_demand" in how else "createJobsBulk")
    async with sandbox.client(retry=RetryPolicy.none()) as client:
        with pytest.raises(TransportError):
            await ingest_folder(client, folder, TEMPLATE, **how)
        first = made(sandbox)
        assert len(first) == 3
        with pytest.raises(ConfigurationError, match="the journal holds another ingest: its template is"):
            await ingest_folder(client, folder, AV1, **how)
        with pytest.raises(ConfigurationError, match='another ingest: its operation is null, not "nightly"'):
            await ingest_folder(client.with_options(operation="nightly"), folder, TEMPLATE, **how)
        report = await ingest_folder(client, folder, TEMPLATE, **how)
    assert {each.external_id: each.job_id for each in (await rows(report)).values()} == made(sandbox) == first


@pytest.mark.parametrize("template", [TEMPLATE, AV1], ids=["same", "other"])
@pytest.mark.parametrize("way", WAYS)
async def test_what_was_sent_and_never_answered_is_made_anew_from_scratch(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, way: str, template: dict[str, Any]
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(3)))
    how: dict[str, Any] = {"journal": tmp_path / "run.db", **WAYS[way]}
    async with sandbox.client(retry=RetryPolicy.none()) as client:
        for runs in (1, 2):
            sandbox.faults.lose_response("onDemandIngestFolder" if "on_demand" in how else "createJobsBulk")
            with pytest.raises(TransportError):
                await ingest_folder(client, folder, TEMPLATE, **how, from_scratch=True)
            assert len(sandbox.jobs) == 3 * runs
        report = await ingest_folder(client, folder, template, **how, from_scratch=True)
        for _ in range(2):
            assert {each.job_id for each in (await rows(report)).values()} == {job.id for job in sandbox.jobs[6:]}
            assert (report.submitted, report.refused, len(sandbox.jobs)) == (3, 0, 9)
            report = await ingest_folder(client, folder, template, **how)


KILLED = """
import os, signal, sys
import anyio
from convertrilo import AsyncClient, S3FolderSource, ingest_folder
from convertrilo.journal import folders

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

async def main(bucket, endpoint, key, secret, journal, on_demand):
    source = S3FolderSource(bucket=bucket, endpoint=endpoint, access_key_id=key, secret_access_key=secret)
    template = {"codec": "h264", "resolution": "720p", "fps": 30}
    async with AsyncClient() as client:
        await ingest_folder(client, source, template, journal=journal, on_demand=bool(on_demand))

folders.submitted = die
anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio writes the same to the journal
@pytest.mark.parametrize("way", ["batches", "on demand"])
async def test_a_process_killed_between_answer_and_note_leaves_a_journal_that_is_bound(
    object_store: ObjectStore, tmp_path: Path, way: str
) -> None:
    sandbox, journal, bucket = (
        Sandbox(allow_private_sources=True),
        tmp_path / "run.db",
        object_store.bucket(**videos(3)),
    )
    folder = object_store.folder(bucket)
    keys = (object_store.endpoint, object_store.access_key_id, object_store.secret_access_key)
    on_demand = way == "on demand"
    command = [sys.executable, "-c", KILLED, bucket, *keys, str(journal), "yes" if on_demand else ""]
    with serve_in_thread(sandbox) as base_url:
        environment = {**os.environ, "CONVERTRILO_API_KEY": sandbox.api_key, "CONVERTRILO_BASE_URL": base_url}
        killed = await anyio.run_process(command, check=False, env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        async with AsyncClient(sandbox.api_key, base_url=base_url) as client:
            how: dict[str, Any] = {"journal": journal, "on_demand": on_demand}
            with pytest.raises(ConfigurationError, match="the journal holds another ingest: its template is"):
                await ingest_folder(client, folder, AV1, **how)
            assert (await ingest_folder(client, folder, TEMPLATE, **how)).submitted == len(made(sandbox)) == 3


async def test_a_journal_is_not_bound_by_what_made_no_job_nor_by_what_others_do(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket, journal = object_store.bucket(**videos(2)), Journal(tmp_path / "run.db")
    folder, refused = object_store.folder(bucket), {**TEMPLATE, "container": "webm"}
    async with sandbox.client(journal=journal, retry=RetryPolicy.none()) as client:
        mine = [{**TEMPLATE, "sourceUrl": "http://127.0.0.1/a.mp4", "externalId": "mine"}]
        sandbox.faults.lose_response("createJobsBulk", times=1)
        with pytest.raises(TransportError):
            await client.create_jobs_bulk({"jobs": mine})
        sandbox.faults.lose_response("onDemandIngestFolder", times=1)
        with pytest.raises(TransportError):
            await client.on_demand_ingest_folder({"sourceS3": {"bucket": bucket, "prefix": "films/"}, "maxFiles": 1})
        others = len(sandbox.jobs)
        with pytest.raises(NotFoundError):
            await ingest_folder(
                client, object_store.folder(bucket, prefix="none/"), TEMPLATE, journal=journal, on_demand=True
            )
        report = await ingest_folder(client, folder, refused, journal=journal)
        assert (report.refused, len(sandbox.jobs)) == (2, others)
        report = await ingest_folder(client, folder, TEMPLATE, journal=journal)
        assert (report.submitted, report.refused, len(sandbox.jobs)) == (2, 0, others + 2)
        assert [entry.name async for entry in journal.answered()] == [None, "submit_jobs round 1"], "not from scratch"


async def test_shares_are_disjoint_and_cover_the_folder(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(30))
    found: list[str] = []
    for index in range(3):
        journal = tmp_path / f"{index}.db"
        report = await ingest_folder(client, object_store.folder(bucket), TEMPLATE, journal=journal, shard=f"{index}/3")
        found += await rows(report)
        assert all(Shard(index, 3).holds(key) for key in await rows(report))
    assert sorted(found) == list(videos(30))
    assert len(made(sandbox)) == 30


# ---- what becomes of each


async def test_what_is_waited_for_is_recorded(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(12))
    sandbox.fail_jobs("no video stream", times=2)
    heard: list[IngestProgress] = []
    report = await ingest_folder(
        client,
        object_store.folder(bucket),
        TEMPLATE,
        journal=tmp_path / "run.db",
        batch_size=5,
        wait=True,
        on_progress=heard.append,
    )
    assert (report.succeeded, report.failed, report.unfinished) == (10, 2, 0)
    found = await rows(report)
    assert sorted(each.error or "" for each in found.values()) == [""] * 10 + ["no video stream"] * 2
    assert [each.output is None for each in found.values()] == [each.status == "failed" for each in found.values()]
    assert heard[-1] == IngestProgress(listed=12, submitted=12, succeeded=10, failed=2, is_listed=True)
    assert [each.submitted for each in heard] == sorted(each.submitted for each in heard)


async def test_a_status_that_cannot_be_read_is_read_again(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(6))
    sandbox.faults.status("bulkStatus", 409, times=1)
    sandbox.faults.status("jobStatus", 409, times=6)
    report = await ingest_folder(client, object_store.folder(bucket), TEMPLATE, journal=tmp_path / "run.db", wait=True)
    assert (report.succeeded, report.unfinished) == (6, 0)


async def test_one_objects_refusal_is_its_own_and_may_be_none_another_time(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(4))
    async with (
        Sandbox(allow_private_sources=True, tokens=5) as sandbox,
        sandbox.client(**QUICK) as client,
    ):
        folder = object_store.folder(bucket)
        sandbox.fail_jobs("no video stream", times=4)
        report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", wait=True)
        assert 0 < report.refused < 4
        refused = [each for each in (await rows(report)).values() if each.status == "refused"]
        assert len(refused) == report.refused
        assert all((each.error or "").startswith("insufficient_tokens: ") for each in refused)
        before = made(sandbox)
        assert 0 < len(before) == report.failed  # their tokens are given back
        report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db")
        assert (report.listed, report.submitted, report.refused) == (4, 4, 0)
        assert {each.external_id: each.job_id for each in (await rows(report)).values()} == made(sandbox)
        assert before.items() <= made(sandbox).items()


async def test_what_may_have_a_job_is_not_called_refused(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder, path = object_store.folder(object_store.bucket(**videos(3))), tmp_path / "run.db"
    late = Journal(path, replay_window=0)
    heard: list[IngestProgress] = []
    sandbox.faults.lose_response("createJobsBulk")
    async with sandbox.client(retry=RetryPolicy.none()) as client:
        with pytest.raises(TransportError):
            await ingest_folder(client, folder, TEMPLATE, journal=path)
        for dry_run in (False, True):  # an estimate does not tell whether there is a job
            report = await ingest_folder(
                client, folder, TEMPLATE, journal=late, dry_run=dry_run, on_progress=heard.append
            )
            assert (report.listed, report.unknown, report.refused, report.submitted) == (3, 3, 0, 0)
            found = (await rows(report)).values()
            assert {(each.status, each.job_id) for each in found} == {("unknown", None)}
            assert all("could do it twice" in (each.error or "") for each in found)
        assert heard[-1].failed == 0
        assert max(each.failed for each in heard) == 3
        for name in ("out.csv", "out.jsonl"):
            assert (await report.write(tmp_path / name)).read_text().count("unknown") == 3
        with pytest.raises(ConfigurationError, match="the journal holds another ingest"):
            await ingest_folder(client, folder, AV1, journal=late)
        report = await ingest_folder(client, folder, TEMPLATE, journal=path)  # the replay window is long enough now
    assert (report.unknown, report.submitted, len(made(sandbox))) == (0, 3, 3)
    assert {each.status for each in (await rows(report)).values()} == {"submitted"}


async def test_a_batch_that_the_service_knows_with_other_credentials_may_have_made_jobs(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket, path = object_store.bucket(**videos(3)), tmp_path / "run.db"
    folder = object_store.folder(bucket)
    sandbox.faults.lose_response("createJobsBulk")
    async with sandbox.client(retry=RetryPolicy.none()) as client:
        with pytest.raises(TransportError):
            await ingest_folder(client, folder, TEMPLATE, journal=path)
        rotated = attrs.evolve(object_store, secret_access_key="another secret").folder(bucket)
        for journal in (path, tmp_path / "other.db"):  # the other journal knows nothing of the batch
            report = await ingest_folder(client, rotated, TEMPLATE, journal=journal)
            assert (report.unknown, report.refused, len(made(sandbox))) == (3, 0, 3)
            with pytest.raises(ConfigurationError, match="the journal holds another ingest"):
                await ingest_folder(client, folder, AV1, journal=journal)
            report = await ingest_folder(client, folder, TEMPLATE, journal=journal)
            assert (report.unknown, report.submitted, len(made(sandbox))) == (0, 3, 3)


async def test_a_dry_run_estimates_and_creates_nothing(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(5))
    folder, journal = object_store.folder(bucket), tmp_path / "run.db"
    dear = await ingest_folder(client, folder, {**TEMPLATE, "codec": "av1"}, journal=journal, dry_run=True)
    assert (dear.listed, dear.submitted, dear.dry_run) == (5, 0, True)
    estimate = await ingest_folder(client, folder, TEMPLATE, journal=journal, dry_run=True)
    assert 0 < estimate.estimated < dear.estimated
    assert (estimate.reserved, len(sandbox.jobs), sandbox.tokens.reserved) == (None, 0, 0)
    assert {each.status for each in (await rows(estimate)).values()} == {"listed"}
    real = await ingest_folder(client, folder, TEMPLATE, journal=journal)
    assert (real.submitted, real.estimated) == (5, estimate.estimated)
    assert len(made(sandbox)) == 5


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
async def test_the_report_is_a_file_with_a_row_for_each_object(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path, name: str
) -> None:
    bucket = object_store.bucket(**dict.fromkeys([*ODD, 'quote",\u2028.mp4'], b"video"))
    report = await ingest_folder(client, object_store.folder(bucket), TEMPLATE, journal=tmp_path / "run.db")
    path = await report.write(tmp_path / name)
    with path.open(newline="", encoding="utf-8") as file:
        if name.endswith(".csv"):
            written: list[dict[str, Any]] = list(csv.DictReader(file))
        else:
            written = [json.loads(line) for line in file.read().split("\n") if line]
    assert {each["key"]: each["job_id"] for each in written} == {
        each.key: each.job_id for each in (await rows(report)).values()
    }
    assert list(written[0]) == ["key", "size", "external_id", "job_id", "status", "output", "error", "estimate"]
    assert {str(each["size"]) for each in written} == {"5"}
    assert list(tmp_path.glob("*.part")) == []


async def test_a_report_that_cannot_be_written_leaves_no_part_of_it(
    client: AsyncClient, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(2)))
    report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db")
    (tmp_path / "there.csv").mkdir()
    with pytest.raises(OSError, match="directory"):
        await report.write(tmp_path / "there.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(OSError, match="it is not a regular file"):
        await report.write(tmp_path / "pipe.csv")
    assert (tmp_path / "pipe.csv").is_fifo()
    with anyio.CancelScope() as scope:

        async def stop(*_: object) -> None:
            assert [each.name for each in tmp_path.glob("*.part")] == ["out.csv.part"]
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        monkeypatch.setattr(Journal, "do", stop)
        await report.write(tmp_path / "out.csv")
    assert scope.cancelled_caught
    assert {each.name for each in tmp_path.glob("*.csv*")} == {"there.csv", "pipe.csv"}


async def test_a_manifest_takes_the_place_of_the_listing(client: AsyncClient, sandbox: Sandbox, tmp_path: Path) -> None:
    manifest = tmp_path / "keys.txt"
    manifest.write_text("a.mp4\nb.mp4\nc.txt\n")
    report = await ingest_folder(
        client,
        S3FolderSource(bucket="films", region="eu-west-1"),
        JobCreateRequest(codec="av1", resolution="720p", fps=24, metadata={"who": "me"}, extra={"hdr": True}),
        journal=tmp_path / "run.db",
        manifest=manifest,
        anonymous=True,
    )
    assert (report.listed, report.passed_over) == (2, 1)
    assert {job.external_id for job in sandbox.jobs} == {"s3://films/a.mp4", "s3://films/b.mp4"}
    assert {json.dumps(job.metadata) for job in sandbox.jobs} == {'{"who": "me"}'}
    assert sandbox.jobs[0].source == {
        "bucket": "films",
        "key": "a.mp4",
        "region": "eu-west-1",
        "forcePathStyle": True,
    }


async def test_a_key_that_is_no_utf_8_is_reported_and_not_sent(
    client: AsyncClient, sandbox: Sandbox, tmp_path: Path
) -> None:
    manifest = tmp_path / "inventory.csv"
    manifest.write_text('"films","odd%FF.mp4"\n"films","even.mp4"\n')
    for _ in range(2):
        report = await ingest_folder(
            client, "s3://films", TEMPLATE, journal=tmp_path / "run.db", manifest=manifest, anonymous=True
        )
        assert (report.listed, report.submitted, report.refused) == (2, 1, 1)
    assert (await rows(report))["odd\\xff.mp4"].error == "the key is not valid UTF-8, which the API requires"
    assert len(sandbox.jobs) == 1


async def test_no_more_files_than_are_wanted(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(10))
    for most, expected in ((4, 4), (4, 4), (7, 7), (100, 10)):
        report = await ingest_folder(
            client, object_store.folder(bucket), TEMPLATE, journal=tmp_path / "run.db", max_files=most
        )
        assert (report.listed, len(made(sandbox))) == (expected, expected)


class Unordered(httpx.AsyncBaseTransport):
    """A store like a directory bucket: without `start-after`, and only its first keys come in order."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        end = int(request.url.params.get("continuation-token", 0)) + 10
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < len(self.keys) else ""
        found = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in self.keys[end - 10 : end])
        truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        listing = f"<ListBucketResult>{truncated}{more}{found}</ListBucketResult>"
        return httpx.Response(200, stream=httpx.ByteStream(listing.encode()))


async def test_a_store_that_turns_out_to_have_no_order_is_listed_whole(
    client: AsyncClient, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{number:04}.{'txt' if number % 5 == 0 else 'mp4'}" for number in range(400)]
    keys[200:] = reversed(keys[200:])
    monkeypatch.setattr(s3_requests, "make_transport", lambda **_: Unordered(keys))
    for _ in range(2):
        with anyio.fail_after(60):
            report = await ingest_folder(client, "s3://films", TEMPLATE, journal=tmp_path / "run.db", anonymous=True)
        assert (report.listed, report.passed_over, report.submitted) == (320, 80, 320)
    assert {job.source["key"] for job in sandbox.jobs if job.source} == {key for key in keys if key.endswith(".mp4")}
    assert len(made(sandbox)) == 320


class Counting(httpx.AsyncBaseTransport):
    """A service that answers every request with new jobs, and remembers none of them."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        asked = json.loads(await request.aread())["jobs"]
        jobs = [{"index": index, "jobId": f"job of {each['externalId']}"} for index, each in enumerate(asked)]
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps({"jobs": jobs}).encode()), request=request)


class Silent(Counting):
    """A service whose answers leave out the first job."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        jobs = json.loads(await answer.aread())["jobs"][1:]
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps({"jobs": jobs}).encode()), request=request)


async def test_a_job_that_an_answer_does_not_mention_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("a.mp4\nb.mp4\n")
    how: dict[str, Any] = {"manifest": tmp_path / "keys.txt", "anonymous": True}
    async with AsyncClient("key", base_url="https://api.test", transport=Silent()) as client:
        dry = await ingest_folder(client, "s3://films", TEMPLATE, journal=tmp_path / "1.db", dry_run=True, **how)
        report = await ingest_folder(client, "s3://films", TEMPLATE, journal=tmp_path / "2.db", **how)
    assert (dry.refused, dry.unknown) == (1, 0), "a dry run makes no job"
    assert (report.submitted, report.refused, report.unknown) == (1, 0, 1)
    assert (await rows(report))["a.mp4"].error == "the answer has no outcome for this job"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio needs the same memory
async def test_memory_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "_PAGE", 20)
    peaks: list[int] = []
    for count in (50, 600, 1_500):  # the first run fills the caches
        manifest = tmp_path / f"{count}.txt"
        manifest.write_text("".join(f"films/{number:06}.mp4\n" for number in range(count)))
        tracemalloc.start()
        async with AsyncClient("key", base_url="https://api.test", transport=Counting()) as client:
            options: dict[str, Any] = {"journal": tmp_path / f"{count}.db", "manifest": manifest, "anonymous": True}
            report = await ingest_folder(client, "s3://films", TEMPLATE, batch_size=50, **options)
            await report.write(tmp_path / "out.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.submitted == count
    assert peaks[2] < peaks[1] * 1.5, peaks


# ---- interrupted


async def test_a_service_that_fails_ends_the_run_and_the_next_one_goes_on(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(40))
    sandbox.faults.reset("createJobsBulk", times=None, probability=0.5)
    options: dict[str, Any] = {"clock": FakeClock(sleepers="hurry"), "retry": RetryPolicy.none()}
    failed = 0
    while failed < 200:
        async with sandbox.client(**options) as client:
            try:
                report = await ingest_folder(
                    client, object_store.folder(bucket), TEMPLATE, journal=tmp_path / "run.db", batch_size=4
                )
                break
            except TransportError:
                failed += 1
    assert failed > 0
    assert (report.submitted, len(made(sandbox))) == (40, 40)


async def test_lost_answers_and_cancellations_make_no_job_twice(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(60))
    sandbox.faults.lose_response("createJobsBulk", times=None, probability=0.4)
    folder, journal = object_store.folder(bucket), tmp_path / "run.db"
    cancelled = 0
    for limit in (1, 2, 4, 6, 9, 0):
        async with sandbox.client(**QUICK) as client:
            with anyio.CancelScope() as scope:

                def stop(progress: IngestProgress, scope: anyio.CancelScope = scope, limit: int = limit) -> None:
                    if limit and progress.submitted >= 6 * limit:
                        scope.cancel()

                report = await ingest_folder(
                    client, folder, TEMPLATE, journal=journal, batch_size=6, concurrency=2, on_progress=stop
                )
            cancelled += scope.cancelled_caught
    assert cancelled > 0
    assert "lose_response" in {each.fault for each in sandbox.requests}
    assert (report.listed, report.submitted, len(made(sandbox))) == (60, 60, 60)


async def test_a_folder_that_cannot_be_listed_ends_the_run(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(TransferError, match="NoSuchBucket"):
        await ingest_folder(client, object_store.folder("no-such-bucket"), TEMPLATE, journal=tmp_path / "run.db")
    assert sandbox.jobs == []


async def test_two_runs_on_one_journal_share_the_work(
    sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(60))
    reports: list[IngestReport] = []

    async def run() -> None:
        async with sandbox.client(**QUICK) as client:
            folder = object_store.folder(bucket)
            reports.append(
                await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", batch_size=5, wait=True)
            )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        tasks.start_soon(run)
    assert len(made(sandbox)) == 60
    assert max(report.succeeded for report in reports) == 60


# ---- listed by the service


async def test_the_service_may_list_a_small_folder_itself(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(9), **{"films/a.txt": b""})
    sandbox.fail_jobs("no video stream", times=2)
    for _ in range(2):
        report = await ingest_folder(
            client,
            object_store.folder(bucket, prefix="films/"),
            TEMPLATE,
            journal=tmp_path / "run.db",
            on_demand=True,
            wait=True,
        )
        assert (report.listed, report.submitted, report.succeeded, report.failed) == (9, 9, 7, 2)
        assert (report.estimated, report.reserved) == (0, None), "the service says neither"
    assert [each.operation for each in sandbox.requests].count("onDemandIngestFolder") == 1
    found = await rows(report)
    assert {each.external_id: each.job_id for each in found.values()} == made(sandbox)
    assert found.keys() == {key.removeprefix("films/") for key in videos(9)}
    assert sorted(each.error or "" for each in found.values()) == [""] * 7 + ["no video stream"] * 2


async def test_a_status_that_cannot_be_read_is_that_jobs_own_and_read_again(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = object_store.folder(object_store.bucket(**videos(6)))
    how: dict[str, Any] = {"journal": tmp_path / "run.db", "on_demand": True, "wait": True}
    sandbox.faults.status("bulkStatus", 404, times=None)
    sandbox.faults.status("onDemandStatus", 404, times=4)
    report = await ingest_folder(client, folder, TEMPLATE, **how)
    assert (report.succeeded, report.unfinished) == (6, 0)
    assert {each.error for each in (await rows(report)).values()} == {None}


class OnDemand(httpx.AsyncBaseTransport):
    """A service that has listed a folder; its jobs have these statuses."""

    def __init__(self, jobs: list[dict[str, str]], **statuses: str) -> None:
        self.jobs = jobs
        self.statuses = statuses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        job_id = request.url.path.rpartition("/")[2]
        status, answer = 200, dict[str, Any]()
        if request.method == "POST":
            answer = {"jobs": self.jobs}
        elif job_id in self.statuses:
            answer = {"jobId": job_id, "status": self.statuses[job_id]}
        else:
            status, answer = 404, {"code": "not_found", "message": "no such job"}
        return httpx.Response(status, stream=httpx.ByteStream(json.dumps(answer).encode()), request=request)


async def test_two_jobs_of_one_name_are_two_and_one_that_cannot_be_read_is_no_others_concern(tmp_path: Path) -> None:
    listed = [{"jobId": f"o{number}", "externalId": "s3://films/:a.mp4", "fileName": "a.mp4"} for number in range(3)]
    service = OnDemand([*listed, listed[0]], o0="success", o2="failed")
    how: dict[str, Any] = {"journal": tmp_path / "run.db", "on_demand": True, "anonymous": True, "wait": True}
    async with AsyncClient("key", base_url="https://api.test", transport=service, **QUICK) as client:
        for _ in range(2):
            report = await ingest_folder(client, "s3://films", TEMPLATE, **how)
            assert (report.listed, report.submitted) == (3, 3)
            assert (report.succeeded, report.failed, report.unfinished) == (1, 1, 1)
    found = {each.job_id: each async for each in report.rows()}
    assert {name: each.status for name, each in found.items()} == {"o0": "success", "o1": "submitted", "o2": "failed"}
    assert "no such job" in str(found["o1"].error)
    assert [found[name].external_id for name in ("o0", "o1")] == ["s3://films/:a.mp4", "s3://films/:a.mp4#o1"]


async def test_the_time_to_wait_is_that_of_all_jobs_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_FOLLOWERS", 1)
    names = [f"o{number}" for number in range(4)]
    service = OnDemand(
        [{"jobId": name, "fileName": f"{name}.mp4"} for name in names], **dict.fromkeys(names, "running")
    )
    clock = FakeClock()
    how: dict[str, Any] = {"journal": tmp_path / "run.db", "on_demand": True, "anonymous": True, "wait": True}
    async with AsyncClient("key", base_url="https://api.test", transport=service, clock=clock) as client:
        began = clock.now
        report = await ingest_folder(client, "s3://films", TEMPLATE, timeout=1000, **how)
    assert report.unfinished == 4
    assert 1000 <= clock.now - began < 1100


async def test_the_service_writes_where_it_is_told(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket, other = object_store.bucket(**videos(2)), object_store.bucket()
    output = S3FolderOutput(
        bucket=other,
        prefix="out/",
        endpoint=object_store.endpoint,
        access_key_id=object_store.access_key_id,
        secret_access_key=object_store.secret_access_key,
    )
    options: dict[str, Any] = {"journal": tmp_path / "run.db", "on_demand": True, "output": output, "wait": True}
    report = await ingest_folder(client, object_store.folder(bucket), TEMPLATE, max_files=1, **options)
    assert [each.output for each in (await rows(report)).values()] == object_store.keys(other)
    assert len(object_store.keys(other)) == 1
    assert SECRET not in (tmp_path / "run.db").read_bytes().decode(errors="replace")
    with pytest.raises(ConfigurationError, match="the journal holds another ingest: its on_demand is"):
        await ingest_folder(client, object_store.folder(bucket), TEMPLATE, max_files=2, **options)
    again = await ingest_folder(
        client, object_store.folder(bucket), TEMPLATE, max_files=2, from_scratch=True, **options
    )
    assert (again.submitted, len(sandbox.jobs)) == (2, 3)


# ---- secrets


async def test_credentials_are_sent_and_stay_nowhere(
    client: AsyncClient, sandbox: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.bucket(**videos(3))
    folder = object_store.folder(bucket)
    sandbox.fail_jobs(f"cannot read with AKIDEXAMPLE and {SECRET}", times=1)
    report = await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", wait=True)
    assert report.failed == 1
    await report.write(tmp_path / "out.csv")
    await report.write(tmp_path / "out.jsonl")
    shown = repr(report) + repr(await rows(report))
    for path in tmp_path.iterdir():
        shown += path.read_bytes().decode(errors="replace")
    assert not [secret for secret in ("AKIDEXAMPLE", SECRET) if secret in shown]
    assert "cannot read with <hidden> and <hidden>" in shown


class Remembering(Counting):
    """A service that remembers the jobs of each request."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += json.loads(await request.aread())["jobs"]
        return await super().handle_async_request(request)


async def test_keys_that_run_out_while_jobs_are_submitted_are_renewed_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials of this kind may expire and yet have no session token, so the API accepts them."""
    in_loop, is_late = threading.get_ident(), False
    threads: list[int] = []

    def renew() -> dict[str, str | None]:
        threads.append(threading.get_ident())
        expiry = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
        return {"access_key": "AKIDRENEWED", "secret_key": SECRET, "token": None, "expiry_time": expiry}

    def now() -> datetime:
        return datetime.now(UTC) + timedelta(hours=1 if is_late else 0)

    def opened(source: S3FolderSource, *, anonymous: bool) -> S3Folder:
        folder = really_open(source, anonymous=True)
        expiry = datetime.now(UTC) + timedelta(minutes=30)
        folder.keys = RefreshableCredentials("AKIDEXAMPLE", SECRET, "", expiry, renew, "test", time_fetcher=now)
        return folder

    async def read(*arguments: Any) -> None:
        nonlocal is_late
        is_late = True
        await really_read(*arguments)

    really_open, really_read = s3_folder._open, manifests.read_manifest
    monkeypatch.setattr(s3_folder, "_open", opened)
    monkeypatch.setattr("convertrilo.ingest.finding.read_manifest", read)
    (tmp_path / "keys.txt").write_text("a.mp4\nb.mp4\n")
    how: dict[str, Any] = {"journal": tmp_path / "run.db", "manifest": tmp_path / "keys.txt"}
    async with AsyncClient("key", base_url="https://api.test", transport=(service := Remembering())) as client:
        await ingest_folder(client, "s3://films", TEMPLATE, **how)
    assert len(threads) == 1
    assert threads[0] != in_loop
    assert [job["sourceS3"]["accessKeyId"] for job in service.asked] == ["AKIDRENEWED"] * 2


# ---- what makes no sense


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        ({**TEMPLATE, "externalId": "x"}, {}, "external_id: must not be set"),
        ({**TEMPLATE, "sourceUrl": "https://a.test/b"}, {}, "source_url: must not be set"),
        ({"codec": "av1"}, {}, "resolution: is required"),
        (TEMPLATE, {"shard": "3/3"}, "must be i/n"),
        (TEMPLATE, {"max_files": 0}, "max_files: must be at least 1"),
        (TEMPLATE, {"timeout": 0.0}, "timeout: must be a number of seconds above 0"),
        (TEMPLATE, {"include": "*.mp4"}, "include: must be a list of patterns"),
        (TEMPLATE, {"batch_size": 0}, "batch_size: must be at least 1"),
        ({**TEMPLATE, "confirm": False}, {"wait": True}, "would never end"),
        (TEMPLATE, {"on_demand": True}, "manifest: cannot be combined with on-demand jobs"),
        (
            TEMPLATE,
            {"on_demand": True, "manifest": None, "dry_run": True},
            "dry_run: cannot be combined",
        ),
        (
            TEMPLATE,
            {"on_demand": True, "manifest": None, "max_files": 1001},
            "maxFiles: must be an integer from 1 to 1000",
        ),
        (
            {**TEMPLATE, "policy": "fastest"},
            {"on_demand": True, "manifest": None},
            "policy: must not be set for on-demand jobs",
        ),
        (TEMPLATE, {"output": S3FolderOutput(bucket="b")}, "output: is for on-demand jobs"),
    ],
)
async def test_what_makes_no_sense_is_said_and_nothing_is_sent(
    client: AsyncClient, sandbox: Sandbox, tmp_path: Path, template: Any, options: dict[str, Any], said: str
) -> None:
    (tmp_path / "keys.txt").write_text("a.mp4\n")
    with pytest.raises(ValidationError, match=said):
        await ingest_folder(
            client,
            "s3://films",
            template,
            journal=tmp_path / "run.db",
            **{"manifest": tmp_path / "keys.txt", "anonymous": True, **options},
        )
    assert sandbox.requests == []
