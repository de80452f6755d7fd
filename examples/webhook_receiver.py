"""Receive webhooks, alone: verify each delivery, print its event once, and answer.

    pip install -e ".[sandbox]"    # for uvicorn
    export CONVERTRILO_WEBHOOK_SECRET=...    # shown once, when the webhook was created
    python examples/webhook_receiver.py

Then the webhook's URL is https://YOUR-HOST/webhooks/convertrilo. PORT is 8000 unless the environment says otherwise.

See it at work, with a sandbox that sends it something:

    python examples/webhook_demo.py webhook_receiver.py
"""

import logging
import os

import uvicorn

from convertrilo import SQLiteDedupe, WebhookEvent, WebhookReceiver


async def handle(event: WebhookEvent) -> None:
    """Do what is to be done once for each event. If this raises, the service sends the event again."""
    print(event.event, event.job_id, event.status, event.external_id, flush=True)


app = WebhookReceiver(
    os.environ["CONVERTRILO_WEBHOOK_SECRET"],
    handle,
    path="/webhooks/convertrilo",
    dedupe=SQLiteDedupe(os.environ.get("WEBHOOKS_DB", "webhooks.db")),  # remembers past a restart
)

if __name__ == "__main__":
    logging.basicConfig()  # what is refused, and why
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
