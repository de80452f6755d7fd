"""The examples run as they are told to, and show what they say."""

import re
import signal
import sys
from pathlib import Path

import anyio
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


async def _run(name: str, *arguments: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return (await anyio.run_process(command, stderr=None)).stdout.decode()


def _rows(output: str) -> list[str]:
    """Return the rows of a report that a run printed."""
    return [line for line in output.splitlines() if line.startswith("  success ")]


def _ids(name: str, output: str) -> list[str]:
    """Return the ids that a run printed behind a name."""
    return [word for line in output.splitlines() if line.startswith(f"{name} ") for word in line.split()[1:]]
