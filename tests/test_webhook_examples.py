"""The webhook examples receive what a sandbox delivers to them over sockets."""

import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import httpx
import pytest
from anyio.streams.text import TextReceiveStream
from webhook_help import body_of, headers_of

from convertrilo.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "examples"
ADDRESS = re.compile(r"unning on (http://127\.0\.0\.1:\d+)")


class Example:
    """An example that runs, where it listens, and what it has printed."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.printed = ""
        self.url = ""
        self._news = anyio.Event()

    async def read(self, stream: anyio.abc.ByteReceiveStream) -> None:
        async for text in TextReceiveStream(stream):
            self.printed += text
            self._news.set()
            self._news = anyio.Event()

    async def until(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        with anyio.fail_after(60):
            while not (found := re.search(pattern, self.printed)):
                await self._news.wait()
        return found


@asynccontextmanager
async def running(name: str, secret: str, folder: Path) -> AsyncIterator[Example]:
    environment = {
        **os.environ,
        "CONVERTRILO_WEBHOOK_SECRET": secret,
        "WEBHOOKS_DB": str(folder / "webhooks.db"),
        "PORT": "0",
    }
    async with (
        await anyio.open_process([sys.executable, str(EXAMPLES / name)], env=environment) as process,
        anyio.create_task_group() as tasks,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        example = Example(process)
        tasks.start_soon(example.read, process.stdout)
        tasks.start_soon(example.read, process.stderr)
        try:
            example.url = (await example.until(ADDRESS))[1] + "/webhooks/convertrilo"
            yield example
        finally:
            process.terminate()


# The examples are programs of their own: on which backend the test runs makes no difference to them.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", ["webhook_receiver.py", "webhook_receiver_fastapi.py", "webhook_receiver_django.py"])
async def test_an_example_prints_each_event_once(name: str, anyio_backend: str, tmp_path: Path) -> None:
    async with Sandbox() as sandbox, sandbox.client() as client:
        # The URL is known only when the example runs, and its secret only when there is a URL.
        made = await client.create_webhook({"url": "http://127.0.0.1:9/later", "events": ["job.completed"]})
        assert made.id is not None
        assert made.secret is not None
        async with running(name, made.secret, tmp_path) as example:
            await client.update_webhook(made.id, {"url": example.url})
            job = await client.on_demand_encode(
                {"sourceUrl": "https://media.example/holiday.mov", "externalId": "holiday"}
            )
            await sandbox.wait_until_idle()
            line = f"job.completed {job.job_id} success holiday\n"
            await example.until(re.escape(line))
            [delivery] = (await client.get_webhook_deliveries(made.id)).deliveries or ()
            assert (delivery.status, delivery.status_code) == ("success", 204)

            body = body_of(timestamp=f"{delivery.created_at:%Y-%m-%dT%H:%M:%S}Z", jobId=job.job_id)
            async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
                again = await http.post(example.url, content=body, headers=headers_of(body, secret=made.secret))
                forged = await http.post(example.url, content=body, headers=headers_of(body, secret="guessed"))
            assert (again.status_code, forged.status_code) == (204, 401)
        assert example.printed.count("job.completed") == 1
