"""A FastAPI app that has videos encoded: it awaits the client, hears of each end by a webhook, and shuts down in order.

    pip install -e ".[sandbox]" fastapi
    python examples/fastapi_app.py

    curl -X POST 'http://127.0.0.1:8000/encodes?url=https://example.com/in.mp4'
    curl 'http://127.0.0.1:8000/encodes/JOB?wait=60'    # answers as soon as the webhook is there
    curl http://127.0.0.1:8000/health

Run like this, the service is a sandbox in the same process. In a deployment, `make_app(AsyncClient(), secret)` is the
app: one client for the whole process, entered and left with the app. Ctrl-C and SIGTERM let requests in flight finish,
and close the receiver and the client after that. PORT is 8000 unless the environment says otherwise.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Route

from convertrilo import (
    APIError,
    AsyncClient,
    ConvertriloError,
    JobError,
    OnDemandEncodeRequest,
    RetryPolicy,
    TransportError,
    ValidationError,
    WebhookEvent,
    WebhookReceiver,
)
from convertrilo.sandbox import Sandbox

HOOK = "/webhooks/convertrilo"
AT_ONCE = RetryPolicy.none()


def make_app(client: AsyncClient, secret: str) -> FastAPI:
    """Make the app around a client; `secret` is the webhook's."""

    async def handle(event: WebhookEvent) -> None:
        print(event.event, event.job_id, event.status, flush=True)
        client.notify(event)  # whoever waits for this job hears of it now

    receiver = WebhookReceiver(secret, handle, path=HOOK)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, receiver:
            yield
        print("closed", flush=True)

    app = FastAPI(lifespan=lifespan, routes=[Route(HOOK, receiver)])

    @app.post("/encodes", status_code=202)
    async def create(url: str) -> dict[str, str]:
        """Begin to encode a video; the same URL again is the same job."""
        job = await client.on_demand_encode(OnDemandEncodeRequest(source_url=url, codec="av1", external_id=url))
        return {"id": job.job_id, "status": job.status}

    @app.get("/encodes/{job_id}")
    async def read(job_id: str, wait: float = 0) -> dict[str, Any]:
        """Tell where a job stands, after it has ended or `wait` seconds at most."""
        status = await client.on_demand_status(job_id)
        if wait > 0:
            try:
                status = await client.wait_for_on_demand(job_id, timeout=wait)
            except JobError as error:  # it failed or was canceled, or it takes longer: that is the answer, too
                status = error.status or status
        return {
            "id": job_id,
            "status": status.status,
            "progress": status.progress,
            "url": status.download_url,
            "problem": status.failure_message,
        }

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say whether the service can be reached, without trying twice."""
        try:
            balance = await client.with_options(retry=AT_ONCE, timeout=2).get_balance()
        except ConvertriloError as error:
            return JSONResponse({"status": "down", "problem": str(error)}, 503)
        return JSONResponse({"status": "ok", "tokens": balance.available})

    @app.exception_handler(ConvertriloError)
    async def explain(_: Request, error: ConvertriloError) -> JSONResponse:
        """Answer for the service: its refusals are ours, and what did not reach it may be tried again."""
        if isinstance(error, ValidationError):
            return JSONResponse({"problem": error.message}, 422)
        if isinstance(error, APIError) and error.status < 500:
            return JSONResponse({"code": error.code, "problem": error.message}, error.status)
        again = {"Retry-After": "5"} if isinstance(error, TransportError) else {}
        return JSONResponse({"problem": error.message}, 503, again)

    return app


async def main() -> None:
    """Serve the app, with a sandbox in place of the service."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(os.environ.get("PORT", "8000"))))
        listener.listen()  # whoever comes before the app is ready waits for it
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with Sandbox(encode_seconds=1) as sandbox, sandbox.client() as setup:
            hook = await setup.create_webhook({"url": url + HOOK, "events": ["job.completed", "job.failed"]})
            assert hook.secret is not None
            server = uvicorn.Server(uvicorn.Config(make_app(sandbox.client(), hook.secret)))
            print(f"running on {url}", flush=True)
            await server.serve([listener])


if __name__ == "__main__":
    anyio.run(main)
