"""Fixtures: an in-process sandbox with a virtual clock and seeded ids, and raw httpx clients for it."""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import imageio_ffmpeg
import pytest
from sandbox_help import client_of

from convertrilo.sandbox import Sandbox, VirtualClock

# Only radosgw checks signatures: `nox -s s3`.
collect_ignore = [] if os.environ.get("OBJECT_STORE") == "radosgw" else ["outside/test_sandbox_s3_signed.py"]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def sandbox(clock: VirtualClock) -> AsyncIterator[Sandbox]:
    async with Sandbox(clock=clock, seed=1) as sandbox:
        yield sandbox


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the account's API key."""
    async with client_of(sandbox) as http:
        yield http


@pytest.fixture
async def bare(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    """A client without credentials."""
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url) as http:
        yield http


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 0.4 seconds, which is encoded quickly."""
    file = tmp_path_factory.mktemp("tiny") / "tiny.mp4"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=5:duration=0.4", "-pix_fmt", "yuv420p")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *picture, str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return file


@pytest.fixture(scope="session")
def clip() -> Path:
    """A clip of 5 seconds, of Big Buck Bunny."""
    return Path(__file__).parents[2] / "examples" / "media" / "big-buck-bunny-5s.mp4"
