"""Helpers of the webhook tests: a signed delivery, and real servers on loopback ports."""

import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import hypercorn
import hypercorn.trio
import uvicorn
from credentials import WEBHOOK_SECRET
from loopback import until

from convertrilo import webhooks

SECRET = WEBHOOK_SECRET
NOW = 1_767_225_600.0
TIMESTAMP = "2026-01-01T00:00:00.000Z"
DATA: Mapping[str, Any] = {
    "jobId": "0198f6a2-7d3e-4c1b-9a55-1f2e3d4c5b6a",
    "userId": "u-1",
    "status": "success",
    "encoder": "x264",
    "durationSec": 60.5,
    "finalNeu": 2,
    "externalId": "holiday.mp4",
    "metadata": {"album": "2025 ☀"},
}


def body_of(event: str = "job.completed", timestamp: str = TIMESTAMP, **data: Any) -> bytes:
    """Return the body of a delivery. A value of `None` removes the field from its data."""
    given = {name: value for name, value in {**DATA, **data}.items() if value is not None}
    return json.dumps({"event": event, "timestamp": timestamp, "data": given}, ensure_ascii=False).encode()


def headers_of(body: bytes, event: str = "job.completed", secret: str = SECRET) -> dict[str, str]:
    """Return the headers of a delivery, as the service sends them."""
    return {
        "Content-Type": "application/json",
        "X-Webhook-Event": event,
        "X-Webhook-Id": "w-1",
        "X-Webhook-Signature": webhooks.sign(body, secret),
    }


async def ask(
    app: Any, body: bytes | list[bytes] = b"", headers: Mapping[str, str] | None = None, **scope: Any
) -> tuple[int, bytes]:
    """Send a request to an ASGI app, in pieces if the body is a list; return the status and body of its answer."""
    pieces = list(body) if isinstance(body, list) else [body]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": "POST", "path": "/", "headers": raw, **scope}, receive, send)
    if not sent:
        return 0, b""
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"]


@asynccontextmanager
async def serving(app: Any, backend: str) -> AsyncIterator[str]:
    """Serve an app on a port and yield its base URL: with uvicorn on asyncio, with hypercorn on trio."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            if backend == "asyncio":
                server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
                tasks.start_soon(server.serve, [listener])
                await until(lambda: server.started)
                try:
                    yield url
                finally:
                    server.should_exit = True
            else:
                config = hypercorn.Config()
                config.bind = [f"fd://{os.dup(listener.fileno())}"]  # hypercorn closes the descriptor
                config.errorlog = None
                ended = anyio.Event()

                async def serve() -> None:
                    await hypercorn.trio.serve(app, config, shutdown_trigger=ended.wait)

                tasks.start_soon(serve)
                try:
                    await until_served(url)
                    yield url
                finally:
                    ended.set()


async def until_served(url: str) -> None:
    """Wait until a server answers."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        await http.get(f"{url}/up")
