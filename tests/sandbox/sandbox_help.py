"""Request bodies, and a raw httpx client for a sandbox."""

from typing import Any

import httpx

from convertrilo.sandbox import Sandbox

JOB: dict[str, Any] = {"codec": "h264", "resolution": "720p", "fps": 30}
URL_JOB: dict[str, Any] = {**JOB, "sourceUrl": "https://media.example/holiday.mov"}
ON_DEMAND: dict[str, Any] = {"sourceUrl": "https://media.example/holiday.mov"}


def client_of(sandbox: Sandbox, **headers: str) -> httpx.AsyncClient:
    """Return an in-process httpx client with the sandbox's API key, or with other headers."""
    given = headers or {"x-api-key": sandbox.api_key}
    return httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url, headers=given, timeout=60)
