"""The examples run as they are told to, and show what they say."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.streams.text import TextReceiveStream

from convertrilo.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "examples"


async def test_the_idempotency_example_killed_and_run_again_prints_the_same_ids(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "idempotency.py"), str(tmp_path)]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        killed = ""
        async for text in TextReceiveStream(process.stdout):
            killed += text
            if "Press Enter" in killed:
                process.kill()
        assert await process.wait() == -signal.SIGKILL

    again, once_more = [(await anyio.run_process(command, input=b"\n", stderr=None)).stdout.decode() for _ in range(2)]

    [job] = _ids("job", killed)
    assert _ids("bulk", killed) == []
    assert _ids("job", again) == _ids("job", once_more) == [job]
    bulk = _ids("bulk", again)
    assert bulk == _ids("bulk", once_more)
    async with Sandbox(state=tmp_path / "sandbox") as sandbox:
        assert [made.id for made in sandbox.jobs] == [job, *bulk]
    assert [text.count("sent ") for text in (killed, again, once_more)] == [1, 1, 0]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the examples choose theirs
async def test_the_folder_example_encodes_what_is_there_and_then_what_is_new(tmp_path: Path) -> None:
    output = await _run("folder_ingest_s3.py", tmp_path / "folder")
    assert re.findall(r"estimate: (\d+) videos", output) == ["3", "2"]
    assert re.findall(r"encoded: (\d+) of (\d+)", output) == [("3", "3"), ("5", "5")]
    first, second = output.split("one video more")
    assert set(_rows(first)) < set(_rows(second))
    assert "the sandbox has made 5 jobs" in second
    assert len((tmp_path / "folder" / "report.csv").read_text().splitlines()) == 1 + 5


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_dask_example_loses_a_worker_and_encodes_every_video_once(tmp_path: Path) -> None:
    output = await _run("dask_ingest.py", tmp_path / "folder")
    assert re.search(r"killed a worker when \d+ jobs were submitted", output)
    assert "encoded: 200 of 200" in output
    assert "the sandbox has made 200 jobs" in output
    assert len((tmp_path / "folder" / "report.jsonl").read_text().splitlines()) == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_url_is_encoded_once_although_an_answer_was_lost(tmp_path: Path) -> None:
    output = await _run("url_to_cdn.py", tmp_path / "out.mp4")
    (first, key), (second, same_key) = re.findall(r"attempt \d: (\w+), key (\S+)", output)
    assert (first, second, key) == ("unclear", "ok", same_key)
    assert "success, 100 %" in output
    assert "the sandbox has made 1 job;" in output
    assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_url_is_encoded_into_a_bucket_and_its_credentials_are_never_shown() -> None:
    command = [sys.executable, str(EXAMPLES / "url_to_s3.py")]
    done = await anyio.run_process(command)
    output, log = done.stdout.decode(), done.stderr.decode()
    assert "the job wrote OnDemandDestination(type='s3', bucket='films', key='out/bunny.mp4')" in output
    assert re.search(r"the job failed: .*NoSuchBucket", output)
    assert int(re.findall(r"films/out/bunny.mp4 has (\d+) bytes", output)[0]) > 10_000
    assert "convertrilo DEBUG onDemandEncode attempt 1: ok" in log
    for secret in ("a-secret-of-the-bucket-1", "AKIAEXAMPLE"):
        assert secret not in output + log


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_drive_folder_is_encoded_once_with_tokens_of_ones_own() -> None:
    lines = (await _run("google_drive_byo_token.py")).splitlines()
    assert sorted(lines[:4]) == ["beach.mp4: success"] * 2 + ["dinner.mp4: success"] * 2
    assert lines[4:6] == [
        "the same jobs again",
        "with a renewed token: idempotency_conflict, and the first call stands",
    ]
    assert [line.split(",")[0] for line in lines[6:8]] == ["in Drive: beach.mp4", "in Drive: dinner.mp4"]
    assert lines[8:] == ["with an expired token: google_drive_not_connected"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_fastapi_app_encodes_hears_of_it_and_shuts_down_in_order() -> None:
    command = [sys.executable, str(EXAMPLES / "fastapi_app.py")]
    environment = {**os.environ, "PORT": "0"}
    async with (
        await anyio.open_process(command, env=environment, stderr=subprocess.STDOUT) as process,
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        assert process.stdout is not None
        printed = ""
        with anyio.fail_after(60):
            while not (found := re.search(r"running on (\S+)", printed)):
                printed += (await process.stdout.receive()).decode()
        url = found[1]
        health = await http.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        made = [await http.post(f"{url}/encodes", params={"url": "https://example.com/in.mp4"}) for _ in range(2)]
        assert [each.status_code for each in made] == [202, 202]
        job = made[0].json()["id"]
        assert made[1].json()["id"] == job, "the same URL again is the same job"
        done = (await http.get(f"{url}/encodes/{job}", params={"wait": 60})).json()
        assert (done["status"], done["progress"]) == ("success", 100)
        assert (await http.get(f"{url}/encodes/no-such-job")).status_code == 404
        assert (await http.post(f"{url}/encodes", params={"url": "no URL"})).status_code == 422
        process.terminate()
        with anyio.fail_after(60):
            async for text in TextReceiveStream(process.stdout):
                printed += text
        assert await process.wait() in (0, -signal.SIGTERM)
    assert f"job.completed {job} success" in printed
    assert "closed\n" in printed
    assert "Traceback" not in printed


async def _run(name: str, *arguments: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return (await anyio.run_process(command, stderr=None)).stdout.decode()


def _rows(output: str) -> list[str]:
    """Return the rows of a report that a run printed."""
    return [line for line in output.splitlines() if line.startswith("  success ")]


def _ids(name: str, output: str) -> list[str]:
    """Return the ids that a run printed behind a name."""
    return [word for line in output.splitlines() if line.startswith(f"{name} ") for word in line.split()[1:]]
