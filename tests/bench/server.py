"""A fast loopback server in a process of its own: it answers GET with a status, and other requests with a new job.

It answers a bulk request with a new job for each job in the request.
"""

import asyncio
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from . import data

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nX-Request-Id: 7\r\nContent-Length: %d\r\n\r\n"
)
_STATUS, _CREATED = (_HEAD % len(body) + body for body in (data.STATUS, data.CREATED))


class _Connection(asyncio.Protocol):
    _transport: asyncio.Transport
    _received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(self._received, 0, end)
            end += int(length[1]) if length else 0
            if len(self._received) < end:
                return
            if self._received.startswith(b"POST /jobs/bulk "):
                self._transport.write(_created(self._received.count(b'"codec":', 0, end)))
            else:
                self._transport.write(_STATUS if self._received.startswith(b"GET ") else _CREATED)
            self._received = self._received[end:]


_ITEM = b'{"index":%d,"jobId":"00000000-0000-4000-8000-%012x","status":"created","estimate":{"neu":12.5}}'
_numbers = itertools.count()


def _created(count: int) -> bytes:
    items = b",".join([_ITEM % (index, next(_numbers)) for index in range(count)])
    body = b'{"totalJobs":%d,"totalEstimatedNeu":%.1f,"jobs":[%b]}' % (count, 12.5 * count, items)
    return _HEAD % len(body) + body


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)  # ends when the parent process closes the pipe


@contextmanager
def started(module: str) -> Iterator[str]:
    """Run a server module that prints its port and ends at the end of its input.

    Yields:
        The server's URL.
    """
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate()


def serving() -> AbstractContextManager[str]:
    """Start this server, yield its URL, and stop it."""
    return started("tests.bench.server")


if __name__ == "__main__":
    asyncio.run(_serve())
