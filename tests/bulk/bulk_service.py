"""A model of the service for bulk submission: its keys, its ledger, its limits, and the faults on the way to it."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import anyio.lowlevel
import attrs
import httpx

from convertrilo.journal import Journal

BEFORE: Mapping[str, Exception | httpx.Response] = {
    "no connection": httpx.ConnectError("refused"),
    "request lost": httpx.ReadError("reset"),
    "failing": httpx.Response(500),
    "too many requests": httpx.Response(429, json={"code": "rate_limit_exceeded", "message": "no"}),
    "in progress": httpx.Response(409, json={"code": "idempotency_in_progress", "message": "wait"}),
    "no tokens": httpx.Response(402, json={"code": "insufficient_tokens", "message": "no"}),
    "too large for a gateway": httpx.Response(413, html="<html>"),
}
"""What can happen before the service has looked at a request."""
AFTER: Mapping[str, Exception | httpx.Response] = {
    "answer lost": httpx.ReadError("reset"),
    "bad gateway": httpx.Response(502, html="<html>"),
    "web page": httpx.Response(200, html="<html>"),
}
"""What can happen when the service has done it."""
CRASHES = ("crash before", "crash after", "crash with the answer")
FAULTS = (*BEFORE, *AFTER, *CRASHES)


class CrashError(BaseException):
    """The process dies here: nothing that comes later is done."""


class MortalJournal(Journal):
    """The journal of a process that can die, after which it writes nothing more."""

    dead = False

    async def answer(self, key: str, answer: bytes) -> None:
        self._check()
        await super().answer(key, answer)

    async def do(self, work: Any, consequence: str = "") -> Any:
        self._check()
        return await super().do(work, consequence)

    def _check(self) -> None:
        if self.dead:
            raise CrashError


@attrs.define
class Service:
    """Does what the contract says, and remembers all of it."""

    most_jobs: int = 1000
    most_bytes: int = 1 << 30
    refused: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """The errors of jobs, by their external ids."""
    refusals: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """How often each of those is refused; by default always."""
    poison: frozenset[str] = frozenset()
    """Jobs for which the whole request is refused."""
    faults: list[str] = attrs.field(factory=list[str])
    """What happens to the next requests."""
    journal: MortalJournal | None = None
    """The journal of the process that dies when there is a crash."""
    remembers_errors: bool = False
    heeds_keys: bool = True
    memory: dict[str, tuple[bytes, int, bytes]] = attrs.field(factory=dict[str, tuple[bytes, int, bytes]])
    ledger: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict[str, list[str]](list))
    """The ids of the jobs of each external id."""
    requests: list[tuple[str, bytes]] = attrs.field(factory=list[tuple[str, bytes]])
    """Key and body of each request, whatever became of it."""
    seen: Counter[str] = attrs.field(factory=Counter[str])
    turns: int = 1
    """How long a request takes, in turns of the event loop."""
    running: int = 0
    most_running: int = 0

    @property
    def made(self) -> dict[str, str]:
        """The one job of each external id."""
        assert all(len(ids) == 1 for ids in self.ledger.values()), "two jobs"
        return {name: ids[0] for name, ids in self.ledger.items()}

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for _ in range(self.turns):
                await anyio.lowlevel.checkpoint()
            return self.answer(request)
        finally:
            self.running -= 1

    def answer(self, request: httpx.Request) -> httpx.Response:
        key, body = request.headers["idempotency-key"], request.content
        self.requests.append((key, body))
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "crash before":
            self.die()
        if fault in BEFORE:
            return raised_or_returned(BEFORE[fault])
        status, answer = self.do(key, body)
        if fault == "crash after":
            self.die()
        if fault == "crash with the answer" and self.journal is not None:
            self.journal.dead = True
        if fault in AFTER:
            return raised_or_returned(AFTER[fault])
        return httpx.Response(status, content=answer)

    def die(self) -> None:
        if self.journal is not None:
            self.journal.dead = True
        raise CrashError

    def do(self, key: str, body: bytes) -> tuple[int, bytes]:
        """Do what is asked, or what was done before under the same key."""
        if key in self.memory and self.heeds_keys:
            known, status, answer = self.memory[key]
            return (status, answer) if known == body else problem(409, "idempotency_conflict")
        status, answer = self.work(body)
        if status == 200 or self.remembers_errors:
            self.memory[key] = body, status, answer
        return status, answer

    def work(self, body: bytes) -> tuple[int, bytes]:
        if len(body) > self.most_bytes:
            return problem(413, "body_too_large")
        wire = json.loads(body)
        jobs = wire["jobs"]
        if len(jobs) > self.most_jobs or any(job.get("externalId") in self.poison for job in jobs):
            return problem(400, "invalid_body")
        is_dry = wire.get("settings", {}).get("dryRun", False)
        outcomes = [{"index": index, **self.outcome(job, is_dry=is_dry)} for index, job in enumerate(jobs)]
        return 200, json.dumps({"totalJobs": len(jobs), "jobs": outcomes}).encode()

    def outcome(self, job: Mapping[str, Any], *, is_dry: bool) -> dict[str, Any]:
        name = job.get("externalId") or ""
        if name in self.refused:
            self.seen[name] += 1
            if self.seen[name] <= self.refusals.get(name, 1 << 30):
                return {"externalId": name, "error": self.refused[name]}
        if is_dry:
            return {"externalId": name, "estimate": {"neu": 2.5}}
        job_id = f"j{sum(map(len, self.ledger.values()))}"
        self.ledger[name].append(job_id)
        return {"externalId": name, "jobId": job_id, "status": "created", "estimate": {"neu": 2.5}}


def problem(status: int, code: str) -> tuple[int, bytes]:
    return status, json.dumps({"code": code, "message": "no"}).encode()


def raised_or_returned(outcome: Exception | httpx.Response) -> httpx.Response:
    if isinstance(outcome, Exception):
        raise outcome
    return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)
