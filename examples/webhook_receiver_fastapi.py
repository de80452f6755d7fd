"""Receive webhooks in a FastAPI app, with a queue: answer as soon as an event is on disk, handle it after that.

    pip install -e . fastapi uvicorn
    export CONVERTRILO_WEBHOOK_SECRET=...    # shown once, when the webhook was created
    python examples/webhook_receiver_fastapi.py

Then the webhook's URL is https://YOUR-HOST/webhooks/convertrilo. In Starlette it is the same.

See it at work, with a sandbox that sends it something:

    python examples/webhook_demo.py webhook_receiver_fastapi.py
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.routing import Route

from convertrilo import SQLiteDedupe, WebhookEvent, WebhookReceiver


async def handle(event: WebhookEvent) -> None:
    """Take as long as it takes: the service has its answer. If this raises, it is run again."""
    print(event.event, event.job_id, event.status, event.external_id, flush=True)


PATH = "/webhooks/convertrilo"
receiver = WebhookReceiver(
    os.environ["CONVERTRILO_WEBHOOK_SECRET"],
    handle,
    path=PATH,
    dedupe=SQLiteDedupe(os.environ.get("WEBHOOKS_DB", "webhooks.db")),
    queue=True,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Run the receiver as long as the app: it is part of the app, so its lifetime is the app's business."""
    async with receiver:
        yield


app = FastAPI(lifespan=lifespan, routes=[Route(PATH, receiver)])


@app.get("/")
async def index() -> dict[str, str]:
    """Be the rest of the app."""
    return {"status": "ok"}


if __name__ == "__main__":
    logging.basicConfig()  # what is refused, and why
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
