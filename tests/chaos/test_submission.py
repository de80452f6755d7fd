"""Bulk submission under faults and kills: each job is in the ledger exactly once, and each result has its id.

`CHAOS_SCALE=full` (`nox -s chaos`): 20,000 jobs, 30 kills, and 500 jobs that are added later.
"""

import os
import signal
from pathlib import Path
from random import Random

import anyio
import submission
from faults import FAULTS
from killer import UNANSWERED, KillableScript, Killer
from proxy import Plan, proxy
from sandbox_process import differences, ledger, serving
from test_folder import Mayhem, open_again

FULL = os.environ.get("CHAOS_SCALE") == "full"
JOBS, BATCH, KILLS, MORE = (20_000, 100, 30, 500) if FULL else (120, 8, 2, 11)
SEED = 3


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
        arguments = [connections.url, str(tmp_path / "run.db")]
        script = KillableScript(submission.__file__, anyio_backend, arguments, server.api_key, killer)
        for _ in range(KILLS):
            killer.at = random.randint(1, JOBS // BATCH // KILLS)  # a run has that many requests left to send
            killer.plan = random.choice((Plan(), *UNANSWERED))
            assert await script.run(f"0-{JOBS - 1}", str(BATCH)) == -signal.SIGKILL
        await script.run_to_the_end(f"0-{JOBS - 1}", str(BATCH))
        assert script.printed.keys() == {f"job-{number}" for number in range(JOBS)}
        sent = len(mayhem.requests)
        half = JOBS + MORE // 2
        await script.run_to_the_end(f"{JOBS}-{half - 1},0-{JOBS - 1},{half}-{JOBS + MORE - 1}", "50")
        again = b"".join(request.message for request in mayhem.requests[sent:])
        tasks.cancel_scope.cancel()
    assert len(script.printed) == JOBS + MORE
    assert differences(script.printed, await ledger(tmp_path / "state")) == {}
    assert b'"job-0"' not in again
    assert mayhem.struck
