"""CPU of the key, the retry loop and events for a call that succeeds at once, as a share of a raw httpx request."""

from statistics import median

import httpx
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from convertrilo import AsyncClient, AttemptEvent, JobCreateResponse
from convertrilo._json import encode
from convertrilo.codec import from_request, read_answer, to_wire
from convertrilo.events import Listener
from convertrilo.models import JobCreateRequest
from convertrilo.otel import instrument

from . import data
from .harness import Bench, awaited, in_turns, micro, typical

_HEADERS = [
    (b"Host", b"api.example.com"),
    (b"User-Agent", b"bench"),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"X-API-Key", b"a-key"),
]
_BODY = data.job(42)


class _InMemory(httpx.AsyncBaseTransport):
    """Answers at once, so that all CPU is the client's."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(data.CREATED))]
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(data.CREATED), request=request)


def _ignore(_: AttemptEvent) -> None:
    """Receive events, like an application that counts attempts."""


async def run(bench: Bench) -> None:
    """Print the CPU of a whole call, of a call without key, loop and events, and of a raw httpx request."""
    transport = _InMemory()
    body = from_request(JobCreateRequest, _BODY)
    url = httpx.URL("https://api.example.com/jobs")

    async def bare() -> JobCreateResponse:
        content = encode(to_wire(body))
        headers = [*_HEADERS, (b"Content-Length", b"%d" % len(content)), (b"Content-Type", b"application/json")]
        request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(content))
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        answer = b"".join([piece async for piece in response.stream])
        await response.aclose()
        return read_answer(JobCreateResponse, answer)

    def client_of_ours(listener: Listener | None = None) -> AsyncClient:
        return AsyncClient("a-key", base_url="https://api.example.com", transport=transport, on_event=listener)

    async with (
        client_of_ours(_ignore) as client,
        instrument(client_of_ours(), tracer_provider=TracerProvider(), meter_provider=MeterProvider()) as instrumented,
        httpx.AsyncClient(base_url=bench.url, headers={"X-API-Key": "a-key"}) as raw,
    ):

        async def post() -> object:
            response = await raw.post("/jobs", json=_BODY)
            return response.json()

        contestants = {
            "createJob": awaited(lambda: client.create_job(body), bench.scale.count(500)),
            "encode, transport, decode": awaited(bare, bench.scale.count(500)),
            "httpx on loopback": awaited(post, bench.scale.count(500)),
            "createJob, with OpenTelemetry": awaited(lambda: instrumented.create_job(body), bench.scale.count(500)),
        }
        await in_turns(contestants, 1)  # opens connections, fills caches
        rounds = await in_turns(contestants, bench.scale.rounds(15))
    page = bench.page
    page.table("key, retry loop and events: CPU us a call", ["", "CPU us", "of httpx's"])
    for name in contestants:
        page.row(name, micro(typical(rounds, name, "cpu")), "")
    turns = list(zip(*(rounds[name] for name in contestants), strict=True))
    added = [whole.cpu - bare.cpu for whole, bare, *_ in turns]
    shares = [(whole.cpu - bare.cpu) / request.cpu for whole, bare, request, _ in turns]
    page.row("added", micro(median(added)), page.against("added", shares, at_most=0.1))
