"""`encode_file`: one job and one result, whatever breaks and however often it runs."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_clock import FakeClock
from support import names_in, raised_by

from convertrilo import (
    AsyncClient,
    AttemptEvent,
    InvalidRequestError,
    JobCanceledError,
    JobCreateRequest,
    JobFailedError,
    RetryPolicy,
    TransferError,
    TransportError,
    ValidationError,
)
from convertrilo.sandbox import Rules, Sandbox, VirtualClock
from convertrilo.transfers import Progress

WANTED: dict[str, Any] = {"codec": "h264", "resolution": "480p", "fps": 30}
NAMED = {**WANTED, "externalId": "holiday"}
ON_DEMAND = {"sourceUrl": "https://example.com/in.mp4"}
STEPS = ["createJob", "putObject", "approveUnified", "confirmJob", "jobStatus", "getObject"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    path.write_bytes(b"any bytes will do for the instant encoder" * 10_000)
    return path


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1) as sandbox:
        yield sandbox


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[AsyncClient]:
    async with sandbox.client(clock=FakeClock(sleepers="hurry"), timeout=60) as client:
        yield client


def asked(sandbox: Sandbox) -> Counter[str | None]:
    return Counter(each.operation for each in sandbox.requests)


async def test_a_file_becomes_a_file(sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    status = await client.encode_file(source, JobCreateRequest(**WANTED), tmp_path / "out.mp4", on_progress=seen.append)
    assert status.status == "success"
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
    assert [each.operation for each in sandbox.requests][:4] == STEPS[:4]
    (job,) = sandbox.jobs
    assert {each.job_id for each in seen} == {job.id}
    assert list(dict.fromkeys(each.stage for each in seen)) == ["upload", "encode", "download"]
    assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize("fault", ["refuse", "reset", "lose_response", "cut_response", "stall"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_fault_at_any_step_costs_nothing_but_time(
    fault: str, step: str, sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    getattr(sandbox.faults, fault)(step, times=1 if fault == "stall" else 2)  # a stall lasts until the client's timeout
    impatient = client.with_options(timeout=0.2, retry=RetryPolicy(max_attempts=10))  # others may be slow
    view = impatient if fault == "stall" else client
    await view.encode_file(source, WANTED, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
    (job,) = sandbox.jobs
    assert job.status == "success"
    assert sandbox.tokens.reserved == 0
    assert sandbox.tokens.spent == job.price
    assert names_in(tmp_path) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("step", STEPS)
async def test_an_error_that_passes_at_any_step_costs_nothing_but_time(
    status: int, step: str, sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    sandbox.faults.status(step, status, times=2, body={"code": "oops", "message": "later"})
    await client.encode_file(source, WANTED, tmp_path / "out.mp4")
    assert [job.status for job in sandbox.jobs] == ["success"]


@pytest.mark.parametrize(("code", "uploads"), [(None, 1), ("probe_failed", 2), ("upload_not_found", 2)])
async def test_what_an_earlier_run_has_uploaded_goes_again_only_if_it_is_no_video(
    code: str | None, uploads: int, sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    await client.upload(await client.create_job(NAMED), source)
    if code is not None:
        sandbox.faults.status("probeDuration", 400, body={"code": code, "message": "no"})
    await client.encode_file(source, NAMED, tmp_path / "out.mp4")
    assert asked(sandbox)["putObject"] == uploads
    assert [job.status for job in sandbox.jobs] == ["success"]


@pytest.mark.parametrize("how", ["external_id", "operation", "key", "view"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_second_run_goes_on_where_the_first_one_died(
    step: str, how: str, sandbox: Sandbox, source: Path, tmp_path: Path
) -> None:
    named: dict[str, dict[str, Any]] = {"operation": {"operation": "holiday"}, "key": {"idempotency_key": "holiday"}}
    body = NAMED if how == "external_id" else WANTED

    async def run(until: str | None = None) -> str | None:
        with anyio.CancelScope() as scope:

            def watch(event: AttemptEvent) -> None:
                if event.operation == until:
                    scope.cancel()

            async with sandbox.client(clock=FakeClock(sleepers="hurry"), on_event=watch) as client:
                view = client.with_options(operation="holiday") if how == "view" else client
                done = await view.encode_file(source, body, tmp_path / "out.mp4", **named.get(how, {}))
                return done.status
        return "died"

    sandbox.faults.lose_response(step)
    assert await run({"putObject": "upload", "getObject": "download"}.get(step, step)) == "died"
    uploads = asked(sandbox)["putObject"]
    assert await run() == "success"
    assert [job.status for job in sandbox.jobs] == ["success"]
    assert asked(sandbox)["putObject"] == max(1, uploads)  # the file was uploaded once
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
    assert sandbox.tokens.reserved == 0


async def test_a_second_run_after_the_upload_url_has_expired_uploads_in_parts(source: Path, tmp_path: Path) -> None:
    rules = Rules(upload_seconds=1)
    clock = VirtualClock()
    async with (
        Sandbox(seed=1, rules=rules, clock=clock) as sandbox,
        sandbox.client(clock=FakeClock(sleepers="hurry")) as client,
    ):
        await client.create_job(NAMED)
        clock.advance(2)
        await client.encode_file(source, NAMED, tmp_path / "out.mp4")
        assert [job.status for job in sandbox.jobs] == ["success"]
        assert asked(sandbox)["finalizeStream"] == 1


async def test_a_third_run_only_downloads(sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        await client.encode_file(source, NAMED, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    counts = asked(sandbox)
    assert len(sandbox.jobs) == counts["putObject"] == counts["confirmJob"] == 1


async def test_runs_without_a_name_are_jobs_of_their_own(
    sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        await client.encode_file(source, WANTED, tmp_path / name)
    assert len(sandbox.jobs) == 2
    assert asked(sandbox)["probeDuration"] == 0  # there is no earlier upload to look for


async def test_cancelled_at_any_moment_it_can_be_run_again(sandbox: Sandbox, source: Path, tmp_path: Path) -> None:
    moment = 0
    while True:
        moment += 1
        out = tmp_path / f"out-{moment}"
        body = {**WANTED, "externalId": f"holiday-{moment}"}
        async with sandbox.client(clock=FakeClock(sleepers="hurry")) as client:
            with anyio.CancelScope() as scope:
                calls = 0

                def stop(_: Any, moment: int = moment, scope: anyio.CancelScope = scope) -> None:
                    nonlocal calls
                    calls += 1
                    if calls == moment:
                        scope.cancel()

                client._engine.on_event = stop
                await client.encode_file(source, body, out, on_progress=stop)
            if not scope.cancelled_caught:
                break
        async with sandbox.client(clock=FakeClock(sleepers="hurry")) as client:
            await client.encode_file(source, body, out)
        assert out.read_bytes()[4:8] == b"ftyp"
    assert moment > 10
    assert len(sandbox.jobs) == moment
    assert {job.status for job in sandbox.jobs} == {"success"}
    assert not [name for name in names_in(tmp_path) if ".part" in name]


async def test_a_job_that_fails_says_why_again_and_again(
    sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    sandbox.fail_jobs("no moov atom")
    for _ in range(2):
        error = await raised_by(client.encode_file(source, NAMED, tmp_path / "out.mp4"))
        assert isinstance(error, JobFailedError)
        assert error.failure_message == "no moov atom"
    assert len(sandbox.jobs) == 1
    assert not (tmp_path / "out.mp4").exists()


async def test_a_job_that_was_canceled_is_not_begun_anew(
    sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    job = await client.create_job(NAMED)
    await client.cancel_job(job.job_id)
    error = await raised_by(client.encode_file(source, NAMED, tmp_path / "out.mp4"))
    assert isinstance(error, JobCanceledError)
    assert asked(sandbox)["putObject"] == 0


@pytest.mark.parametrize("step", ["approveUnified", "confirmJob"])
async def test_a_refusal_that_stands_is_raised_at_once(
    step: str, sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    sandbox.faults.status(step, 400, times=None, body={"code": "probe_failed", "message": "no video"})
    error = await raised_by(client.encode_file(source, WANTED, tmp_path / "out.mp4"))
    assert isinstance(error, InvalidRequestError)
    assert error.code == "probe_failed"
    assert asked(sandbox)[step] == 1


async def test_a_confirmation_that_never_gets_an_answer_ends(sandbox: Sandbox, source: Path, tmp_path: Path) -> None:
    sandbox.faults.reset("confirmJob", times=None)
    async with sandbox.client(clock=FakeClock(sleepers="hurry"), retry=RetryPolicy(max_attempts=3)) as client:
        error = await raised_by(client.encode_file(source, WANTED, tmp_path / "out.mp4"))
    assert "confirmJob may or may not have happened" in str(error)
    assert asked(sandbox)["confirmJob"] == 3


@pytest.mark.parametrize("extra", [{"sourceUrl": "https://a.test/b"}, {"sourceS3": {"bucket": "b"}}, {"confirm": True}])
async def test_a_request_that_is_for_no_upload_is_refused(
    extra: dict[str, Any], sandbox: Sandbox, client: AsyncClient, source: Path, tmp_path: Path
) -> None:
    error = await raised_by(client.encode_file(source, {**WANTED, **extra}, tmp_path / "out.mp4"))
    assert isinstance(error, ValidationError)
    assert sandbox.requests == []


async def test_a_missing_file_is_said(client: AsyncClient, tmp_path: Path) -> None:
    error = await raised_by(client.encode_file(tmp_path / "none.mp4", WANTED, tmp_path / "out.mp4"))
    assert isinstance(error, TransferError)


# ---- on demand


async def test_a_url_becomes_a_download_url(sandbox: Sandbox, client: AsyncClient, tmp_path: Path) -> None:
    seen: list[Progress] = []
    url = await client.on_demand_encode_and_wait(ON_DEMAND, on_progress=seen.append, operation="holiday")
    await client.download(url, tmp_path / "out.mp4")
    again = await client.on_demand_encode_and_wait(ON_DEMAND, operation="holiday")
    assert again.partition("?")[0] == url.partition("?")[0]
    (job,) = sandbox.jobs
    assert seen[-1] == Progress("encode", 100, 100, job.id)


async def test_an_output_that_goes_elsewhere_has_no_download_url(sandbox: Sandbox, client: AsyncClient) -> None:
    body = {**ON_DEMAND, "outputS3": {"bucket": "b", "key": "k"}}
    error = await raised_by(client.on_demand_encode_and_wait(body))
    assert isinstance(error, ValidationError)
    assert "output_s3" in str(error)
    assert sandbox.requests == []


async def test_a_service_that_is_not_there_is_no_job(nobody: str, tmp_path: Path, source: Path) -> None:
    async with AsyncClient("key", base_url=f"http://{nobody}", retry=RetryPolicy.none()) as client:
        error = await raised_by(client.encode_file(source, WANTED, tmp_path / "out.mp4"))
    assert isinstance(error, TransportError)
