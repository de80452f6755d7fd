"""Thousands of concurrent keyed operations over failing connections: every job is created once, and every id is right.

`CHAOS_SCALE=full` (`nox -s chaos`): 20,000 operations.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import anyio
import httpx
from faults import FAULTS
from proxy import Plan, Request, proxy
from sandbox_process import differences, ledger, serving
from workload import (
    Answer,
    Kind,
    bulk,
    bulk_by_operation,
    by_call,
    by_external_id,
    by_key,
    by_operation,
    folder,
    on_demand,
    operation_of,
)

from convertrilo import AsyncClient, RetryPolicy
from convertrilo.events import AttemptEvent

OPERATIONS = 20_000 if os.environ.get("CHAOS_SCALE") == "full" else 2_000
OPERATIONS_WITHOUT_KEYS = 300
CONNECTIONS = 16
SEED = 3
FAULTY = 0.35
"""The share of requests that meet a fault."""
UNTAKEN = 0.05
"""The share of connections that are reset before they carry a request."""
REPEATED = 0.1
"""The share of operations that two or three tasks carry out concurrently."""
URGENT = RetryPolicy(max_attempts=100, initial_backoff=0.01, max_backoff=0.2, deadline=600, budget=0)
IMPATIENT = httpx.Timeout(None, connect=1.0, read=0.3)


# ---- faults


AGAIN_IN_PROGRESS = 2
"""How many further requests of an operation are told that the first one is in progress."""


class Chaos:
    """Decides from a seed what happens to the nth request of an operation, in whatever order requests arrive."""

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._in_progress: Counter[str] = Counter()

    def __call__(self, request: Request) -> Plan:
        name = operation_of(request.message)
        self._requests[name] += 1
        random = Random(f"{SEED}/{name}/{self._requests[name]}")
        if self._in_progress[name]:
            self._in_progress[name] -= 1
            return FAULTS["in progress"]
        if random.random() >= FAULTY:
            return Plan()
        fault = random.choice(list(FAULTS))
        if fault == "in progress":
            self._in_progress[name] = AGAIN_IN_PROGRESS
        self.struck[fault] += 1
        return FAULTS[fault]

    @staticmethod
    def takes(connection: int) -> bool:
        return Random(f"{SEED}/{connection}").random() >= UNTAKEN


# ---- operations


KINDS: Mapping[Kind, int] = {
    by_external_id: 8,
    by_operation: 3,
    by_key: 2,
    by_call: 2,
    on_demand: 4,
    bulk: 2,
    bulk_by_operation: 1,
    folder: 1,
}
"""The kinds of operations, and their weights."""


@dataclass(frozen=True)
class LogicalOperation:
    """A logical operation, and the number of tasks that carry it out concurrently."""

    name: str
    kind: Kind
    tasks: int


def operations(count: int) -> Iterator[LogicalOperation]:
    random = Random(SEED)
    for number in range(count):
        [kind] = random.choices(list(KINDS), weights=list(KINDS.values()))
        repeated = kind is not by_call and random.random() < REPEATED
        yield LogicalOperation(f"operation-{number}", kind, random.choice((2, 3)) if repeated else 1)


async def carry_out(
    wanted: Iterable[LogicalOperation], state: Path, chaos: Chaos, *, strip_keys: bool = False
) -> tuple[dict[str, set[Answer]], Counter[str]]:
    """Carry out all operations concurrently; return the ids that callers received, and the attempts by outcome."""
    answers: dict[str, set[Answer]] = defaultdict(set)
    outcomes: Counter[str] = Counter()

    def watch(event: AttemptEvent) -> None:
        outcomes[event.outcome] += 1
        if event.outcome == "not_sent":
            connections.open()

    async def carry_out_one(operation: LogicalOperation) -> None:
        answers[operation.name].add(await operation.kind(client, operation.name))

    async with (
        serving(state) as server,
        proxy(server.port, chaos, takes=chaos.takes, strip_keys=strip_keys) as connections,
        AsyncClient(
            server.api_key,
            base_url=connections.url,
            retry=URGENT,
            timeout=IMPATIENT,
            max_connections=CONNECTIONS,
            on_event=watch,
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        for operation in wanted:
            for _ in range(operation.tasks):
                tasks.start_soon(carry_out_one, operation)
    return answers, outcomes


async def test_whatever_happens_on_the_way_every_job_is_made_once_and_every_caller_gets_its_id(tmp_path: Path) -> None:
    chaos = Chaos()
    wanted = list(operations(OPERATIONS))
    answers, outcomes = await carry_out(wanted, tmp_path, chaos)
    assert answers.keys() == {each.name for each in wanted}
    assert differences(answers, await ledger(tmp_path)) == {}
    assert chaos.struck.keys() == FAULTS.keys()
    assert outcomes["not_sent"] > 0


async def test_without_keys_the_same_makes_jobs_twice(tmp_path: Path) -> None:
    wanted = list(operations(OPERATIONS_WITHOUT_KEYS))
    answers, _ = await carry_out(wanted, tmp_path, Chaos(), strip_keys=True)
    made = await ledger(tmp_path)
    assert made.keys() == answers.keys()
    twice = differences(answers, made)
    wanted_by_one = [each.name for each in wanted if each.tasks == 1]
    assert len(twice.keys() & wanted_by_one) > len(wanted_by_one) / 20
