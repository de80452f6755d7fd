"""Mistakes on the way of a call, from a client's method to the engine, each of which both type checkers must find.

Nothing here runs: mypy and pyright read this file (`nox -s types`). Each `type: ignore` marks a mistake that must be
reported: if a checker no longer finds the mistake, the comment itself is an error.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Any

import httpx

from convertrilo import JobCreateRequest
from convertrilo._base_client import BaseClient, engine_of
from convertrilo._clock import SYSTEM_CLOCK
from convertrilo._http.call import Call
from convertrilo._http.context import Context, Options, Send
from convertrilo._http.credentials import Credentials
from convertrilo._http.engine import Engine
from convertrilo.idempotency import Identity
from convertrilo.models import StatusResponse
from convertrilo.operations import CREATE_JOB, CREATE_JOBS_BULK, JOB_STATUS, UPLOAD_CHUNK
from convertrilo.retry import RetryBudget, RetryPolicy

JOB = JobCreateRequest(codec="av1", resolution="720p", fps=30)
OPTIONS = Options(retry=RetryPolicy(), timeout=httpx.Timeout(30))
URL = httpx.URL("https://api.test")


class Client(BaseClient):
    """Methods as in `BaseClient`."""

    async def correct(self) -> StatusResponse:
        await self._call(CREATE_JOB, body=JOB, idempotency_key=None, name="n")
        await self._call(CREATE_JOB, body={"codec": "av1"})
        await self._call(UPLOAD_CHUNK, path={"id": "j", "index": 1}, body=b"data")
        return await self._call(JOB_STATUS, path={"id": "j"})

    async def misspelt_path(self) -> StatusResponse:
        return await self._call(JOB_STATUS, paht={"id": "j"})  # type: ignore[call-arg]

    async def misspelt_timeout(self) -> StatusResponse:
        return await self._call(JOB_STATUS, path={"id": "j"}, timeuot=3)  # type: ignore[call-arg]

    async def misspelt_key(self) -> None:
        await self._call(CREATE_JOB, body=JOB, idempotencykey="k")  # type: ignore[call-arg]

    async def wrong_body(self) -> None:
        await self._call(CREATE_JOB, body=3)  # type: ignore[arg-type]

    async def wrong_path(self) -> StatusResponse:
        return await self._call(JOB_STATUS, path="j")  # type: ignore[arg-type]

    async def wrong_answer(self) -> StatusResponse:
        return await self._call(CREATE_JOB, body=JOB)  # type: ignore[arg-type]


async def from_a_flow_to_the_engine(client: BaseClient) -> None:
    engine, options = engine_of(client)
    await engine.call(JOB_STATUS, options, path={"id": "j"})
    await engine.call(JOB_STATUS, options, paht={"id": "j"})  # type: ignore[call-arg]
    await engine.call(JOB_STATUS, options, timeuot=3)  # type: ignore[call-arg]
    await engine.call(CREATE_JOB, options, body=3)  # type: ignore[arg-type]
    await engine.call(JOB_STATUS, 3.0, path={"id": "j"})  # type: ignore[arg-type]


def from_the_engine_to_the_call(engine: Engine, identity: Identity) -> None:
    Call(engine, JOB_STATUS, OPTIONS, URL, b"", None, None)
    Call(engine, JOB_STATUS, OPTIONS, "/jobs", b"", None, None)  # type: ignore[arg-type]
    Call(engine, JOB_STATUS, OPTIONS, URL, "", None, None)  # type: ignore[arg-type]
    wire: dict[str, Any] = {"jobs": []}
    engine.frozen_call(CREATE_JOBS_BULK, OPTIONS, wire=wire, content=b"{}", identity=identity)
    engine.frozen_call(CREATE_JOBS_BULK, OPTIONS, wire=wire, content=3, identity=identity)  # type: ignore[arg-type]


async def nothing_to_close() -> None:
    """Close nothing."""


def shared_by_calls(send: Send) -> None:
    credentials, budget = Credentials("key", None), RetryBudget(500)
    Context(base_url=URL, credentials=credentials, send=send, budget=budget, clock=SYSTEM_CLOCK, on_event=None)
    Context(base_url=URL, credentials=credentials, send=send, budget=500, clock=SYSTEM_CLOCK, on_event=None)  # type: ignore[arg-type]
    Context(base_url=URL, credentials=credentials, send=send, budget=budget, clock=SYSTEM_CLOCK, on_evnet=None)  # type: ignore[call-arg]
    Engine(
        base_url=URL,
        credentials=credentials,
        send=send,
        close=nothing_to_close,
        budget=budget,
        clock=3,  # type: ignore[arg-type]
        on_event=None,
        journal=None,
        poll_batch_size=100,
        transport=None,
    )
