"""A sandbox in process, with a virtual clock and seeded ids, and raw httpx to talk to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sandbox_help import client_of

from convertrilo.sandbox import Sandbox, VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def sandbox(clock: VirtualClock) -> AsyncIterator[Sandbox]:
    async with Sandbox(clock=clock, seed=1) as sandbox:
        yield sandbox


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """With the account's API key."""
    async with client_of(sandbox) as http:
        yield http


@pytest.fixture
async def bare(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """Without credentials."""
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url) as http:
        yield http


@pytest.fixture(scope="session")
def clip() -> Path:
    """Five seconds of Big Buck Bunny."""
    return Path(__file__).parents[2] / "examples" / "media" / "big-buck-bunny-5s.mp4"
