"""Requests per second of `job_status`, whole call and decoded answer, against httpx, the generated client and Node."""

import importlib
import importlib.util
import itertools
import json
import math
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import httpx

from convertrilo import AsyncClient

from .data import JOB_IDS
from .generated import Generated, load
from .harness import Bench, Call, Measure, Sample, flooded, in_turns, micro, rate, ratios, typical

_TARGETS = {1: 1.2, 16: 3.0, 128: 5.0, 512: 5.0}
_ROUNDS = {1: 9, 16: 7, 128: 7, 512: 1}  # httpx takes 10 s to start and to cancel 512 requests
_UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)
_KEY = "a-key"
_TIMEOUT = httpx.Timeout(60)  # httpx's default of 5 s for a free connection is too short for 512 requests

Contestant = Callable[[], AbstractAsyncContextManager[Call]]


def _contestants(url: str, generated: Generated | None) -> dict[str, Contestant]:
    """Return a context manager for each client, which yields its call. The calls ask for one job after the other."""
    ids = itertools.cycle(JOB_IDS)
    headers = {"X-API-Key": _KEY}
    tls = httpx.create_ssl_context()  # unused here, but a client that has to create a context takes long

    @asynccontextmanager
    async def ours() -> AsyncIterator[Call]:
        async with AsyncClient(_KEY, base_url=url, timeout=_TIMEOUT) as client:
            yield lambda: client.job_status(next(ids))

    @asynccontextmanager
    async def raw(**settings: Any) -> AsyncIterator[Call]:
        async with httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, verify=tls, **settings) as client:

            async def call() -> object:
                response = await client.get(f"{url}/jobs/{next(ids)}/status")
                return response.json()

            yield call

    @asynccontextmanager
    async def theirs() -> AsyncIterator[Call]:
        assert generated is not None
        key = {"token": _KEY, "prefix": "", "auth_header_name": "X-API-Key"}
        async with generated.client(base_url=url, **key, timeout=_TIMEOUT, verify_ssl=tls) as client:
            yield lambda: generated.job_status(next(ids), client=client)

    made: dict[str, Contestant] = {
        "convertrilo": ours,
        "httpx": raw,
        "httpx, no limits": partial(raw, limits=_UNLIMITED),
    }
    if importlib.util.find_spec("httpx_aiohttp") is not None:
        aiohttp: Any = importlib.import_module("httpx_aiohttp")
        made["httpx, aiohttp"] = lambda: raw(transport=aiohttp.AiohttpTransport(verify=tls, limits=_UNLIMITED))
    return made if generated is None else {**made, "generated": theirs}


def _node(url: str, in_flight: int, seconds: float) -> Measure:
    """Measure Node's fetch in a process of its own, as `flooded` measures Python clients."""
    script = str(Path(__file__).with_name("fetch.mjs"))

    async def measure() -> Sample:
        done = await anyio.run_process(["node", script, url, str(in_flight), str(seconds), *JOB_IDS])
        seen = json.loads(done.stdout)
        count = seen["count"]
        return Sample(seen["elapsed"] / count, seen["cpu"] / count) if count else Sample(math.inf, math.inf)

    return measure


async def run(bench: Bench) -> None:
    """Print a row for each number of requests in flight."""
    page, scale = bench.page, bench.scale
    contestants = _contestants(bench.url, load(bench.directory) if bench.generated else None)
    names = [*contestants, *(["Node's fetch"] if shutil.which("node") else [])]
    columns = [f"{name:>16}" for name in names]
    page.table(
        "job_status on loopback: requests/s (CPU us a request)", ["in flight", *columns, "times httpx", "by CPU"]
    )
    for in_flight, target in itertools.islice(_TARGETS.items(), 2 if scale.quick else None):
        floods = {name: flooded(each, in_flight, scale.seconds(0.5)) for name, each in contestants.items()}
        if "Node's fetch" in names:
            floods["Node's fetch"] = _node(bench.url, in_flight, scale.seconds(1.0))
        rounds = await in_turns(floods, scale.rounds(_ROUNDS[in_flight]))
        cells = [f"{rate(typical(rounds, name))} ({micro(typical(rounds, name, 'cpu'))})" for name in names]
        speedup = page.against(str(in_flight), ratios(rounds, "httpx", "convertrilo"), at_least=target)
        by_cpu = median(ratios(rounds, "httpx", "convertrilo", "cpu"))
        page.row(str(in_flight), *cells, speedup, f"{by_cpu:.2f}")
