"""The fake service of the tests and the benchmarks: an httpx transport that does what the contract says.

`FakeService` creates jobs singly and in bulk, remembers idempotency keys, answers statuses, and records its requests.
Where the contract leaves something open, an option decides. A test that needs certain answers in a certain order,
whatever the requests are, uses `support.Script` instead.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import partial
from typing import Any

import anyio.lowlevel
import attrs
import httpx
from fake_clock import FakeClock

from convertrilo.journal import Journal

# ---- faults


def refusal(status: int, code: str, **headers: str) -> httpx.Response:
    """An error answer of the contract's form."""
    return httpx.Response(status, json={"code": code, "message": "no"}, headers=headers)


BEFORE: Mapping[str, Exception | httpx.Response] = {
    "no connection": httpx.ConnectError("refused"),
    "request lost": httpx.ReadError("reset"),
    "failing": httpx.Response(500),
    "too many requests": refusal(429, "rate_limit_exceeded"),
    "come again": httpx.Response(503, headers={"Retry-After": "5"}),
    "no such key": refusal(401, "invalid_api_key"),
    "in progress": refusal(409, "idempotency_in_progress"),
    "no tokens": refusal(402, "insufficient_tokens"),
    "too large for a gateway": httpx.Response(413, html="<html>"),
}
"""Faults that happen before the service looks at a request."""
AFTER: Mapping[str, Exception | httpx.Response] = {
    "answer lost": httpx.ReadError("reset"),
    "bad gateway": httpx.Response(502, html="<html>"),
    "web page": httpx.Response(200, html="<html>"),
}
"""Faults that happen after the service has done what was asked."""
CRASHES = ("crash before", "crash after", "crash with the answer")
"""Faults that end the client's process: before or after the request is done, or before the answer is in the journal."""
FAULTS = (*BEFORE, *AFTER, "invalid", *CRASHES)
"""All faults by name; `invalid` has the service itself refuse the body."""


class CrashError(BaseException):
    """The client's process dies here: nothing that comes later is done."""


class MortalJournal(Journal):
    """The journal of a process that can die. A dead process writes nothing more."""

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


def _crash(journal: MortalJournal | None) -> None:
    if journal is not None:
        journal.dead = True
    raise CrashError


def _raised_or_returned(outcome: Exception | httpx.Response) -> httpx.Response:
    if isinstance(outcome, Exception):
        raise outcome
    return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)


# ---- idempotency keys


@attrs.define
class KeyMemory:
    """What the service remembers of requests with an idempotency key."""

    heeds_keys: bool = True
    """Whether a request under a known key is a repetition at all."""
    compares_credentials: bool = True
    """Whether a request with other storage credentials has another body."""
    remembers_errors: bool = False
    by_api_key: bool = False
    """Whether a key is known to the API key that sent it, and not to the whole account."""
    lifetime: float = 24 * 3600.0
    """Seconds for which a key is remembered."""
    entries: dict[str, tuple[float, Any, int, bytes]] = attrs.field(factory=dict)
    """The end of its lifetime, the body, and the status and body of the answer, by key."""

    def answer(
        self, request: httpx.Request, now: float, work: Callable[[bytes], tuple[int, bytes]]
    ) -> tuple[int, bytes]:
        """Do what is asked, or repeat the answer to what was done before under the same key."""
        key = request.headers["idempotency-key"] + (request.headers["x-api-key"] if self.by_api_key else "")
        body: Any = request.content
        if not self.compares_credentials:
            body = {**json.loads(body), "sourceS3": None}
        if self.heeds_keys and key in self.entries:
            ends_at, known, status, answer = self.entries[key]
            if ends_at >= now:
                return (status, answer) if known == body else _problem(409, "idempotency_conflict")
        status, answer = work(request.content)
        if status == 200 or self.remembers_errors:
            self.entries[key] = now + self.lifetime, body, status, answer
        return status, answer


def _problem(status: int, code: str) -> tuple[int, bytes]:
    return status, json.dumps({"code": code, "message": "no"}).encode()


# ---- rate limits


class RateLimit:
    """Takes a number of requests a minute and refuses the rest.

    Args:
        most: Requests a minute.
        counted: `"minutes"` of the clock, the `"sliding"` last 60 s, or tokens in a `"bucket"`.
        told: How the client hears of the limit: by rate-limit `"headers"`, by Retry-After in `"seconds"` or as a
            `"date"`, or by `"nothing"` but the refusal.
        offset: Seconds by which the minutes of the service and of the client differ.
    """

    def __init__(self, most: int, counted: str, told: str, *, offset: float = 0.0) -> None:
        self.most = most
        self.told = told
        self.offset = offset
        self.taken = 0
        self.refused = 0
        self._left = {"minutes": self._in_minutes, "sliding": self._sliding, "bucket": self._in_bucket}[counted]
        self._took: list[float] = []
        """When the requests of the last two minutes were taken."""
        self._tokens = float(most)
        self._filled_at: float | None = None

    def check(self, now: float) -> tuple[bool, dict[str, str]]:
        """Count a request; return whether the service takes it, and the headers of the answer."""
        left, reset = self._left(now)
        headers = {}
        if self.told == "headers":
            headers = {"RateLimit-Limit": str(self.most), "RateLimit-Remaining": str(max(0, left - 1))}
            headers["RateLimit-Reset"] = str(math.ceil(reset))
        if left >= 1:
            self._took = [at for at in self._took if at > now - 120] + [now]
            self._tokens -= 1
            self.taken += 1
            return True, headers
        self.refused += 1
        if self.told == "seconds":
            headers["Retry-After"] = str(math.ceil(reset))
        elif self.told == "date":
            headers["Retry-After"] = formatdate(math.ceil(now + reset), usegmt=True)
        return False, headers

    def _in_minutes(self, now: float) -> tuple[int, float]:
        minute = (now + self.offset) // 60
        return self.most - sum((at + self.offset) // 60 == minute for at in self._took), 60 - (now + self.offset) % 60

    def _sliding(self, now: float) -> tuple[int, float]:
        recent = [at for at in self._took if at > now - 60]
        return self.most - len(recent), recent[0] + 60 - now if recent else 0.0

    def _in_bucket(self, now: float) -> tuple[int, float]:
        if self._filled_at is not None:
            self._tokens = min(self.most, self._tokens + (now - self._filled_at) * self.most / 60)
        self._filled_at = now
        return int(self._tokens), (1 - self._tokens) * 60 / self.most


# ---- statuses


@attrs.define
class FakeJob:
    """A job of the service: what it becomes, and after how many seconds."""

    seconds: float = 10.0
    ends_as: str = "success"
    on_demand: bool = False
    shows_percent: bool = False

    def status(self, job_id: str, seconds: float) -> dict[str, Any]:
        """The job's status so many seconds after its start."""
        share = min(1.0, seconds / self.seconds)
        name, percent = ("jobId", "progress") if self.on_demand else ("id", "pct")
        wire: dict[str, Any] = {name: job_id, "status": self.ends_as if share == 1 else "running"}
        if self.shows_percent:
            wire[percent] = 100 * share
        if wire["status"] == "failed":
            wire["failureMessage"] = "no moov atom"
        return wire


@attrs.define
class BulkStatus:
    """How the service answers `bulkStatus`."""

    status: int = 200
    """The status of every answer."""
    max_ids: int = 1000
    bad_ids: set[str] = attrs.field(factory=set)
    """Ids for which the whole request is refused."""
    knows_on_demand: bool = True


# ---- creation


@attrs.define
class Creation:
    """How the service answers `createJob` and `createJobsBulk`."""

    most_jobs: int = 1000
    most_bytes: int = 1 << 30
    refused: Mapping[str, str] = attrs.field(factory=dict)
    """The errors of single jobs of a batch, by external id."""
    refusals: Mapping[str, int] = attrs.field(factory=dict)
    """How often each of those is refused; always, where nothing is said."""
    poison: frozenset[str] = frozenset()
    """External ids for which the whole batch is refused."""
    seen: Counter[str] = attrs.field(factory=Counter)
    """How often each of the `refused` was sent."""

    def error_of(self, name: str) -> str | None:
        """The error of a single job of a batch, if it has one this time."""
        if name not in self.refused:
            return None
        self.seen[name] += 1
        return self.refused[name] if self.seen[name] <= self.refusals.get(name, self.seen[name]) else None


# ---- the service


async def turns(count: int) -> None:
    """Take so many turns of the event loop."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


class FakeService(httpx.AsyncBaseTransport):
    """A service that does what its contract says, and notes all of it. It is the transport of its clients.

    Args:
        clock: The service's time; it stands still by default.
        jobs: The jobs that exist at the start, by id.
        faults: What happens to the next requests, in order: names of `FAULTS`, `""` for nothing, an exception to raise,
            or a response.
        keys: What it remembers of idempotency keys.
        limit: How many requests it takes.
        answering: Awaited by every request before it is answered.
        creation: The options of `Creation`.
    """

    def __init__(
        self,
        clock: FakeClock | None = None,
        jobs: dict[str, FakeJob] | None = None,
        *,
        faults: list[Any] | None = None,
        keys: KeyMemory | None = None,
        limit: RateLimit | None = None,
        answering: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint,
        **creation: Any,
    ) -> None:
        self.clock = clock or FakeClock()
        self.began = self.clock.time()
        """When all jobs started, in seconds since the epoch."""
        self.jobs = {} if jobs is None else jobs
        self.faults = faults or []
        self.keys = keys or KeyMemory()
        self.limit = limit
        self.answering = answering
        self.creation = Creation(**creation)
        self.bulk_status = BulkStatus()
        self.headers: dict[str, str] = {}
        """The headers of good answers with statuses."""
        self.created: dict[str, list[str]] = defaultdict(list)
        """The ids of the jobs of each name: the operation in their metadata, or their external id."""
        self.requests: list[tuple[str, bytes]] = []
        """The key and the body of each request to create jobs, whatever became of it."""
        self.asked: list[tuple[float, str, list[str]]] = []
        """When statuses were asked for, in seconds since `began`; how (single, bulk, on-demand); and the ids."""
        self.running = 0
        """Requests under way."""
        self.most_running = 0

    @property
    def made(self) -> dict[str, str]:
        """The one job of each name."""
        assert all(len(ids) == 1 for ids in self.created.values()), "two jobs"
        return {name: ids[0] for name, ids in self.created.items()}

    @property
    def kinds(self) -> Counter[str]:
        """How many requests asked for statuses in each way."""
        return Counter(kind for _, kind, _ in self.asked)

    def transport_of(self, journal: MortalJournal | None) -> httpx.MockTransport:
        """The transport of a process that has this journal, and that crashes end."""
        return httpx.MockTransport(partial(self.handle, journal=journal))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.handle(request)

    async def handle(self, request: httpx.Request, journal: MortalJournal | None = None) -> httpx.Response:
        """Answer a request of the process that has this journal."""
        asked = None if request.method == "POST" else _asked_for(request)
        if asked is not None:
            self.asked.append((self.clock.time() - self.began, *asked))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.answering()
            is_taken, headers = (True, {}) if self.limit is None else self.limit.check(self.clock.time())
            if not is_taken:
                return refusal(429, "rate_limit_exceeded", **headers)
            answer = self.create(request, journal) if asked is None else self.statuses(*asked)
            answer.headers.update(headers)
            return answer
        finally:
            self.running -= 1

    # ---- creating

    def create(self, request: httpx.Request, journal: MortalJournal | None = None) -> httpx.Response:
        """Answer a request to create jobs, with the next fault."""
        self.requests.append((request.headers["idempotency-key"], request.content))
        fault = self.faults.pop(0) if self.faults else ""
        if not isinstance(fault, str):
            return _raised_or_returned(fault)
        if fault == "crash before":
            _crash(journal)
        if fault in BEFORE:
            return _raised_or_returned(BEFORE[fault])
        create = self.work_bulk if request.url.path.endswith("/bulk") else self.work_single
        work = _invalid if fault == "invalid" else create
        status, answer = self.keys.answer(request, self.clock.time(), work)
        if fault == "crash after":
            _crash(journal)
        if fault == "crash with the answer" and journal is not None:
            journal.dead = True
        if fault in AFTER:
            return _raised_or_returned(AFTER[fault])
        return httpx.Response(status, content=answer)

    def work_single(self, body: bytes) -> tuple[int, bytes]:
        """Create one job."""
        job_id = self.make(json.loads(body))
        return 200, json.dumps({"jobId": job_id, "upload": None, "output": {}}).encode()

    def work_bulk(self, body: bytes) -> tuple[int, bytes]:
        """Create the jobs of a batch."""
        if len(body) > self.creation.most_bytes:
            return _problem(413, "body_too_large")
        wire = json.loads(body)
        jobs = wire["jobs"]
        if len(jobs) > self.creation.most_jobs or any(job.get("externalId") in self.creation.poison for job in jobs):
            return _invalid(body)
        is_dry = wire.get("settings", {}).get("dryRun", False)
        outcomes = [{"index": index, **self.outcome(job, is_dry=is_dry)} for index, job in enumerate(jobs)]
        return 200, json.dumps({"totalJobs": len(jobs), "jobs": outcomes}).encode()

    def outcome(self, job: Mapping[str, Any], *, is_dry: bool) -> dict[str, Any]:
        """What comes of one job of a batch."""
        name = job.get("externalId") or ""
        if error := self.creation.error_of(name):
            return {"externalId": name, "error": error}
        if is_dry:
            return {"externalId": name, "estimate": {"neu": 2.5}}
        return {"externalId": name, "jobId": self.make(job), "status": "created", "estimate": {"neu": 2.5}}

    def make(self, job: Mapping[str, Any]) -> str:
        """Create a job, and return its id."""
        job_id = f"j{sum(map(len, self.created.values()))}"
        self.created[(job.get("metadata") or {}).get("operation") or job.get("externalId") or ""].append(job_id)
        self.jobs[job_id] = FakeJob()
        return job_id

    # ---- statuses

    def statuses(self, how: str, ids: list[str]) -> httpx.Response:
        """Answer `jobStatus`, `bulkStatus` or `onDemandStatus`, with the next fault."""
        if self.faults and (fault := self.faults.pop(0)):
            return _raised_or_returned(BEFORE[fault] if isinstance(fault, str) else fault)
        if how == "bulk":
            return self.statuses_in_bulk(ids)
        if ids[0] not in self.jobs or self.jobs[ids[0]].on_demand is not (how == "on-demand"):
            return refusal(404, "not_found")
        return httpx.Response(200, json=self.status(ids[0]), headers=self.headers)

    def statuses_in_bulk(self, ids: list[str]) -> httpx.Response:
        """Answer `bulkStatus`."""
        bulk = self.bulk_status
        if bulk.status != 200:
            return refusal(bulk.status, "no_bulk")
        if len(ids) > bulk.max_ids or bulk.bad_ids & set(ids):
            return refusal(400, "invalid_request")
        known = [each for each in ids if each in self.jobs and (bulk.knows_on_demand or not self.jobs[each].on_demand)]
        found = [
            {"id": each, "pct": status.get("progress"), **status} for each in known if (status := self.status(each))
        ]
        answer = {"jobs": found, "missing": [each for each in ids if each not in known]}
        return httpx.Response(200, json=answer, headers=self.headers)

    def status(self, job_id: str) -> dict[str, Any]:
        """The status of a job at this time."""
        return self.jobs[job_id].status(job_id, self.clock.time() - self.began)


def _asked_for(request: httpx.Request) -> tuple[str, list[str]]:
    *_, kind, last = request.url.path.split("/")
    if kind == "bulk":
        return "bulk", request.url.params["ids"].split(",")
    return ("on-demand", [last]) if kind == "status" else ("single", [kind])


def _invalid(_: bytes) -> tuple[int, bytes]:
    return _problem(400, "invalid_body")
