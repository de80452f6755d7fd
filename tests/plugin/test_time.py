"""The clock of `convertrilo_client` moves when every task waits, and not before."""

import anyio
import anyio.to_thread
import httpx
import pytest

from convertrilo._pytest_fixtures import client_of
from convertrilo.sandbox import Sandbox, VirtualClock

SOURCE = {"sourceUrl": "https://media.example/holiday.mov"}


@pytest.mark.parametrize("hook", [200, 500])
async def test_time_stands_still_while_a_source_is_fetched(hook: int) -> None:
    fetched = 0

    async def serve(request: httpx.Request) -> httpx.Response:
        nonlocal fetched
        for _ in range(50):  # real time, in threads that the event loop does not see
            await anyio.to_thread.run_sync(lambda: None)
        fetched += 1
        return httpx.Response(200, headers={"content-type": "video/mp4"}, content=b"film")

    clock = VirtualClock()
    hooks = httpx.MockTransport(lambda _: httpx.Response(hook))  # a failed delivery is retried after a minute
    async with Sandbox(
        clock=clock, seed=0, source_transport=httpx.MockTransport(serve), webhook_transport=hooks
    ) as sandbox:
        client = client_of(sandbox)
        await client.create_webhook({"url": "https://app.example/hook", "events": ["job.created", "job.queued"]})
        job = await client.on_demand_encode(SOURCE)
        began = clock.time()
        assert (await client.wait_for_on_demand(job.job_id, timeout=60)).status == "success"
        assert clock.time() - began < 1  # one wait between two polls
    assert fetched == 2  # once to estimate its duration, once to encode it


async def test_a_source_may_wait_for_the_clock_itself() -> None:
    clock = VirtualClock()

    async def serve(request: httpx.Request) -> httpx.Response:
        if clock.time() > VirtualClock().time():
            await clock.sleep(3)
        return httpx.Response(200, headers={"content-type": "video/mp4"}, content=b"film")

    async with Sandbox(clock=clock, seed=0, source_transport=httpx.MockTransport(serve)) as sandbox:
        client = client_of(sandbox)
        job = await client.on_demand_encode(SOURCE)
        clock.advance(1)
        with anyio.fail_after(60):
            assert (await client.wait_for_on_demand(job.job_id, timeout=60)).status == "success"
