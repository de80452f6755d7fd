"""State survives a kill, a Ctrl-C and an exit in the middle of work; two sandboxes never share it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import psutil
import pytest
from loopback import until
from sandbox_command import COMMAND, LINES, settings_in
from sandbox_help import JOB, URL_JOB, client_of

from convertrilo.sandbox import Sandbox, VirtualClock

SLOW = {"codec": "h264", "resolution": "480p", "fps": 25, "preset": "slow"}
QUICK = {"codec": "h264", "resolution": "480p", "fps": 5}


@attrs.frozen
class Server:
    """A sandbox in its own process."""

    process: subprocess.Popen[str]
    http: httpx.Client
    api_key: str

    def upload(self, source: Path, body: dict[str, Any]) -> str:
        """Create a job, upload its source, confirm it, and return its id."""
        created = self.http.post("/jobs", json=body).json()
        assert httpx.put(created["upload"]["url"], content=source.read_bytes(), timeout=60).is_success
        assert self.http.post(f"/jobs/{created['jobId']}/confirm").is_success
        return str(created["jobId"])

    def status(self, job: str) -> str:
        return str(self.http.get(f"/jobs/{job}/status").json()["status"])


@contextmanager
def server(state: Path, encoder: str = "instant", *arguments: str) -> Iterator[Server]:
    command = [*COMMAND, "--port", "0", "--encoder", encoder, "--state", str(state), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url, api_key = settings_in("".join(process.stdout.readline() for _ in range(LINES)))
            with httpx.Client(base_url=base_url, headers={"x-api-key": api_key}, timeout=60) as http:
                yield Server(process, http, api_key)
        finally:
            process.kill()


def soon(condition: Callable[[], bool]) -> None:
    """Poll another process until a condition holds."""
    ends_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def encoders(state: Path) -> list[int]:
    """Return the ffmpeg processes that work in the state folder, whatever their parent."""
    found: list[int] = []
    for process in psutil.process_iter(["name"]):
        try:
            if "ffmpeg" in process.name() and Path(process.cwd()).is_relative_to(state):
                found.append(process.pid)
        except psutil.Error:
            continue  # ended, or of another user
    return found


def files(state: Path, pattern: str) -> list[Path]:
    return list((state / "files").glob(pattern))


def test_after_kill_9_keys_replay_and_what_was_queued_or_running_is_encoded(
    clip: Path, tiny: Path, tmp_path: Path
) -> None:
    state, keyed = tmp_path / "state", {"idempotency-key": "k"}
    with server(state, "ffmpeg", "--max-encodes", "1") as first:
        created = first.http.post("/jobs", json=JOB, headers=keyed)
        running, queued = first.upload(clip, SLOW), first.upload(tiny, QUICK)
        soon(lambda: bool(encoders(state)) and bool(files(state, "out/.*.encoding/output")))
        assert [first.status(job) for job in (running, queued)] == ["running", "queued"]
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    orphans = encoders(state)
    left = files(state, "out/.*.encoding")
    (state / "files/in/of-no-job").touch()
    with server(state, "ffmpeg", "--max-encodes", "1") as second:
        assert second.api_key == first.api_key
        assert second.http.post("/jobs", json=JOB, headers=keyed).content == created.content
        assert not [folder for folder in left if folder.exists()]
        assert not set(orphans) & set(encoders(state))
        assert not files(state, "in/of-no-job")
        soon(lambda: bool(encoders(state)))
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(60) == 0
    assert encoders(state) == []
    assert files(state, "out/*") + files(state, "out/.*") == []
    with server(state, "ffmpeg") as third:
        soon(lambda: third.status(queued) == "success")
        soon(lambda: third.status(running) == "success")
        balance = third.http.get("/tokens/balance").json()
        assert (balance["reserved"], balance["available"]) == (0, 1_000_000 - 1 - 1)
    assert len(files(state, "out/*")) == 2
    assert files(state, "in/*") == []


def test_a_second_server_on_the_same_state_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with server(tmp_path) as first:
        command = [*COMMAND, "--port", "0", "--state", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode != 0
        assert "the state is in use" in second.stderr
        assert first.http.post("/jobs", json=URL_JOB).is_success


async def test_a_state_is_used_by_one_sandbox_at_a_time_in_one_process_too(tmp_path: Path) -> None:
    async with Sandbox(state=tmp_path) as sandbox:
        with pytest.raises(RuntimeError, match="the state is in use"):
            async with Sandbox(state=tmp_path):
                pass
        assert sandbox.jobs == []
    async with Sandbox(state=tmp_path):
        pass


async def test_what_a_crash_interrupted_is_cleared_away(tmp_path: Path, clock: VirtualClock) -> None:
    async with Sandbox(state=tmp_path, clock=clock, seed=1, encode_seconds=10) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", json={**URL_JOB, "confirm": True})
        await until(lambda: sandbox.jobs[0].status == "running")
        # A key as a crash in the middle of a request leaves it: claimed, without a response.
        await sandbox._store.transaction(
            lambda tx: tx.run(
                "INSERT INTO answers VALUES (?, 'k', 'createJob', x'00', 0, NULL, NULL)", sandbox.account_id
            )
        )
        assert (await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})).status_code == 409
    async with Sandbox(state=tmp_path, clock=clock, seed=1) as sandbox, client_of(sandbox) as http:
        await sandbox.wait_until_idle()
        assert [job.status for job in sandbox.jobs] == ["success"]
        assert (await http.post("/jobs", json=JOB, headers={"idempotency-key": "k"})).status_code == 200
        assert len({job.id for job in sandbox.jobs}) == 2
        assert sandbox.tokens.spent == 2


async def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    async with Sandbox(state=tmp_path) as sandbox:
        sandbox._store._db.execute("PRAGMA user_version = 99")
    with pytest.raises(RuntimeError, match="schema 99"):
        async with Sandbox(state=tmp_path):
            pass


async def test_a_state_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sandbox.db").write_bytes(b"no database " * 100)
    with pytest.raises(RuntimeError, match="the state cannot be read"):
        async with Sandbox(state=tmp_path):
            pass
