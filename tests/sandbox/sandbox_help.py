"""Bodies to send, and how to talk to a sandbox with raw httpx."""

from typing import Any

import httpx

from convertrilo.sandbox import Sandbox

JOB: dict[str, Any] = {"codec": "h264", "resolution": "720p", "fps": 30}
URL_JOB: dict[str, Any] = {**JOB, "sourceUrl": "https://media.example/holiday.mov"}
ON_DEMAND: dict[str, Any] = {"sourceUrl": "https://media.example/holiday.mov"}


def client_of(sandbox: Sandbox, **headers: str) -> httpx.AsyncClient:
    """Return raw httpx with the sandbox's key (or other headers), in process."""
    given = headers or {"x-api-key": sandbox.api_key}
    return httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url, headers=given, timeout=60)
