"""The rate limiter: against services that count in every way, a run settles at their limit and is seldom refused."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from fake_clock import START, FakeClock
from fake_service import FakeJob, FakeService, RateLimit
from support import API_KEY, BASE_URL, Script, client_of, limiter_of, ok, problem, raised_by

from convertrilo import AsyncClient, DeadlineExceededError, RateLimitError, RetryPolicy
from convertrilo._http.limiter import RateLimiter
from convertrilo.retry import Allowance, allowance
from convertrilo.sandbox import Rules, Sandbox

LIMIT = 100
STATUS = {"id": "j-1", "status": "running"}
JOB = {"codec": "av1", "resolution": "720p", "fps": 24}


async def flood(clock: FakeClock, send: Callable[[], Any], seconds: float, tasks: int) -> None:
    """Call from many tasks at once, in virtual time."""

    async def work() -> None:
        while True:
            await send()

    async with anyio.create_task_group() as group:
        group.start_soon(clock.run)
        for _ in range(tasks):
            group.start_soon(work)
        await clock.sleep(seconds)
        group.cancel_scope.cancel()


PATIENT = RetryPolicy(deadline=1e6, max_attempts=1000, max_retry_after=1e6, budget=0)


@pytest.mark.parametrize(
    ("kind", "told", "tasks", "least"),
    [
        ("minutes", "headers", 32, 0.95),
        ("minutes", "seconds", 4, 0.9),
        ("minutes", "date", 1, 0.9),
        ("minutes", "nothing", 4, 0.7),
        ("sliding", "seconds", 4, 0.8),
        ("bucket", "seconds", 4, 0.7),
    ],
)
async def test_a_run_settles_at_the_limit_and_is_seldom_refused(kind: str, told: str, tasks: int, least: float) -> None:
    clock = FakeClock(sleepers="wait")
    limit = RateLimit(LIMIT, kind, told, offset=25)
    service = FakeService(clock, {"j-1": FakeJob(1e9)}, limit=limit, answering=lambda: clock.sleep(0.1))
    async with AsyncClient(API_KEY, base_url=BASE_URL, transport=service, clock=clock, retry=PATIENT) as client:
        minutes = 12
        await flood(clock, lambda: client.job_status("j-1"), 60 * minutes, tasks)
    share = limit.refused / (limit.refused + limit.taken)
    assert share < 0.02, f"{share:.2%} of {limit.taken}"
    assert limit.taken > least * LIMIT * minutes


async def test_against_the_sandbox_a_bulk_run_settles_at_the_limit() -> None:
    clock = FakeClock(sleepers="wait")
    async with (
        Sandbox(clock=clock, rules=Rules(requests_per_minute=LIMIT)) as sandbox,
        sandbox.client(clock=clock) as client,
    ):
        results = []
        async with anyio.create_task_group() as group:
            group.start_soon(clock.run)
            jobs = ({**JOB, "externalId": f"job-{number}"} for number in range(800))
            async for result in client.submit_jobs(jobs, batch_size=2, concurrency=8):
                results.append(result)  # noqa: PERF401  # each at its time
            group.cancel_scope.cancel()
        refused = sum(request.status == 429 for request in sandbox.requests)
        assert len(sandbox.jobs) == len(results) == 800
        assert len(sandbox.requests) == 400 + refused
        assert refused / len(sandbox.requests) < 0.02
    assert clock.now - START < 4.5 * 60


async def test_a_service_that_never_refuses_is_never_waited_for() -> None:
    script = Script(ok(STATUS))
    client = client_of(script)
    for _ in range(300):
        await client.job_status("j-1")
    assert script.clock.sleeps == []


def test_after_a_refusal_that_was_no_limit_it_is_as_fast_as_before() -> None:
    limiter, now, waited = RateLimiter(), 0.0, 0.0
    for number in range(6_000):
        while wait := limiter.begin(now):
            now, waited = now + wait, waited + wait
        if number == 400:
            limiter.refused(1.0, now)
        else:
            limiter.taken(None, now)
        limiter.end(now)
        now += 0.01
        if number == 5_000:
            waited = 0.0
    assert waited < 0.5  # of 10 s


def test_after_refusals_from_elsewhere_what_the_headers_allow_is_taken_at_once() -> None:
    limiter = RateLimiter()
    limiter.taken(Allowance(90, 60, 100), 0)
    limiter.wait(100)  # that window is over
    for _ in range(5):
        limiter.refused(None, 100)
    limiter.taken(Allowance(90, 60, 100), 101)
    assert [limiter.begin(102) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("seconds", [86_400.0 * 365, 1e15])
def test_nobody_is_held_back_for_more_than_an_hour(seconds: float) -> None:
    told, refused = RateLimiter(), RateLimiter()
    told.taken(Allowance(0, seconds), 0)
    refused.refused(seconds, 0)
    for limiter in (told, refused):
        assert 0 < limiter.wait(0) <= 3600
        assert limiter.begin(3600) == 0


async def test_all_calls_of_a_client_wait_together() -> None:
    script = Script(ok(STATUS, x_ratelimit_remaining="0", x_ratelimit_reset="30"), ok(STATUS))
    client = client_of(script)
    await client.job_status("j-1")
    await client.with_options(timeout=1).job_status("j-1")
    await client.job_status("j-1")
    assert script.sent[1].at - script.sent[0].at == 30
    assert script.sent[2].at == script.sent[1].at


async def test_no_room_within_the_deadline_is_said_without_waiting() -> None:
    script = Script(ok(STATUS, x_ratelimit_remaining="0", x_ratelimit_reset="300"), ok(STATUS))
    client = client_of(script)
    await client.job_status("j-1")
    error = await raised_by(client.job_status("j-1"))
    assert isinstance(error, DeadlineExceededError)
    assert "rate limit" in error.message
    assert script.attempts == 1
    assert script.clock.sleeps == []


async def test_who_was_refused_and_has_no_room_hears_of_the_refusal() -> None:
    client = client_of(Script(problem(429, "rate_limit_exceeded", headers={"Retry-After": "500"})))
    assert isinstance(await raised_by(client.job_status("j-1")), RateLimitError)


async def test_cancelled_calls_leave_no_turn_taken() -> None:
    clock = FakeClock(sleepers="wait")

    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    client = AsyncClient(API_KEY, base_url=BASE_URL, transport=httpx.MockTransport(never), clock=clock)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(client.job_status, "j-1")
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert limiter_of(client)._in_flight == 0


# ---- headers


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "30"}, Allowance(7, 30, 100)),
        (
            {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "7", "RateLimit-Reset": "30"},
            Allowance(7, 30, 100),
        ),
        ({"x-ratelimit-remaining": "7", "x-ratelimit-reset": "1900000030"}, Allowance(7, 30)),
        ({"x-ratelimit-remaining": "7", "x-ratelimit-reset": "1900000030000"}, Allowance(7, 30)),
        ({"RateLimit": "limit=100, remaining=7, reset=30"}, Allowance(7, 30, 100)),
        ({"RateLimit": '"default";r=7;t=30'}, Allowance(7, 30)),
        ({"RateLimit": '"default";r=7'}, None),
        ({"x-ratelimit-remaining": "7"}, None),
        ({"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "soon"}, None),
        ({}, None),
    ],
)
def test_what_the_headers_say(headers: dict[str, str], said: Allowance | None) -> None:
    assert allowance(httpx.Headers(headers), 1_900_000_000.0) == said


def test_requests_under_way_count_against_what_is_left() -> None:
    limiter = RateLimiter()
    assert limiter.begin(0) == 0
    limiter.taken(Allowance(2, 60, 100), 0)
    limiter.end(0)
    assert [limiter.begin(1) for _ in range(3)] == [0, 0, 59]
    assert limiter.begin(60) == 0
