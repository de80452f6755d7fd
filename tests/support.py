"""Helpers of the client's tests: a scripted transport, clients for it, and an example call of every operation."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import credentials
import httpx
import psutil
from fake_clock import FakeClock

from convertrilo import AsyncClient, models
from convertrilo._base_client import engine_of
from convertrilo._http.limiter import RateLimiter
from convertrilo._model import Model

API_KEY = credentials.API_KEY
TOKEN = credentials.TOKEN
BASE_URL = "https://api.test"


# ---- a transport that follows a script


@dataclass(frozen=True)
class Answer:
    """An answer of the service. With `cut`, its body breaks off in the middle with that error."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: Exception | None = None


def ok(value: Any = None, *, status: int = 200, **headers: str) -> Answer:
    """Return an answer in JSON; `retry_after="3"` is a header."""
    body = b"" if value is None else json.dumps(value).encode()
    return Answer(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


def problem(status: int, code: str | None = None, message: str = "no", headers: Any = None, **fields: Any) -> Answer:
    """Return an error answer in the contract's form."""
    body = {"code": code or f"some_{status}", "message": message, **fields}
    return Answer(status, json.dumps(body).encode(), headers or {})


Step = Answer | Exception | Callable[["Sent"], Awaitable[Answer]]


@dataclass(frozen=True)
class Sent:
    """A request as it was sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    timeout: Mapping[str, float]
    at: float
    """The virtual time."""

    @property
    def key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Script(httpx.AsyncBaseTransport):
    """A transport that does what its steps say, one for each request, and repeats the last one.

    A step is an answer, an error to raise, or a function. It does not depend on the request, so a test can say what
    each attempt meets. `fake_service.FakeService` is for tests in which the service must behave like the real one.
    """

    def __init__(self, *steps: Step, clock: FakeClock | None = None) -> None:
        self.steps = steps
        self.clock = clock or FakeClock()
        self.sent: list[Sent] = []
        self.open = 0
        """The number of answers that are not closed yet."""
        self.closed = False

    @property
    def attempts(self) -> int:
        return len(self.sent)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        sent = Sent(
            method=request.method,
            target=request.url.raw_path.decode(),
            headers=request.headers,
            body=await request.aread(),
            timeout=request.extensions["timeout"],
            at=self.clock.now,
        )
        self.sent.append(sent)
        number = len(self.sent)
        await anyio.lowlevel.checkpoint()  # after the request is recorded, so that late requests are, too
        step = self.steps[min(number, len(self.steps)) - 1]
        if isinstance(step, Exception):
            raise step
        answer = step if isinstance(step, Answer) else await step(sent)
        return httpx.Response(answer.status, headers=dict(answer.headers), stream=_Body(self, answer), request=request)

    async def aclose(self) -> None:
        self.closed = True


class _Body(httpx.AsyncByteStream):
    def __init__(self, script: Script, answer: Answer) -> None:
        self.script = script
        self.answer = answer
        self.closed = False
        script.open += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await anyio.lowlevel.checkpoint()
        half = len(self.answer.body) // 2
        yield self.answer.body[:half]
        if self.answer.cut is not None:
            raise self.answer.cut
        yield self.answer.body[half:]

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self.script.open -= 1


def client_of(script: Script, *, chance: float = 1.0, **options: Any) -> AsyncClient:
    """Return a client whose requests go to a script, and whose backoffs are `chance` times the longest."""
    given = {"api_key": API_KEY, "get_token": lambda: TOKEN, "base_url": BASE_URL, "clock": script.clock}
    client = AsyncClient(transport=script, **{**given, **options})
    return set_jitter(client, chance)


def set_jitter(client: AsyncClient, value: float | Callable[[], float]) -> AsyncClient:
    """Have a client draw this value, or the results of this function, as its random numbers; return the client.

    Backoffs have full jitter, so with 1.0 each backoff has its full length.
    """
    engine_of(client)[0].random = value if callable(value) else lambda: value
    return client


def limiter_of(client: AsyncClient) -> RateLimiter:
    """Return the rate limiter of a client, to tell it of limits without a request."""
    return engine_of(client)[0].limiter


# ---- a call of every operation


@dataclass(frozen=True)
class Example:
    """A call of an operation: the method's arguments, the request, and the answer."""

    arguments: tuple[Any, ...]
    sent: str
    body: Any = None
    answer: Any = None
    result: Model | None = None

    @property
    def answered(self) -> Answer:
        return ok(self.answer)


JOB = {"codec": "h264", "resolution": "720p", "fps": 30}
RESERVE = {"jobId": "j-1", "amount": 5}
CREATED = {"jobId": "j-1", "upload": None, "output": {"key": "out.mp4"}}
CREATED_MODEL = models.JobCreateResponse(job_id="j-1", upload=None, output=models.JobOutput(key="out.mp4"))
STATUS = {"id": "j-1", "status": "running", "pct": 12.5, "createdAt": "2026-01-02T03:04:05Z"}
STATUS_MODEL = models.StatusResponse(
    id="j-1", status="running", pct=12.5, created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
)
PROBED = {"durationSec": 90, "durationMinutes": 1.5}
PROBED_MODEL = models.ProbeDurationResponse(duration_sec=90, duration_minutes=1.5)
WEBHOOK = {"url": "https://hooks.test/in", "events": ["job.completed"]}
WEBHOOK_MADE = {"id": "w-1", "isActive": True, "failureCount": 0}
WEBHOOK_MODEL = models.WebhookResponse(id="w-1", is_active=True, failure_count=0)
ON_DEMAND = {"sourceUrl": "https://videos.test/in.mp4"}
FOLDER = {"sourceS3": {"bucket": "b"}}

EXAMPLES: Mapping[str, Example] = {
    "login": Example(
        ({"email": "a@b.test", "password": "password-1"},),
        "POST /auth/login",
        {"email": "a@b.test", "password": "password-1"},
        {"accessToken": "access"},
        models.AuthLoginResponse(access_token="access"),
    ),
    "getBalance": Example(
        (), "GET /tokens/balance", None, {"available": 7.5}, models.TokenBalanceResponse(available=7.5)
    ),
    "reserveTokens": Example((RESERVE,), "POST /tokens/reserve", RESERVE),
    "releaseTokens": Example((RESERVE,), "POST /tokens/release", RESERVE),
    "deductTokens": Example((RESERVE,), "POST /tokens/deduct", RESERVE),
    "createJob": Example((JOB,), "POST /jobs", JOB, CREATED, CREATED_MODEL),
    "probeDuration": Example(("j-1",), "GET /jobs/j-1/probe-duration", None, PROBED, PROBED_MODEL),
    "approveUnified": Example(
        ("j-1", {"codec": "av1"}),
        "POST /jobs/j-1/approve-unified",
        {"codec": "av1"},
        {"ok": True, "estimate": {"totalNeu": 3}},
        models.ApproveUnifiedResponse(ok=True, estimate=models.ApproveEstimate(total_neu=3)),
    ),
    "confirmJob": Example(
        ("j-1", {"quality": "best"}),
        "POST /jobs/j-1/confirm",
        {"quality": "best"},
        {"ok": True},
        models.ConfirmResponse(ok=True),
    ),
    "cancelJob": Example(("j-1",), "POST /jobs/j-1/cancel"),
    "jobStatus": Example(("j-1",), "GET /jobs/j-1/status", None, STATUS, STATUS_MODEL),
    "createJobsBulk": Example(
        ({"jobs": [JOB], "settings": {"confirm": True}},),
        "POST /jobs/bulk",
        {"jobs": [JOB], "settings": {"confirm": True}},
        {"totalJobs": 1, "jobs": [{"index": 0, "jobId": "j-1"}]},
        models.BulkCreateResponse(total_jobs=1, jobs=(models.BulkCreateItem(index=0, job_id="j-1"),)),
    ),
    "bulkStatus": Example(
        (["j-1", "j-2"],),
        "GET /jobs/bulk/status?ids=j-1,j-2",
        None,
        {"jobs": [STATUS], "missing": ["j-2"]},
        models.BulkStatusResponse(jobs=(STATUS_MODEL,), missing=("j-2",)),
    ),
    "bulkConfirm": Example(
        ({"jobIds": ["j-1"]},),
        "POST /jobs/bulk/confirm",
        {"jobIds": ["j-1"]},
        {"queued": 1},
        models.BulkConfirmResponse(queued=1),
    ),
    "getApiKeys": Example(
        (),
        "GET /api-keys",
        None,
        {"keys": [{"name": "ci"}]},
        models.ApiKeyListResponse(keys=(models.ApiKeyResponse(name="ci"),)),
    ),
    "createApiKey": Example(
        ({"name": "ci", "scopes": ["jobs:read"]},),
        "POST /api-keys",
        {"name": "ci", "scopes": ["jobs:read"]},
        {"name": "ci", "key": "sk_new"},
        models.ApiKeyResponse(name="ci", key="sk_new"),
    ),
    "revokeApiKey": Example(("k-1",), "DELETE /api-keys/k-1"),
    "getWebhooks": Example(
        (),
        "GET /webhooks",
        None,
        {"webhooks": [WEBHOOK_MADE]},
        models.WebhookListResponse(webhooks=(WEBHOOK_MODEL,)),
    ),
    "createWebhook": Example((WEBHOOK,), "POST /webhooks", WEBHOOK, WEBHOOK_MADE, WEBHOOK_MODEL),
    "updateWebhook": Example(
        ("w-1", {"isActive": True}), "PATCH /webhooks/w-1", {"isActive": True}, WEBHOOK_MADE, WEBHOOK_MODEL
    ),
    "deleteWebhook": Example(("w-1",), "DELETE /webhooks/w-1"),
    "testWebhook": Example(("w-1",), "POST /webhooks/w-1/test"),
    "getWebhookDeliveries": Example(
        ("w-1",),
        "GET /webhooks/w-1/deliveries",
        None,
        {"deliveries": [{"attempt": 1, "statusCode": 200}]},
        models.WebhookDeliveryListResponse(deliveries=(models.WebhookDeliveryResponse(attempt=1, status_code=200),)),
    ),
    "onDemandEncode": Example(
        (ON_DEMAND,),
        "POST /ondemand/encode",
        ON_DEMAND,
        {"jobId": "o-1", "status": "queued", "statusUrl": "/ondemand/status/o-1"},
        models.OnDemandEncodeResponse(job_id="o-1", status="queued", status_url="/ondemand/status/o-1"),
    ),
    "onDemandIngestFolder": Example(
        (FOLDER,),
        "POST /ondemand/ingest/folder",
        FOLDER,
        {"jobs": [{"jobId": "o-1", "fileName": "a.mp4"}]},
        models.OnDemandFolderIngestResponse(jobs=(models.OnDemandFolderIngestItem(job_id="o-1", file_name="a.mp4"),)),
    ),
    "onDemandStatus": Example(
        ("o-1",),
        "GET /ondemand/status/o-1",
        None,
        {"jobId": "o-1", "status": "success", "destination": {"type": "cdn"}},
        models.OnDemandStatusResponse(
            job_id="o-1", status="success", destination=models.OnDemandDestination(type="cdn")
        ),
    ),
    "onDemandCancel": Example(
        ("o-1",),
        "DELETE /ondemand/o-1",
        None,
        {"ok": True, "released": 2.5},
        models.OnDemandCancelResponse(ok=True, released=2.5),
    ),
    "initStream": Example(
        ("j-1",), "POST /jobs/j-1/stream/init", None, {"uploadId": "u-1"}, models.StreamInitResponse(upload_id="u-1")
    ),
    "uploadChunk": Example(("j-1", 3, b"\x00chunk\xff"), "PUT /jobs/j-1/stream/chunk/3", b"\x00chunk\xff"),
    "finalizeStream": Example(
        ("j-1", {"parts": [{"PartNumber": 1, "ETag": "e"}]}),
        "POST /jobs/j-1/stream/finalize",
        {"parts": [{"PartNumber": 1, "ETag": "e"}]},
    ),
    "abortStream": Example(("j-1",), "POST /jobs/j-1/stream/abort"),
    "createPublicJob": Example((JOB,), "POST /public/jobs", JOB, CREATED, CREATED_MODEL),
    "probePublicDuration": Example(("j-1",), "GET /public/jobs/j-1/probe-duration", None, PROBED, PROBED_MODEL),
    "confirmPublicJob": Example(("j-1", {"container": "mkv"}), "POST /public/jobs/j-1/confirm", {"container": "mkv"}),
    "publicJobStatus": Example(
        ("j-1", "t&1 ü"), "GET /public/jobs/j-1/status?token=t%261%20%C3%BC", None, STATUS, STATUS_MODEL
    ),
}


def method_of(client: AsyncClient, operation_id: str) -> Callable[..., Awaitable[Any]]:
    """Return the method of an operation: its id in snake_case."""
    method: Callable[..., Awaitable[Any]] = getattr(
        client, re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", operation_id)
    )
    return method


async def call(client: AsyncClient, operation_id: str, **options: Any) -> Any:
    """Carry out the example of an operation."""
    return await method_of(client, operation_id)(*EXAMPLES[operation_id].arguments, **options)


async def raised_by(awaitable: Awaitable[Any]) -> Any:
    """Return the error that an awaitable raises."""
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001  # the test looks at any error
        return error
    raise AssertionError("nothing was raised")


# ---- files and folders


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(each.name for each in folder.iterdir())


# ---- processes, which can end at any time


def encoders_of(pid: int) -> set[int]:
    """Return the ids of the ffmpeg processes below a process."""
    found: set[int] = set()
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ffmpeg" in child.name():
                found.add(child.pid)
    return found


def lives(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
