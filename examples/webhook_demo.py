"""Show a webhook receiver at work: a sandbox sends it the signed events of a video, and ends it.

    pip install -e ".[sandbox]"    # and fastapi or django, for the receivers that use them
    python examples/webhook_demo.py webhook_receiver.py
    python examples/webhook_demo.py webhook_receiver_fastapi.py
    python examples/webhook_demo.py webhook_receiver_django.py

The receiver is what it is in earnest: a process of its own, with the webhook's secret in its environment. It handles an
event that is delivered twice once, and refuses one that somebody else has signed.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
from anyio.streams.buffered import BufferedByteReceiveStream

from convertrilo import webhooks
from convertrilo.sandbox import Sandbox


async def show_until(pattern: str, stream: BufferedByteReceiveStream) -> re.Match[str]:
    """Print what the receiver says, up to a line with this in it."""
    with anyio.fail_after(60):
        while True:
            line = (await stream.receive_until(b"\n", 10_000)).decode().rstrip()
            print(f"receiver: {line}")
            if found := re.search(pattern, line):
                return found


async def send(url: str, event: str, body: bytes, secret: str) -> int:
    """Deliver an event as the service does, and return what is answered."""
    headers = {"X-Webhook-Event": event, "X-Webhook-Signature": webhooks.sign(body, secret)}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        return (await http.post(url, content=body, headers=headers)).status_code


@asynccontextmanager
async def running(receiver: Path, secret: str) -> AsyncIterator[BufferedByteReceiveStream]:
    """Run a receiver, and yield what it says."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"CONVERTRILO_WEBHOOK_SECRET": secret, "WEBHOOKS_DB": f"{folder}/webhooks.db", "PORT": "0"}
        command = [sys.executable, str(receiver)]
        async with await anyio.open_process(command, env={**os.environ, **own}, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            try:
                yield BufferedByteReceiveStream(process.stdout)
            finally:
                process.terminate()


async def main(receiver: Path) -> None:
    """Make a webhook, run its receiver, and give it something to receive."""
    async with Sandbox() as sandbox, sandbox.client() as client:
        # Here the receiver's port comes after the secret: the webhook's URL is changed then.
        hook = await client.create_webhook({"url": "https://example.com/later", "events": ["job.completed"]})
        assert hook.id is not None
        assert hook.secret is not None
        async with running(receiver, hook.secret) as output:
            address = (await show_until(r"unning on (http://127\.0\.0\.1:\d+)", output))[1]
            url = f"{address}/webhooks/convertrilo"
            await client.update_webhook(hook.id, {"url": url})
            await client.on_demand_encode({"sourceUrl": "https://example.com/in.mp4", "externalId": "holiday"})
            await sandbox.wait_until_idle()
            [sent] = sandbox.webhooks
            print(f"sandbox: sent {sent.event}, and was answered {sent.status_code}")
            await show_until(r"^job\.completed .* success holiday$", output)
            print("the same again is answered", await send(url, sent.event, sent.body, hook.secret))
            print("signed with another secret it is answered", await send(url, sent.event, sent.body, "guessed"))
            await show_until(r"\b401\b", output)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/webhook_demo.py RECEIVER")
    anyio.run(main, Path(__file__).parent / sys.argv[1])
