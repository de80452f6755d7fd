"""The sandbox in a process of its own, and the ledger of the jobs that it created."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream
from sandbox_command import COMMAND, LINES, settings_in
from workload import FOLDER, VIDEOS, Answer

from convertrilo.sandbox import Sandbox


@dataclass(frozen=True)
class Server:
    """The address and the API key of a running sandbox."""

    port: int
    api_key: str


@asynccontextmanager
async def serving(state: Path, *options: str) -> AsyncGenerator[Server]:
    """Run a sandbox with its state in a folder and videos in its Google Drive, whose token is in the environment."""
    async with Sandbox(state=state) as sandbox:
        for name in VIDEOS:
            await sandbox.drive.add(FOLDER, name, b"not looked into by the instant encoder")
        token = sandbox.drive.access_token
    command = [*COMMAND, "--port", "0", "--encoder", "instant", "--state", str(state), *options]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        stdout = BufferedByteReceiveStream(process.stdout)
        lines = [await stdout.receive_until(b"\n", 1000) for _ in range(LINES)]
        base_url, api_key = settings_in(b"\n".join(lines).decode())
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DRIVE_TOKEN", token)
                yield Server(int(base_url.rpartition(":")[2]), api_key)
        finally:
            process.terminate()


async def ledger(state: Path) -> dict[str, Answer]:
    """Return the job ids of each logical operation, in order, from the state of a sandbox that has stopped."""
    ids: dict[str, list[str]] = defaultdict(list)
    async with Sandbox(state=state) as sandbox:
        for job in sandbox.jobs:
            assert job.metadata is not None
            ids[job.metadata["operation"]].append(job.id)
    return {name: tuple(each) for name, each in ids.items()}


def differences(
    told: Mapping[str, AbstractSet[Answer]], made: Mapping[str, Answer]
) -> dict[str, tuple[AbstractSet[Answer], Answer]]:
    """Return the operations whose callers received other ids than the ledger has, with both."""
    both = {name: (told.get(name, set[Answer]()), made.get(name, ())) for name in told.keys() | made.keys()}
    return {name: (answers, ids) for name, (answers, ids) in both.items() if answers != {ids}}
