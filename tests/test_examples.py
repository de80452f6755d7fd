"""The examples run as they are told to, and show what they say."""

import signal
import sys
from pathlib import Path

import anyio
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


def _ids(name: str, output: str) -> list[str]:
    """Return the ids that a run printed behind a name."""
    return [word for line in output.splitlines() if line.startswith(f"{name} ") for word in line.split()[1:]]
