"""Scripts that are killed with SIGKILL when one of their requests has come as far as its plan says, and run again."""

import os
import socket
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream
from proxy import Plan, Proxy, Request, reset, stall
from workload import Answer

LINGER = 0.005
"""Seconds for which a script may go on after an answer: enough to write the journal and to send more."""

PATIENCE = 5.0
"""Seconds after which a script is killed if its connection broke before it could be killed."""

UNANSWERED = (
    Plan(sent=0, answered=None),
    Plan(sent=0.5, answered=None),
    Plan(answered=None),
    Plan(answered=0),
    Plan(answered=0.5),
)
"""How far a request and its answer can have come when the script is killed."""
ANSWERED = Plan()


@dataclass
class Killer:
    """Lets one request come as far as its plan says, and then kills the script that sent it."""

    victim: anyio.abc.Process | None = None
    at: int | None = None
    """The number of that request. None never kills the script."""
    plan: Plan = ANSWERED
    linger: float = 0.0

    def __call__(self, request: Request) -> Plan:
        if self.at is None or request.number < self.at:
            return Plan()
        if request.number == self.at:
            return replace(self.plan, end=self.kill)
        return Plan(sent=0, answered=None, end=self.wait)  # or the script could end before it is killed

    async def wait(self, connections: Proxy, client: socket.socket) -> None:
        """Send nothing until the script is killed. Kill it if its connection broke before that."""
        victim = self.victim
        with anyio.move_on_after(PATIENCE) as waiting:
            await stall(connections, client)
        if waiting.cancelled_caught and victim is not None and victim.returncode is None:
            victim.kill()

    async def kill(self, connections: Proxy, client: socket.socket) -> None:
        await anyio.sleep(self.linger)
        assert self.victim is not None
        self.victim.kill()
        await reset(connections, client)


@dataclass
class KillableScript:
    """A script that can be run any number of times, and what it has printed so far: names, and the ids of each."""

    file: str
    backend: str
    arguments: list[str]
    api_key: str
    killer: Killer
    printed: dict[str, set[Answer]] = field(default_factory=lambda: defaultdict(set), init=False)

    async def run(self, *more: str) -> int:
        """Run the script until it ends or is killed, and return its exit code."""
        command = [sys.executable, self.file, self.backend, *self.arguments, *more]
        path = os.pathsep.join(sys.path)  # for the modules that scripts and tests share
        environment = {**os.environ, "CONVERTRILO_API_KEY": self.api_key, "PYTHONPATH": path}
        async with await anyio.open_process(command, stderr=None, env=environment) as process:
            self.killer.victim = process
            assert process.stdout is not None
            output = "".join([text async for text in TextReceiveStream(process.stdout)])
            code = await process.wait()
        for line in output.splitlines(keepends=True):
            if line.endswith("\n"):  # the last line may be cut off
                name, *ids = line.split()
                self.printed[name].add(tuple(ids))
        return code

    async def run_to_the_end(self, *more: str) -> None:
        self.killer.at = None
        assert await self.run(*more) == 0
