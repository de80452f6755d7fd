"""The sandbox on a port: real encodes, and no processes, files, threads or ports left behind."""

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from loopback import until
from sandbox_help import JOB, URL_JOB, client_of
from support import encoders_of

from convertrilo.sandbox import Sandbox, VirtualClock, serve, serve_in_thread
from convertrilo.sandbox.encoding.probe import probe

WORKERS = ("AnyIO worker thread", "Trio thread")
"""Name prefixes of threads that the event loop keeps for reuse."""


async def ended(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """Poll a status over the port until the job has ended."""
    seen: list[float] = []
    with anyio.fail_after(60):
        while True:
            status: dict[str, Any] = (await http.get(path)).json()
            if status["status"] in ("success", "failed", "canceled"):
                assert seen == sorted(seen)
                return status
            seen.append(status["pct"])
            await anyio.sleep(0.05)  # a client has no event to wait for


async def test_a_real_video_is_uploaded_encoded_and_downloaded_over_a_port(clip: Path, tmp_path: Path) -> None:
    sandbox = Sandbox(encoder="ffmpeg")
    with serve_in_thread(sandbox) as base_url:
        async with (
            httpx.AsyncClient(base_url=base_url, headers={"x-api-key": sandbox.api_key}, timeout=60) as http,
            httpx.AsyncClient(timeout=60) as bare,
        ):
            created = (await http.post("/jobs", json={**JOB, "resolution": "480p", "fps": 12, "codec": "h264"})).json()
            job = created["jobId"]
            assert (await bare.put(created["upload"]["url"], content=await anyio.Path(clip).read_bytes())).is_success
            assert (await http.get(f"/jobs/{job}/probe-duration")).json()["durationSec"] == pytest.approx(5.3, abs=0.1)
            assert (await http.post(f"/jobs/{job}/approve-unified")).json()["estimate"]["reserved"] == 1
            await http.post(f"/jobs/{job}/confirm")
            status = await ended(http, f"/jobs/{job}/status")
            assert (status["status"], status["encoder"]) == ("success", "libx264")
            output = tmp_path / "out.mp4"
            await anyio.Path(output).write_bytes((await bare.get(status["downloadUrl"])).content)
        assert sandbox.tokens.spent == 1
    info = await probe(output)
    assert (info.codec, info.height, info.fps) == ("h264", 480, 12)
    assert info.duration == pytest.approx(5.3, abs=0.2)
    assert not sandbox.folder.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"I am a text, and no film at all.\n" * 100, "not a video"),
        (b"hello", "not a video"),
        (None, "truncated"),
        (b"", "empty"),
    ],
    ids=["text", "hello", "truncated", "empty"],
)
async def test_a_source_that_is_no_video_fails_with_a_reason(clip: Path, content: bytes | None, message: str) -> None:
    if content is None:
        content = (await anyio.Path(clip).read_bytes())[:300_000]
    async with Sandbox(encoder="ffmpeg") as sandbox, client_of(sandbox) as http:
        async with client_of(sandbox, accept="*/*") as bare:
            created = (await http.post("/jobs", json=JOB)).json()
            await bare.put(created["upload"]["url"], content=content)
        await http.post(f"/jobs/{created['jobId']}/confirm")
        await sandbox.wait_until_idle()
        status = (await http.get(f"/jobs/{created['jobId']}/status")).json()
        assert status["status"] == "failed"
        assert re.search(message, status["failureMessage"])
        assert str(sandbox.folder) not in status["failureMessage"]
        assert sandbox.tokens.reserved == sandbox.tokens.spent == 0


def listening() -> set[int]:
    """Return the ports on which this process listens; another process may have taken a port that was closed."""
    sockets = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}


def ffmpegs() -> set[int]:
    return encoders_of(os.getpid())


async def slow_job(http: httpx.AsyncClient, sandbox: Sandbox) -> str:
    """Start a long encode, and wait until ffmpeg runs."""
    body = {"sourceUrl": "https://media.example/clip.mp4", "resolution": "1080p", "codec": "av1", "preset": "slow"}
    job: str = (await http.post("/ondemand/encode", json=body)).json()["jobId"]
    await until(lambda: bool(ffmpegs()) and bool(list(sandbox.folder.glob("out/.*.encoding"))))
    return job


def serving(clip: Path) -> httpx.MockTransport:
    content = clip.read_bytes()
    return httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-type": "video/mp4"}, content=content))


async def test_cancelling_a_running_encode_ends_ffmpeg_and_releases_the_tokens(clip: Path) -> None:
    async with Sandbox(encoder="ffmpeg", source_transport=serving(clip)) as sandbox, client_of(sandbox) as http:
        job = await slow_job(http, sandbox)
        released = (await http.delete(f"/ondemand/{job}")).json()["released"]
        assert released > 0
        await until(lambda: not ffmpegs())
        await sandbox.wait_until_idle()
        status = (await http.get(f"/ondemand/status/{job}")).json()
        assert (status["status"], status["downloadUrl"]) == ("canceled", None)
        assert sandbox.tokens.available == sandbox.tokens.granted
        await until(lambda: not [path for path in sandbox.folder.rglob("*") if path.is_file()])


async def test_leaving_ends_ffmpeg_and_removes_the_files(clip: Path) -> None:
    before = set(threading.enumerate())
    async with Sandbox(encoder="ffmpeg", source_transport=serving(clip)) as sandbox, client_of(sandbox) as http:
        await slow_job(http, sandbox)
        folder = sandbox.folder
    assert not ffmpegs()
    assert not folder.exists()
    # asyncio's thread that waits for a process may end a moment after it has reported the end.
    await until(lambda: all(each.name.startswith(WORKERS) for each in set(threading.enumerate()) - before))


async def test_an_instant_sandbox_in_memory_starts_no_thread(clock: VirtualClock) -> None:
    before = threading.active_count()
    async with Sandbox(clock=clock) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", json={**URL_JOB, "confirm": True})
        await sandbox.wait_until_idle()
        assert threading.active_count() <= before


# ---- serving


async def test_serving_in_this_loop_is_for_asyncio(anyio_backend_name: str) -> None:
    async with Sandbox() as sandbox:
        if anyio_backend_name == "trio":
            with pytest.raises(RuntimeError, match="serve_in_thread"):
                async with serve(sandbox):
                    pass
            return
        async with serve(sandbox) as base_url, httpx.AsyncClient(base_url=base_url, timeout=60) as http:
            created = (await http.post("/jobs", json=JOB, headers={"x-api-key": sandbox.api_key})).json()
            assert created["upload"]["url"].startswith(base_url)
            assert httpx.URL(base_url).port in listening()
        assert httpx.URL(base_url).port not in listening()
        with pytest.raises(KeyError):
            async with serve(sandbox):
                raise KeyError("mine")


def test_serving_in_a_thread_needs_no_event_loop_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as base_url:
        httpx.post(f"{base_url}/jobs", json=URL_JOB, headers={"x-api-key": sandbox.api_key}, timeout=60)
        assert [job.kind for job in sandbox.jobs] == ["url"]
    assert set(threading.enumerate()) <= before  # idle threads of other tests may end meanwhile


def test_a_request_that_is_open_at_the_end_breaks_and_no_traceback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    sandbox = Sandbox()
    sandbox.faults.stall("getBalance")
    with ThreadPoolExecutor(1) as client:
        with serve_in_thread(sandbox) as base_url:
            url, headers = f"{base_url}/tokens/balance", {"x-api-key": sandbox.api_key}
            asked = client.submit(httpx.get, url, headers=headers, timeout=60)
            while not sandbox.requests:
                assert not wait([asked], 0.001).done
        assert isinstance(asked.exception(60), httpx.TransportError)
    assert not [record for record in caplog.records if record.exc_info]
