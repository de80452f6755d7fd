"""The webhook examples receive what a sandbox delivers to them over sockets."""

import re
import sys
from pathlib import Path

import anyio
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
RECEIVERS = ["webhook_receiver.py", "webhook_receiver_fastapi.py", "webhook_receiver_django.py"]


# The examples are programs of their own: on which backend the test runs makes no difference to them.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", RECEIVERS)
async def test_a_receiver_handles_each_event_once_and_refuses_what_is_forged(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "webhook_demo.py"), name]
    with anyio.fail_after(60):
        output = (await anyio.run_process(command, cwd=tmp_path, stderr=None)).stdout.decode()
    assert re.findall(r"^receiver: job\.completed [0-9a-f-]{36} (.*)$", output, re.MULTILINE) == ["success holiday"]
    assert "sandbox: sent job.completed, and was answered 204\n" in output
    assert "the same again is answered 204\n" in output
    assert "signed with another secret it is answered 401\n" in output
    assert list(tmp_path.iterdir()) == []
