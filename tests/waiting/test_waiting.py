"""Waiting as its user meets it: one job or thousands, in virtual time, whatever the service answers."""

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import httpx
import pytest
from fake_clock import START, FakeClock
from fake_service import FakeJob, FakeService, refusal
from hypothesis import given
from hypothesis import strategies as st
from support import API_KEY, BASE_URL, raised_by, set_jitter

from convertrilo import (
    AsyncClient,
    AuthenticationError,
    ConfigurationError,
    ConvertriloError,
    JobCanceledError,
    JobFailedError,
    NotFoundError,
    OnDemandStatusResponse,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    StatusResponse,
    TransportError,
    ValidationError,
    WaitTimeoutError,
)
from convertrilo.sandbox import Rules, Sandbox
from convertrilo.waiting import JobResult
from convertrilo.waiting.watch import MAX_INTERVAL, interval


@asynccontextmanager
async def serving(
    jobs: dict[str, FakeJob] | None = None, **options: Any
) -> AsyncIterator[tuple[AsyncClient, FakeService, FakeClock]]:
    clock = FakeClock(sleepers="wait")
    service = FakeService(clock, jobs if jobs is not None else {"j-1": FakeJob()})
    client = AsyncClient(API_KEY, base_url=BASE_URL, transport=service, clock=clock, **options)
    set_jitter(client, random.Random(1).random)
    async with client, anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        with anyio.fail_after(60):
            yield client, service, clock
        tasks.cancel_scope.cancel()


def many(count: int, **facts: Any) -> dict[str, FakeJob]:
    return {f"j-{number}": FakeJob(**facts) for number in range(count)}


# ---- how a wait ends


@pytest.mark.parametrize("on_demand", [False, True])
async def test_a_wait_ends_with_the_last_status(on_demand: bool) -> None:
    async with serving({"j-1": FakeJob(on_demand=on_demand)}) as (client, service, clock):
        status = await (client.wait_for_on_demand if on_demand else client.wait_for_job)("j-1")
        assert 10 <= clock.time() - START < 13
    assert isinstance(status, OnDemandStatusResponse if on_demand else StatusResponse)
    assert status.status == "success"
    assert set(service.kinds) == {"on-demand" if on_demand else "single"}


@pytest.mark.parametrize("on_demand", [False, True])
async def test_a_job_that_failed_says_why(on_demand: bool) -> None:
    async with serving({"j-1": FakeJob(ends_as="failed", on_demand=on_demand)}) as (client, _, _):
        error = await raised_by((client.wait_for_on_demand if on_demand else client.wait_for_job)("j-1"))
    assert isinstance(error, JobFailedError)
    assert (error.job_id, error.failure_message) == ("j-1", "no moov atom")
    assert str(error) == "job j-1 failed: no moov atom"


async def test_a_job_that_was_canceled_is_no_success() -> None:
    async with serving({"j-1": FakeJob(ends_as="canceled")}) as (client, _, _):
        error = await raised_by(client.wait_for_job("j-1"))
    assert isinstance(error, JobCanceledError)
    assert error.status.status == "canceled"


async def test_a_status_of_the_future_is_waited_through() -> None:
    async with serving({"j-1": FakeJob(5, ends_as="polishing")}) as (client, _, clock):
        error = await raised_by(client.wait_for_job("j-1", timeout=60))
        assert clock.time() - START == 60
    assert isinstance(error, WaitTimeoutError)
    assert error.status.status == "polishing"


async def test_a_wait_ends_when_its_time_is_up_and_hands_over_the_last_status() -> None:
    async with serving({"j-1": FakeJob(1000)}) as (client, _, clock):
        error = await raised_by(client.wait_for_job("j-1", timeout=7.5))
        assert clock.time() - START == 7.5
    assert isinstance(error, WaitTimeoutError)
    assert isinstance(error, TimeoutError)
    assert error.status.status == "running"
    assert str(error) == "job j-1 is still running after 7.5 seconds"


async def test_time_is_up_even_while_the_service_does_not_answer() -> None:
    async with serving() as (client, service, clock):
        service.answering = anyio.sleep_forever
        error = await raised_by(client.wait_for_job("j-1", timeout=20))
        assert clock.time() - START == 20
    assert isinstance(error, WaitTimeoutError)
    assert error.status is None


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan])
async def test_no_wait_is_unbounded(timeout: float) -> None:
    async with serving() as (client, service, _):
        assert isinstance(await raised_by(client.wait_for_job("j-1", timeout=timeout)), ValidationError)
        with pytest.raises(ValidationError):
            client.wait_for_jobs(["j-1"], timeout=timeout)
    assert service.asked == []


@pytest.mark.parametrize("job_id", ["", "a,b"])
async def test_what_is_no_job_id_is_refused(job_id: str) -> None:
    async with serving() as (client, service, _):
        assert isinstance(await raised_by(client.wait_for_job(job_id)), ValidationError)
    assert service.asked == []


# ---- progress


async def test_progress_is_told_when_there_is_news() -> None:
    seen: list[StatusResponse] = []
    async with serving({"j-1": FakeJob(20, shows_percent=True)}) as (client, _, _):
        await client.wait_for_job("j-1", on_progress=seen.append)
    percents = [each.pct or 0.0 for each in seen]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100
    assert len(percents) > 5


async def test_a_callback_that_fails_ends_its_own_wait_only() -> None:
    def fail(status: StatusResponse) -> None:
        raise LookupError(status.id)

    errors: list[Exception] = []
    done: list[StatusResponse] = []

    async with serving(many(2)) as (client, _, _), anyio.create_task_group() as tasks:

        async def failing() -> None:
            errors.append(await raised_by(client.wait_for_job("j-0", on_progress=fail)))

        async def waiting(job_id: str) -> None:
            done.append(await client.wait_for_job(job_id))

        tasks.start_soon(waiting, "j-1")  # leads
        tasks.start_soon(failing)
        tasks.start_soon(waiting, "j-0")
    assert [type(error) for error in errors] == [LookupError]
    assert sorted(str(each.id) for each in done) == ["j-0", "j-1"]


# ---- many at once


async def test_all_waiters_of_a_client_and_its_views_are_asked_for_together() -> None:
    async with serving(many(250)) as (client, service, _), anyio.create_task_group() as tasks:
        for number in range(250):
            view = client if number % 2 else client.with_options(timeout=7)
            tasks.start_soon(view.wait_for_job, f"j-{number}")
    assert set(service.kinds) == {"bulk"}
    first = [ids for at, _, ids in service.asked if at == 0]
    assert sorted(map(len, first)) == [50, 100, 100]
    assert max(len(ids) for _, _, ids in service.asked) == 100


@pytest.mark.parametrize(("size", "batches"), [(1, {1}), (7, {1, 7}), (1000, {50})])
async def test_as_many_are_asked_for_together_as_the_client_was_told(size: int, batches: set[int]) -> None:
    async with serving(many(50, seconds=0.01), poll_batch_size=size) as (client, service, _):
        results = [each async for each in client.wait_for_jobs(service.jobs)]
    assert {each.error for each in results} == {None}
    assert {len(ids) for at, _, ids in service.asked if at == 0} == batches


async def test_a_batch_of_no_jobs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="poll_batch_size must be at least 1, not 0"):
        AsyncClient(API_KEY, poll_batch_size=0)


async def test_many_who_wait_for_one_job_are_one() -> None:
    async with serving() as (client, service, _), anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(client.wait_for_job, "j-1")
    assert len(service.asked) == len({at for at, _, _ in service.asked})


@pytest.mark.parametrize("leader", [True, False])
async def test_a_waiter_that_is_cancelled_disappears_and_the_others_go_on(leader: bool) -> None:
    done: list[str] = []
    async with serving(many(3)) as (client, service, clock), anyio.create_task_group() as tasks:

        async def wait(job_id: str, scope: anyio.CancelScope) -> None:
            with scope:
                await client.wait_for_job(job_id)
                done.append(job_id)

        scopes = [anyio.CancelScope() for _ in range(3)]
        for number, scope in enumerate(scopes):
            tasks.start_soon(wait, f"j-{number}", scope)
            await clock.settle()
        await clock.sleep(4)
        scopes[0 if leader else 1].cancel()
        gone, at = f"j-{0 if leader else 1}", clock.time() - START
    assert sorted(done) == sorted({"j-0", "j-1", "j-2"} - {gone})
    assert all(gone not in ids for when, _, ids in service.asked if when > at)


async def test_a_leader_that_is_cancelled_in_the_middle_of_a_request_loses_nobodys_answer() -> None:
    asked = anyio.Event()
    async with serving(many(2)) as (client, service, clock), anyio.create_task_group() as tasks:

        async def hang() -> None:
            asked.set()
            await anyio.sleep_forever()

        service.answering = hang
        leader = anyio.CancelScope()

        async def lead() -> None:
            with leader:
                await client.wait_for_job("j-0")

        tasks.start_soon(lead)
        await asked.wait()
        tasks.start_soon(client.wait_for_job, "j-1")
        await clock.settle()
        service.answering = anyio.lowlevel.checkpoint
        leader.cancel()


async def test_nobody_is_asked_for_when_nobody_waits() -> None:
    async with serving({"j-1": FakeJob(1000)}) as (client, service, clock):
        await raised_by(client.wait_for_job("j-1", timeout=5))
        asked = len(service.asked)
        await clock.sleep(100)
        assert len(service.asked) == asked
        await raised_by(client.wait_for_job("j-1", timeout=5))
        assert len(service.asked) > asked


async def test_each_wait_has_its_own_time() -> None:
    ends: dict[float, float] = {}
    async with serving({"j-1": FakeJob(1000)}) as (client, _, clock), anyio.create_task_group() as tasks:

        async def wait(timeout: float) -> None:
            assert isinstance(await raised_by(client.wait_for_job("j-1", timeout=timeout)), WaitTimeoutError)
            ends[timeout] = clock.time() - START

        for timeout in (50, 3, 20):
            tasks.start_soon(wait, timeout)
            await clock.settle()
    assert ends == {3: 3, 20: 20, 50: 50}


@pytest.mark.parametrize("shows_percent", [False, True])
async def test_a_thousand_jobs_cost_a_fiftieth_of_asking_for_each_every_five_seconds(shows_percent: bool) -> None:
    jobs = {f"j-{number}": FakeJob((number + 1) * 0.06, shows_percent=shows_percent) for number in range(1000)}
    late: list[float] = []
    async with serving(jobs) as (client, service, clock):
        async for result in client.wait_for_jobs(jobs):
            late.append(clock.time() - START - jobs[result.job_id].seconds)  # noqa: PERF401  # the clock goes on
    each_every_five_seconds = sum(1 + int(job.seconds // 5) for job in jobs.values())
    assert len(service.asked) * 50 <= each_every_five_seconds
    assert sum(late) / len(late) < 3
    assert max(late) <= MAX_INTERVAL


# ---- wait_for_jobs


async def test_jobs_come_as_they_finish_each_with_what_became_of_it() -> None:
    jobs = {
        "slow": FakeJob(30),
        "quick": FakeJob(1),
        "failed": FakeJob(5, ends_as="failed"),
        "canceled": FakeJob(10, ends_as="canceled"),
        "endless": FakeJob(1e9),
    }
    results: list[JobResult] = []
    async with serving(jobs) as (client, _, clock):
        async for result in client.wait_for_jobs([*jobs, "unknown", "quick"], timeout=60):
            results.append(result)  # noqa: PERF401  # an async iterator, as a user would write it
        assert clock.time() - START == 60
    assert [(each.job_id, type(each.error)) for each in results] == [
        ("unknown", NotFoundError),
        ("quick", type(None)),
        ("failed", JobFailedError),
        ("canceled", JobCanceledError),
        ("slow", type(None)),
        ("endless", WaitTimeoutError),
    ]
    statuses = [None if each.status is None else each.status.status for each in results]
    assert statuses == [None, "success", "failed", "canceled", "success", "running"]


async def test_errors_are_raised_if_that_is_wanted() -> None:
    seen: list[str] = []
    async with serving({"a": FakeJob(1), "b": FakeJob(5, ends_as="failed"), "c": FakeJob(9)}) as (client, _, _):
        results = client.wait_for_jobs(["a", "b", "c"], raise_errors=True)
        seen.append((await anext(results)).job_id)
        assert isinstance(await raised_by(anext(results)), JobFailedError)
        seen.append((await anext(results)).job_id)
        assert await anext(results, None) is None
    assert seen == ["a", "c"]


async def test_waiting_for_no_job_ends_at_once_and_a_string_is_no_list_of_jobs() -> None:
    async with serving() as (client, service, _):
        assert [each async for each in client.wait_for_jobs([])] == []
        with pytest.raises(ValidationError):
            client.wait_for_jobs("j-1")
    assert service.asked == []


async def test_who_leaves_the_loop_waits_for_nothing_any_more() -> None:
    async with serving(many(5)) as (client, service, _):
        async for _ in client.wait_for_jobs(service.jobs):
            break
        service.asked.clear()
        service.jobs["other"] = FakeJob(60)
        await client.wait_for_job("other")
    assert {job_id for _, _, ids in service.asked for job_id in ids} == {"other"}


async def test_a_loop_whose_callback_fails_waits_for_nothing_any_more() -> None:
    def fail(status: StatusResponse) -> None:
        raise LookupError(status.id)

    async with serving(many(5)) as (client, service, _):
        results = client.wait_for_jobs(service.jobs, on_progress=fail)
        assert isinstance(await raised_by(anext(results)), LookupError)
        assert await anext(results, None) is None
        service.asked.clear()
        service.jobs["other"] = FakeJob(60)
        await client.wait_for_job("other")
    assert {job_id for _, _, ids in service.asked for job_id in ids} == {"other"}


async def test_tasks_may_share_out_the_jobs_of_one_loop() -> None:
    done: list[str] = []
    async with serving(many(6)) as (client, service, _), anyio.create_task_group() as tasks:
        results = client.wait_for_jobs(service.jobs)

        async def work() -> None:
            async for each in results:
                done.append(each.job_id)  # noqa: PERF401  # an async iterator, as a user would write it

        for _ in range(3):
            tasks.start_soon(work)
    assert sorted(done) == sorted(service.jobs)


async def test_others_go_on_while_a_loop_is_busy_with_a_job() -> None:
    jobs = {"a": FakeJob(1), "b": FakeJob(2), "other": FakeJob(5)}
    async with serving(jobs) as (client, _, clock), anyio.create_task_group() as tasks:

        async def wait() -> None:
            await client.wait_for_job("other")
            assert clock.time() - START < 10

        tasks.start_soon(wait)
        async for _ in client.wait_for_jobs(["a", "b"]):
            await clock.sleep(100)


# ---- what the service does not like


async def test_a_batch_that_is_too_big_is_halved_for_good() -> None:
    async with serving(many(100)) as (client, service, _):
        service.bulk_status.max_ids = 30
        results = [each async for each in client.wait_for_jobs(service.jobs)]
        refused = [ids for _, _, ids in service.asked if len(ids) > 30]
        assert len(results) == 100
        assert [len(ids) for ids in refused] == [100, 50]
        service.asked.clear()
        async for _ in client.wait_for_jobs(service.jobs):
            pass
        assert max(len(ids) for _, _, ids in service.asked) == 25


async def test_one_bad_id_spoils_no_batch_but_the_first() -> None:
    async with serving(many(100, seconds=30)) as (client, service, _):
        service.bulk_status.bad_ids = {"j-37"}
        del service.jobs["j-37"]
        results = [each async for each in client.wait_for_jobs([*service.jobs, "j-37"])]
        sizes = [len(ids) for _, _, ids in service.asked]
    assert [each.job_id for each in results if each.error] == ["j-37"]
    assert 99 in sizes[1:]  # the size is not to blame, and stays


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
async def test_without_bulk_status_each_job_is_read_alone_and_that_is_remembered(status: int) -> None:
    async with serving(many(20)) as (client, service, _):
        service.bulk_status.status = status
        results = [each async for each in client.wait_for_jobs(service.jobs)]
        assert {each.error for each in results} == {None}
        assert len(results) == 20
        refused = service.kinds["bulk"]
        assert refused <= (1 if status != 400 else 10)
        async for _ in client.wait_for_jobs(service.jobs):
            pass
        assert service.kinds["bulk"] == refused


@pytest.mark.parametrize("known", [True, False])
async def test_on_demand_jobs_go_in_bulk_if_that_knows_them(known: bool) -> None:
    async with serving(many(10, on_demand=True, seconds=30)) as (client, service, _):
        service.bulk_status.knows_on_demand = known
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for job_id in service.jobs:
                    tasks.start_soon(client.wait_for_on_demand, job_id)
            service.began = service.clock.time()
    if known:
        assert service.kinds["on-demand"] == 20  # once each, for what bulk does not tell
    else:
        assert service.kinds["bulk"] == 1


async def test_progress_of_an_on_demand_job_in_bulk_has_its_own_form() -> None:
    seen: list[OnDemandStatusResponse] = []
    jobs = many(2, on_demand=True, shows_percent=True)
    async with serving(jobs) as (client, _, _), anyio.create_task_group() as tasks:
        tasks.start_soon(client.wait_for_on_demand, "j-1")
        status = await client.wait_for_on_demand("j-0", on_progress=seen.append)
    assert {type(each) for each in seen} == {OnDemandStatusResponse}
    assert seen[-1] is status
    assert [each.progress for each in seen] == sorted({each.progress or 0.0 for each in seen})


async def test_an_unknown_job_is_reported_and_not_polled_for_ever() -> None:
    async with serving(many(3)) as (client, service, clock):
        results = {each.job_id: each.error async for each in client.wait_for_jobs([*service.jobs, "x", "y"])}
        assert clock.time() - START < 15
    assert {job_id for job_id, error in results.items() if isinstance(error, NotFoundError)} == {"x", "y"}
    assert sum("x" in ids for _, _, ids in service.asked) == 2  # in bulk, and alone to be sure


PASSING = [
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.ReadTimeout("slow"),
    refusal(408, "oops"),
    refusal(500, "oops"),
    refusal(502, "oops"),
    refusal(503, "oops"),
    refusal(429, "rate_limit_exceeded"),
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("failure", PASSING, ids=str)
async def test_a_read_that_fails_is_no_end(failure: Any, count: int) -> None:
    async with serving(many(count)) as (client, service, _):
        service.faults = [failure] * 5
        results = [each async for each in client.wait_for_jobs(service.jobs)]
    assert [each.error for each in results] == [None] * count


async def test_retry_after_is_waited_for_by_all_and_told_jobs_too() -> None:
    async with serving(many(3)) as (client, service, clock), anyio.create_task_group() as tasks:
        service.faults = [refusal(429, "rate_limit_exceeded", **{"retry-after": "20"})]
        for job_id in service.jobs:
            tasks.start_soon(client.wait_for_job, job_id)
        await clock.settle()
        client.notify("j-1")
    times = [at for at, _, _ in service.asked]
    assert times[0] == 0
    assert times[1] >= 20


async def test_a_pace_that_a_good_answer_asks_for_is_kept() -> None:
    async with serving(many(2, seconds=60)) as (client, service, _):
        service.headers = {"retry-after": "30"}
        async for _ in client.wait_for_jobs(service.jobs):
            pass
    assert [at for at, _, _ in service.asked] == [0, 30, 60]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), TransportError),
        (refusal(503, "down"), ServerError),
        (refusal(429, "rate_limit_exceeded"), RateLimitError),
    ],
)
async def test_a_wait_that_was_never_answered_says_so(failure: Any, kind: type[Exception]) -> None:
    async with serving() as (client, service, clock):
        service.faults = [failure] * 1000
        error = await raised_by(client.wait_for_job("j-1", timeout=300))
        assert clock.time() - START == 300
    assert isinstance(error, WaitTimeoutError)
    assert isinstance(error.__cause__, kind)
    assert "the last attempt to read its status failed" in str(error)
    assert 20 < len(service.asked) < 100


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (403, PermissionDeniedError)])
async def test_an_error_that_stands_reaches_everybody(status: int, kind: type[ConvertriloError]) -> None:
    errors: list[ConvertriloError] = []
    async with serving(many(5)) as (client, service, clock), anyio.create_task_group() as tasks:
        service.faults = [refusal(status, "no") for _ in range(100)]

        async def wait(job_id: str) -> None:
            errors.append(await raised_by(client.wait_for_job(job_id)))

        for job_id in service.jobs:
            tasks.start_soon(wait, job_id)
    assert {type(error) for error in errors} == {kind}
    assert len({id(error) for error in errors}) == 5  # tracebacks do not mix
    assert clock.time() == START


async def test_an_error_of_the_callers_own_token_source_reaches_the_caller() -> None:
    async def get_token() -> str:
        raise LookupError("no vault")

    clock = FakeClock(sleepers="wait")
    async with AsyncClient(
        get_token=get_token, base_url=BASE_URL, transport=FakeService(clock, many(1)), clock=clock
    ) as client:
        assert isinstance(await raised_by(client.wait_for_job("j-0")), LookupError)


async def test_closing_the_client_ends_its_waits() -> None:
    errors: list[Exception] = []
    async with serving(many(3, seconds=1000)) as (client, _, clock), anyio.create_task_group() as tasks:

        async def wait(job_id: str) -> None:
            errors.append(await raised_by(client.wait_for_job(job_id)))

        for number in range(3):
            tasks.start_soon(wait, f"j-{number}")
        await clock.sleep(5)
        await client.aclose()
    assert {type(error) for error in errors} == {ConfigurationError}


# ---- when something has happened


@attrs.frozen
class Event:
    job_id: str | None


@pytest.mark.parametrize("event", ["j-1", Event("j-1")])
async def test_a_notified_wait_ends_at_once_after_one_read(event: Any) -> None:
    ended: list[float] = []
    jobs = {**many(300, seconds=500), "j-1": FakeJob(100)}
    async with serving(jobs) as (client, service, clock), anyio.create_task_group() as tasks:

        async def wait() -> None:
            await client.wait_for_job("j-1")
            ended.append(clock.time() - START)

        async def others() -> None:
            with theirs:
                async for _ in client.wait_for_jobs(set(jobs) - {"j-1"}):
                    pass

        theirs = anyio.CancelScope()
        tasks.start_soon(wait)
        tasks.start_soon(others)
        await clock.sleep(100.01)
        before = len(service.asked)
        client.notify(event)
        await clock.settle()
        assert ended == [pytest.approx(100.01)]
        assert len(service.asked) == before + 1
        theirs.cancel()


@pytest.mark.parametrize("how", ["a read that fails", "a leader that is cancelled"])
async def test_what_was_notified_is_not_forgotten_with(how: str) -> None:
    ended: list[float] = []
    jobs = {"j-1": FakeJob(100), "other": FakeJob(1000)}
    async with serving(jobs) as (client, service, clock), anyio.create_task_group() as tasks:
        leader, asked = anyio.CancelScope(), anyio.Event()

        async def lead() -> None:
            with leader:
                await client.wait_for_job("other")

        async def wait() -> None:
            await client.wait_for_job("j-1")
            ended.append(clock.time() - START)

        async def hang() -> None:
            asked.set()
            await anyio.sleep_forever()

        tasks.start_soon(lead)
        await clock.settle()
        tasks.start_soon(wait)
        await clock.sleep(100.01)
        if how == "a read that fails":
            service.faults = [refusal(503, "down")]
            client.notify("j-1")
        else:
            service.answering = hang
            client.notify("j-1")
            await asked.wait()
            service.answering = anyio.lowlevel.checkpoint
        await clock.sleep(1.1)
        leader.cancel()
    assert ended[0] < 102


@pytest.mark.parametrize("event", ["j-2", Event(None)])
async def test_an_event_of_no_concern_changes_nothing(event: Any) -> None:
    async with serving() as (client, service, clock):
        client.notify(event)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.wait_for_job, "j-1")
            await clock.sleep(1.2)
            asked = len(service.asked)
            client.notify(event)
            await clock.settle()
            assert len(service.asked) == asked


async def test_an_app_with_webhooks_polls_almost_never() -> None:
    async with (
        serving({"a": FakeJob(5), "b": FakeJob(600)}) as (client, service, clock),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.wait_for_job, "a")
        tasks.start_soon(client.wait_for_job, "b")
        await clock.sleep(5)
        client.notify("a")
        await clock.sleep(1)
        service.asked.clear()
    gaps = [later - sooner for (sooner, _, _), (later, _, _) in zip(service.asked, service.asked[1:], strict=False)]
    assert min(gaps[1:]) >= MAX_INTERVAL * 0.7


# ---- how often


@given(age=st.floats(0, 1e6), quiet=st.floats(0, 1e6), left=st.none() | st.floats(0, 1e6), chance=st.floats(0, 1))
def test_intervals_stay_within_their_bounds(age: float, quiet: float, left: float | None, chance: float) -> None:
    assert 0.4 <= interval(age=age, quiet=quiet, left=left, random=lambda: chance) <= 15


@pytest.mark.parametrize(
    ("age", "quiet", "left", "seconds"),
    [
        (0, 0, None, 0.5),  # it may be a short one
        (60, 0, None, 10),  # it takes its time
        (6000, 0, None, 15),
        (60, 0, 2, 2),  # it is nearly done
        (60, 0, 500, 10),
        (60, 12, 0, 6),  # it said so, and is not
    ],
)
def test_intervals_follow_age_and_progress(age: float, quiet: float, left: float | None, seconds: float) -> None:
    assert interval(age=age, quiet=quiet, left=left, random=lambda: 0.0) == pytest.approx(seconds)


# ---- against the sandbox


@pytest.mark.parametrize("rules", [Rules(), Rules(max_bulk_ids=7), Rules(bulk_status_on_demand=True)])
async def test_the_sandboxs_jobs_are_waited_for_whatever_breaks(rules: Rules) -> None:
    clock = FakeClock(sleepers="wait")
    sandbox = Sandbox(clock=clock, seed=3, rules=rules, encode_seconds=30)
    async with sandbox, sandbox.client(clock=clock) as client, anyio.create_task_group() as tasks:
        body = {"codec": "h264", "resolution": "480p", "fps": 30, "sourceUrl": "https://a.test/in.mp4", "confirm": True}
        ids = [(await client.create_job(body)).job_id for _ in range(20)]
        on_demand = [(await client.on_demand_encode({"sourceUrl": "https://a.test/in.mp4"})).job_id for _ in range(3)]
        for name in ("reset", "lose_response", "cut_response", "rate_limit"):
            getattr(sandbox.faults, name)(None, times=5, probability=0.5)
        tasks.start_soon(clock.run)
        async with anyio.create_task_group() as waits:
            for job_id in on_demand:
                waits.start_soon(client.wait_for_on_demand, job_id)
            results = [each async for each in client.wait_for_jobs(ids, timeout=600)]
        tasks.cancel_scope.cancel()
    assert {each.error for each in results} == {None}
    assert sorted(each.job_id for each in results) == sorted(ids)
    assert [each.status.status for each in results if each.status] == ["success"] * 20
