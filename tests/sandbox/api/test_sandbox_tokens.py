"""The account's books."""

from typing import Any

import httpx
import pytest
from sandbox_help import JOB, URL_JOB, client_of

from convertrilo.sandbox import Sandbox, VirtualClock


def books(sandbox: Sandbox) -> tuple[int, int, int]:
    tokens = sandbox.tokens
    assert tokens.available + tokens.reserved + tokens.spent == tokens.granted
    return tokens.available, tokens.reserved, tokens.spent


@pytest.fixture
def grant() -> int:
    return 100


@pytest.mark.parametrize(
    ("settings", "price"),
    [
        ({}, 2),
        ({"resolution": "480p"}, 1),
        ({"codec": "av1"}, 3),
        ({"codec": "h265", "resolution": "2160p"}, 8),
        ({"fps": 60}, 3),
        ({"passes": 2}, 3),
    ],
)
async def test_an_estimate_follows_what_is_asked_for(
    http: httpx.AsyncClient, settings: dict[str, Any], price: int
) -> None:
    assert (await http.post("/jobs", json={**JOB, **settings})).json()["estimate"]["neu"] == price


@pytest.mark.parametrize(("priority", "multiplier", "price"), [("normal", 1.5, 3), ("high", 2, 4)])
async def test_on_demand_costs_more(http: httpx.AsyncClient, priority: str, multiplier: float, price: int) -> None:
    body = {"sourceUrl": "https://a.example/b.mp4", "priority": priority}
    pricing = (await http.post("/ondemand/encode", json=body)).json()["pricing"]
    assert (pricing["multiplier"], pricing["totalNeu"]) == (multiplier, price)


async def test_the_books_follow_a_job(clock: VirtualClock, grant: int) -> None:
    async with Sandbox(clock=clock, tokens=grant) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
        assert books(sandbox) == (100, 0, 0)
        await http.post(f"/jobs/{job}/approve-unified", json={"resolution": "2160p"})
        assert books(sandbox) == (95, 5, 0)
        await http.post(f"/jobs/{job}/approve-unified", json={"resolution": "1080p"})
        assert books(sandbox) == (98, 2, 0)
        await http.post(f"/jobs/{job}/confirm")
        await sandbox.wait_until_idle()
        assert books(sandbox) == (98, 0, 2)
        answer = (await http.get("/tokens/balance")).json()
        assert (answer["available"], answer["reserved"]) == (98, 0)


async def test_direct_bookings_move_tokens_of_a_job(clock: VirtualClock, grant: int) -> None:
    async with Sandbox(clock=clock, tokens=grant) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]

        async def book(what: str, amount: int) -> httpx.Response:
            return await http.post(f"/tokens/{what}", json={"jobId": job, "amount": amount})

        assert (await book("reserve", 10)).status_code == 200
        assert books(sandbox) == (90, 10, 0)
        assert (await book("release", 4)).status_code == 200
        assert books(sandbox) == (94, 6, 0)
        assert (await book("deduct", 8)).status_code == 200
        assert books(sandbox) == (92, 0, 8)
        assert (await book("release", 1)).json()["code"] == "invalid_request"
        poor = await book("reserve", 93)
        assert (poor.status_code, poor.json()["required"], poor.json()["available"]) == (402, 93, 92)
        await book("reserve", 50)
        await http.post(f"/jobs/{job}/cancel")
        assert books(sandbox) == (92, 0, 8)
        assert (await book("reserve", 1)).json()["code"] == "invalid_request"


async def test_reserved_tokens_beyond_the_price_come_back_at_the_end(clock: VirtualClock, grant: int) -> None:
    async with Sandbox(clock=clock, tokens=grant) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
        await http.post(f"/jobs/{job}/approve-unified")
        await http.post("/tokens/reserve", json={"jobId": job, "amount": 50})
        await http.post(f"/jobs/{job}/confirm")
        await sandbox.wait_until_idle()
        assert books(sandbox) == (98, 0, 2)


@pytest.mark.parametrize("step", ["approve-unified", "confirm"])
async def test_too_few_tokens_leave_everything_as_it_was(clock: VirtualClock, step: str) -> None:
    async with Sandbox(clock=clock, tokens=1) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
        answer = await http.post(f"/jobs/{job}/{step}", json={"container": "mkv"})
        assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_tokens")
        assert books(sandbox) == (1, 0, 0)
        assert (sandbox.jobs[0].status, sandbox.jobs[0].settings["container"]) == ("created", "mp4")
