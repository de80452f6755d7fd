"""Jobs submitted in bulk under faults and kills: each exactly once in the ledger, and each result says its id.

`CHAOS_SCALE=full` (`nox -s chaos`): 20,000 jobs, killed with -9 thirty times, and 500 jobs that come later.
"""

import os
import signal
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio
import submission
from anyio.streams.text import TextReceiveStream
from faults import FAULTS
from proxy import Plan, proxy
from sandbox_process import Server, differences, ledger, serving
from test_folder import Mayhem, open_again
from test_kill import UNANSWERED, Killer
from workload import Answer

FULL = os.environ.get("CHAOS_SCALE") == "full"
JOBS, BATCH, KILLS, MORE = (20_000, 100, 30, 500) if FULL else (120, 8, 2, 11)
SEED = 3


@dataclass
class Script:
    """The script, which may be run any number of times, and what it has printed so far."""

    backend: str
    server: Server
    url: str
    journal: Path
    killer: Killer
    printed: dict[str, set[Answer]] = field(default_factory=lambda: defaultdict(set))

    async def run(self, numbers: str, batch_size: int = BATCH) -> int:
        command = [sys.executable, submission.__file__, self.backend, self.url]
        command += [str(self.journal), numbers, str(batch_size)]
        environment = {**os.environ, "CONVERTRILO_API_KEY": self.server.api_key}
        async with await anyio.open_process(command, stderr=None, env=environment) as process:
            self.killer.victim = process
            assert process.stdout is not None
            output = "".join([text async for text in TextReceiveStream(process.stdout)])
            code = await process.wait()
        for line in output.splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may be cut off
                name, job_id = line.split()
                self.printed[name].add((job_id,))
        return code


async def test_jobs_submitted_in_bulk_are_made_once_whatever_is_killed(tmp_path: Path, anyio_backend: str) -> None:
    killer = Killer()
    mayhem = Mayhem("submission", FAULTS, killer)
    random = Random(SEED)
    async with (
        serving(tmp_path / "state") as server,
        proxy(server.port, mayhem) as connections,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(open_again, connections)
        script = Script(anyio_backend, server, connections.url, tmp_path / "run.db", killer)
        for _ in range(KILLS):
            killer.at = random.randint(1, JOBS // BATCH // KILLS)  # it has that many still to send
            killer.plan = random.choice((Plan(), *UNANSWERED))
            assert await script.run(f"0-{JOBS - 1}") == -signal.SIGKILL
        killer.at = None
        assert await script.run(f"0-{JOBS - 1}") == 0
        assert script.printed.keys() == {f"job-{number}" for number in range(JOBS)}
        sent = len(mayhem.requests)
        assert (
            await script.run(f"{JOBS}-{JOBS + MORE // 2 - 1},0-{JOBS - 1},{JOBS + MORE // 2}-{JOBS + MORE - 1}", 50)
            == 0
        )
        again = b"".join(request.message for request in mayhem.requests[sent:])
        tasks.cancel_scope.cancel()
    assert len(script.printed) == JOBS + MORE
    assert differences(script.printed, await ledger(tmp_path / "state")) == {}
    assert b'"job-0"' not in again
    assert mayhem.struck
