"""The order of jobs, and that a job canceled at any moment leaves nothing behind."""

import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import psutil
import pytest
from loopback import until
from sandbox_help import ON_DEMAND, URL_JOB, client_of

from convertrilo.sandbox import Job, Sandbox, VirtualClock
from convertrilo.sandbox.state import lifecycle

TO_S3 = {**ON_DEMAND, "outputS3": {"bucket": "b-1", "key": "out.mp4"}}


def count(sandbox: Sandbox, status: str) -> int:
    return sum(job.status == status for job in sandbox.jobs)


async def test_so_many_jobs_run_at_once_and_no_more_in_the_order_they_came(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, encode_seconds=10, max_encodes=3) as sandbox, client_of(sandbox) as http:
        for number in range(7):
            await http.post("/jobs", json={**URL_JOB, "externalId": str(number), "confirm": True})
        for done in (0, 3, 6):
            now_running = min(3, 7 - done)
            await until(lambda expected=now_running: count(sandbox, "running") == expected)  # type: ignore[misc]
            for _ in range(20):  # turns in which a fourth job could begin
                await anyio.lowlevel.checkpoint()
            statuses = [job.status for job in sandbox.jobs]
            assert statuses == (["success"] * done + ["running"] * now_running + ["queued"] * 7)[:7]
            clock.advance(10)
        await sandbox.wait_until_idle()
        assert count(sandbox, "success") == 7


async def test_priority_decides_what_is_next_and_age_among_equals(clock: VirtualClock) -> None:
    async with Sandbox(clock=clock, encode_seconds=10, max_encodes=1) as sandbox, client_of(sandbox) as http:
        await http.post("/ondemand/encode", json={**ON_DEMAND, "externalId": "first"})
        await until(lambda: count(sandbox, "running") == 1)
        for name in ("n1", "h1", "n2", "h2"):
            priority = "high" if name.startswith("h") else "normal"
            await http.post("/ondemand/encode", json={**ON_DEMAND, "externalId": name, "priority": priority})
            clock.advance(1)
        started: list[str | None] = []
        for _ in range(5):
            await until(lambda: count(sandbox, "running") == 1)
            (running,) = [job.external_id for job in sandbox.jobs if job.status == "running"]
            started.append(running)
            clock.advance(10)
            await until(lambda was=running: all(j.ended for j in sandbox.jobs if j.external_id == was))  # type: ignore[misc]
        assert started == ["first", "h1", "h2", "n1", "n2"]


class Slow(httpx.AsyncByteStream):
    """A film that arrives in pieces; other tasks run between them."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
            yield b"film"


class Store(httpx.AsyncBaseTransport):
    """Serves a film and accepts an output; either can be made to hang."""

    def __init__(self, film: Path | None = None, *, stops_at: str | None = None) -> None:
        self._film = film
        self._stops_at = stops_at
        self.stopped = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == self._stops_at:
            self.stopped = True
            await anyio.sleep_forever()
        if request.method == "PUT":
            assert isinstance(request.stream, httpx.AsyncByteStream)
            async for _ in request.stream:
                pass
            return httpx.Response(200)
        if self._film is not None:
            return httpx.Response(200, content=await anyio.Path(self._film).read_bytes())
        return httpx.Response(200, headers={"content-length": "16"}, stream=Slow())


def files_of(sandbox: Sandbox) -> list[Path]:
    found = [path for path in sandbox.folder.rglob("*") if not path.is_dir()]
    return [path for path in found if path.name != "sample.mp4" and path.parent.name != "drive"]


@pytest.mark.parametrize("moment", [*range(20), *range(20, 120, 10)])
async def test_a_job_may_be_cancelled_at_any_moment(clock: VirtualClock, moment: int) -> None:
    async with Sandbox(clock=clock, source_transport=Store()) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/ondemand/encode", json=TO_S3)).json()["jobId"]
        for _ in range(moment):
            await anyio.lowlevel.checkpoint()
        released = (await http.delete(f"/ondemand/{job}")).json()["released"]
        await sandbox.wait_until_idle()
        await until(lambda: not files_of(sandbox))
        (ended,) = sandbox.jobs
        assert ended.status == ("canceled" if released else "success")
        assert sandbox.tokens.reserved == 0
        assert sandbox.tokens.available == sandbox.tokens.granted - ended.spent
        assert (ended.spent == 0) == (ended.status == "canceled")


async def test_a_job_may_be_cancelled_while_its_source_is_fetched_to_be_measured(clock: VirtualClock) -> None:
    canceled = anyio.Event()

    async def serve(_request: httpx.Request) -> httpx.Response:
        await canceled.wait()
        return httpx.Response(200, content=b"film")

    transport = httpx.MockTransport(serve)
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
        async with anyio.create_task_group() as measuring:
            measuring.start_soon(http.get, f"/jobs/{job}/probe-duration")
            await anyio.wait_all_tasks_blocked()
            await http.post(f"/jobs/{job}/cancel")
            canceled.set()
        assert files_of(sandbox) == []


async def test_a_job_may_be_cancelled_in_the_moment_in_which_its_output_is_there(
    tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    async with (
        Sandbox(state=tmp_path, clock=clock, encoder="ffmpeg", source_transport=store) as sandbox,
        client_of(sandbox) as http,
    ):

        async def encode(job: Job, _on_progress: object) -> Any:
            output = sandbox._encoder._files.output(job.id)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(b"film")
            sandbox._worker.jobs_changed([sandbox._store.read(lambda tx: lifecycle.cancel(tx, job))])
            return functools.partial(lifecycle.succeed, output_size=4, duration=1.0)

        monkeypatch.setattr(sandbox._encoder, "_encode_with_ffmpeg", encode)
        await http.post("/ondemand/encode", json=ON_DEMAND)
        await sandbox.wait_until_idle()
        await until(lambda: not files_of(sandbox))
        assert [job.status for job in sandbox.jobs] == ["canceled"]
        assert sandbox.tokens.available == sandbox.tokens.granted


@pytest.mark.parametrize("moment", ["GET", "probing", "encoding", "searching", "PUT"])
async def test_a_real_encode_may_be_cancelled_at_any_moment(tiny: Path, clip: Path, moment: str) -> None:
    store = Store(clip if moment in ("encoding", "searching") else tiny, stops_at=moment)
    body: dict[str, Any] = {**TO_S3, "resolution": "480p", "preset": "slow"}
    async with Sandbox(encoder="ffmpeg", source_transport=store) as sandbox, client_of(sandbox) as http:
        reached = {
            "GET": lambda: store.stopped,
            "probing": lambda: bool(list(sandbox.folder.glob("in/????????-*"))),
            "encoding": lambda: bool(list(sandbox.folder.glob("out/.*.encoding/output"))),
            "searching": lambda: bool(list(sandbox.folder.glob("out/.*.encoding/sections.mkv"))),
            "PUT": lambda: store.stopped,
        }[moment]
        if moment == "GET":
            job = (await http.post("/jobs", json={**URL_JOB, "confirm": True})).json()["jobId"]
            await sandbox._store.transaction(lambda tx: tx.run("UPDATE jobs SET kind = 'ondemand'"))
        elif moment == "searching":
            await sandbox.drive.add("in", "clip.mp4", await anyio.Path(clip).read_bytes())
            place = {"folderId": "in", "accessToken": sandbox.drive.access_token}
            vmaf = {"optimize": "vmaf", "sourceGoogleDrive": place, "resolution": "480p"}
            job = (await http.post("/ondemand/ingest/folder", json=vmaf)).json()["jobs"][0]["jobId"]
        else:
            job = (await http.post("/ondemand/encode", json=body)).json()["jobId"]
        await until(reached)
        assert (await http.delete(f"/ondemand/{job}")).json()["released"] > 0
        await sandbox.wait_until_idle()
        await until(lambda: not files_of(sandbox))
        assert [each.status for each in sandbox.jobs] == ["canceled"]
        assert sandbox.tokens.available == sandbox.tokens.granted
        assert psutil.Process().children(recursive=True) == []
