"""A small scriptable HTTP/1.1 server on a loopback port, and helpers for its tests, on either async backend."""

import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import psutil
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

_GONE = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError)


@dataclass
class Received:
    """A request as it arrived, and its connection."""

    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    stream: anyio.abc.ByteStream


Handler = Callable[[Received], Awaitable[bytes | None]]
"""Returns the bytes to answer with, after any that it sent on `stream` itself. None closes the connection."""


def answer(body: bytes = b"", *, status: str = "200 OK", headers: Sequence[str] = ()) -> bytes:
    """The bytes of a whole response."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def echo(request: Received) -> bytes:
    """Answer with the target, and the body if there is one."""
    return answer(request.target.encode() + request.body)


@dataclass
class Loopback:
    """A running server: its `requests`, the number of connections it `accepted`, and the open `streams`."""

    handler: Handler
    url: str
    accepted: int = 0
    requests: list[Received] = field(default_factory=list)
    streams: set[anyio.abc.ByteStream] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def hang_up(self) -> None:
        """Close every open connection."""
        for stream in tuple(self.streams):
            await anyio.aclose_forcefully(stream)

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        """Answer the requests of one connection, one at a time."""
        self.accepted += 1
        connection = self.accepted
        self.streams.add(stream)
        buffered = BufferedByteReceiveStream(stream)
        try:
            while True:
                received = await _receive(buffered, connection, stream)
                self.requests.append(received)
                reply = await self.handler(received)
                if reply is None:
                    break
                if reply:
                    await stream.send(reply)
        except _GONE:
            pass
        finally:
            self.streams.discard(stream)
            await anyio.aclose_forcefully(stream)


async def _receive(buffered: BufferedByteReceiveStream, connection: int, stream: anyio.abc.ByteStream) -> Received:
    head = (await buffered.receive_until(b"\r\n\r\n", 65536)).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await buffered.receive_until(b"\r\n", 100), 16):
            body += await buffered.receive_exactly(size)
            await buffered.receive_exactly(2)
        await buffered.receive_exactly(2)
    elif length := int(headers.get("content-length", 0)):
        body = await buffered.receive_exactly(length)
    return Received(connection, method, target, headers, body, stream)


@asynccontextmanager
async def loopback(handler: Handler, *, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[Loopback]:
    """Run a server, with TLS if a context is given."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listeners, anyio.create_task_group() as tasks:
        port: int = listeners.extra(anyio.abc.SocketAttribute.local_port)
        if ssl_context is None:
            server = Loopback(handler, f"http://127.0.0.1:{port}")
            tasks.start_soon(listeners.serve, server.serve)
        else:
            server = Loopback(handler, f"https://127.0.0.1:{port}")
            tls = TLSListener(listeners, ssl_context, standard_compatible=False)
            tasks.start_soon(tls.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name of the parameter in http.server
        pass


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, and yield the server's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def until(condition: Callable[[], object]) -> None:
    """Let all other tasks and threads run until a condition holds."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # a thread may have to run, so this task sleeps
            await anyio.sleep(0.0005)


def sockets_to(*servers: Loopback) -> list[int]:
    """The file descriptors of this process that are connected to these servers."""
    ports = {server.port for server in servers}
    connections = psutil.Process().net_connections("tcp")
    return [c.fd for c in connections if c.status != psutil.CONN_LISTEN and c.raddr[1] in ports]


async def send(
    transport: httpx.AsyncBaseTransport, url: str, *, extensions: Mapping[str, Any] | None = None, **kwargs: Any
) -> httpx.Response:
    method = "POST" if kwargs else "GET"
    return await transport.handle_async_request(httpx.Request(method, url, extensions=dict(extensions or {}), **kwargs))


async def fetch(transport: httpx.AsyncBaseTransport, url: str, **kwargs: Any) -> bytes:
    return await (await send(transport, url, **kwargs)).aread()
