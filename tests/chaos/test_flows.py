"""Flows under faults, kills and cancellation: files are whole, each job is created once, and nothing is left behind.

`CHAOS_SCALE=full` (`nox -s chaos`): every kind of fault at every step, 20 kills of each script, a cancellation at every
await. By default: three kinds of faults, two kills of the script with a journal, and every 13th await.
"""

import os
import signal
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.abc
import flows
import psutil
import pytest
from fake_clock import FakeClock
from faults import FAULTS
from flows import FLOWS, IMPATIENT, JOBS, URGENT, content_of
from killer import ANSWERED, LINGER, UNANSWERED, KillableScript, Killer
from proxy import Plan, Request, proxy
from sandbox_process import Server, serving

from convertrilo import AsyncClient, Journal
from convertrilo._base_client import DEFAULT_TIMEOUT
from convertrilo.sandbox import Sandbox
from convertrilo.sandbox.server import serve_in_thread

FULL = os.environ.get("CHAOS_SCALE") == "full"
SEED = 3
EVERYWHERE = [name for name in FAULTS if name not in ("in progress", "connections refused")]
KINDS = EVERYWHERE if FULL else ["committed, and the answer lost", "stalled", "committed, and 500"]
KILLS = 20 if FULL else 2
REQUESTS = 25
"""About as many requests as the script sends in one run."""
STRIDE = 1 if FULL else 13
AT_ONCE = 6
JOURNALED = {False: "without_journal", True: "with_journal"}


OUTPUT = content_of("output")


def bigger_output(folder: Path) -> None:
    """Replace the instant encoder's output by a bigger file, so that its download can break off halfway."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sample.mp4").write_bytes(OUTPUT)


def left_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} - {"in.mp4", "out.mp4"}


def check(sandbox: Sandbox, folders: dict[str, Path]) -> None:
    """Check that the flows of these names created each of their jobs once, and that every file is whole."""
    jobs = sandbox.jobs
    made = Counter(str((job.metadata or {})["operation"]) for job in jobs)
    assert made == {name: JOBS[name.rpartition("/")[2]] for name in folders}
    assert sandbox._read(lambda tx: tx.rows("SELECT job FROM uploads")) == []
    for job in jobs:
        name = str((job.metadata or {})["operation"])
        folder = folders[name]
        if name.rpartition("/")[2] in ("upload", "upload_chunked"):
            assert (sandbox.folder / "in" / job.id).read_bytes() == content_of(name)
        else:
            assert job.status == "success"
            assert name.endswith("wait_for_jobs") or (folder / "out.mp4").read_bytes() == OUTPUT
        assert left_in(folder) == set()


# ---- a fault at every step


async def strike_every_step(server: Server, flow: str, kind: str, place: Path, done: dict[str, Path]) -> None:
    """Run a flow with a fault at its first request, then with one at its second, and so on to its last."""
    step = 0
    while True:
        step += 1

        def decide(request: Request, step: int = step) -> Plan:
            return FAULTS[kind] if request.number == step else Plan()

        name = f"{kind}/{step}/{flow}"
        folder = place / name.replace("/", " ")
        folder.mkdir()
        timeout = IMPATIENT if "stalled" in kind else DEFAULT_TIMEOUT
        async with (
            proxy(server.port, decide) as connections,
            AsyncClient(
                server.api_key,
                base_url=connections.url,
                retry=URGENT,
                timeout=timeout,
                clock=FakeClock(sleepers="hurry"),
            ) as client,
        ):
            await FLOWS[flow](client, name, folder)
        done[name] = folder
        if len(connections.requests) < step:
            break
    assert step > 2


async def test_a_fault_at_any_step_costs_nothing_but_time(tmp_path: Path, anyio_backend: str) -> None:
    done: dict[str, Path] = {}
    turns = anyio.Semaphore(AT_ONCE)

    async def strike(flow: str, kind: str) -> None:
        async with turns:
            await strike_every_step(server, flow, kind, tmp_path, done)

    bigger_output(tmp_path / "state" / "files")
    async with serving(tmp_path / "state") as server, anyio.create_task_group() as tasks:
        for flow in FLOWS:
            for kind in KINDS:
                tasks.start_soon(strike, flow, kind)
    async with Sandbox(state=tmp_path / "state") as sandbox:
        check(sandbox, done)


# ---- killed


@pytest.mark.parametrize("journaled", [True, False] if FULL else [True], ids=JOURNALED.get)
async def test_flows_killed_and_run_again_come_to_their_end(
    tmp_path: Path, anyio_backend: str, journaled: bool
) -> None:
    random, killer = Random(f"{SEED}/{journaled}"), Killer()
    arguments = [str(tmp_path / "killed"), *([str(tmp_path / "journal.db")] if journaled else [])]
    bigger_output(tmp_path / "state" / "files")
    async with serving(tmp_path / "state") as server, proxy(server.port, killer) as connections:
        script = KillableScript(flows.__file__, anyio_backend, [connections.url, *arguments], server.api_key, killer)
        kills = 0
        while kills < KILLS:
            killer.at = len(connections.requests) + random.randint(1, REQUESTS)
            killer.plan = random.choice((ANSWERED, *UNANSWERED))
            killer.linger = random.uniform(0, LINGER)
            code = await script.run()
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        await script.run_to_the_end()
    async with Sandbox(state=tmp_path / "state") as sandbox:
        check(sandbox, {f"killed/{flow}": tmp_path / "killed" / flow for flow in FLOWS})


# ---- cancelled at every await


class Countdown:
    """Cancels a scope at the nth await of the tasks that it counts."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.scope = anyio.CancelScope()

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


COUNTDOWN: ContextVar[Countdown | None] = ContextVar("COUNTDOWN", default=None)


@types.coroutine
def counted(work: Awaitable[Any], countdown: Countdown) -> Generator[Any, Any, Any]:
    """Await something, and count each time it yields to the event loop."""
    steps = work.__await__()
    resume: Callable[[], Any] = partial(next, steps)
    while True:
        try:
            waits_for = resume()
        except StopIteration as end:
            return end.value
        countdown.tick()
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001  # the work handles it
            resume = partial(steps.throw, error)
        else:
            resume = partial(steps.send, value)


@contextmanager
def counting_child_tasks(group: type[anyio.abc.TaskGroup]) -> Iterator[None]:
    """Count the awaits of child tasks, too."""
    start_soon = group.start_soon

    def start(self: Any, func: Callable[..., Any], *args: Any, name: object = None) -> None:
        countdown = COUNTDOWN.get()

        async def child() -> None:
            if countdown is None:
                await func(*args)
            else:
                await counted(func(*args), countdown)

        start_soon(self, child, name=name or func)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "start_soon", start)
        yield


def sockets_to(port: int) -> int:
    connections = psutil.Process().net_connections("tcp")
    return sum(c.raddr[1] == port for c in connections if c.status == psutil.CONN_ESTABLISHED and c.raddr)


@pytest.mark.parametrize("journaled", [True, False], ids=JOURNALED.get)
@pytest.mark.parametrize("flow", FLOWS)
async def test_cancelled_at_any_await_it_leaves_nothing_and_can_be_run_again(
    flow: str, journaled: bool, tmp_path: Path
) -> None:
    done: dict[str, Path] = {}
    sandbox = Sandbox()

    def client(name: str) -> AsyncClient:
        journal = Journal(tmp_path / f"{name.partition('/')[0]}.db") if journaled else None
        return AsyncClient(
            sandbox.api_key, base_url=url, journal=journal, retry=URGENT, clock=FakeClock(sleepers="hurry")
        )

    async with anyio.create_task_group() as group:
        kind = type(group)
    with serve_in_thread(sandbox) as url:
        bigger_output(sandbox.folder)
        port = int(url.rpartition(":")[2])
        at = Random(f"{SEED}/{flow}").randint(1, STRIDE)
        while True:
            name = f"{at}/{flow}"
            folder = tmp_path / name
            folder.mkdir(parents=True)
            countdown = Countdown(at)
            async with client(name) as first:
                with counting_child_tasks(kind), countdown.scope:
                    COUNTDOWN.set(countdown)
                    await counted(FLOWS[flow](first, name, folder), countdown)
                COUNTDOWN.set(None)
                transport: Any = first._engine.send.__self__  # type: ignore[attr-defined]
                assert (transport.in_flight, transport.waiting) == (0, 0)
            assert sockets_to(port) == 0
            if not countdown.scope.cancelled_caught:
                done[name] = folder
                break
            if not journaled:
                assert sandbox._read(lambda tx: tx.rows("SELECT job FROM uploads")) == []
            async with client(name) as second:
                await FLOWS[flow](second, name, folder)
            done[name] = folder
            at += STRIDE
        assert at > STRIDE
        check(sandbox, done)
