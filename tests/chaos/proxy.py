"""A fault proxy on real sockets: it forwards HTTP/1.1 requests to a server and breaks each as its plan says."""

import math
import re
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio

_CHUNK = 65536
_BACKLOG = 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nidempotency-key: *([^\r]*)", re.IGNORECASE)
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: closing the socket sends RST and no FIN


@dataclass(frozen=True)
class Request:
    """A request as the client sent it."""

    number: int
    """1 for the first request that the proxy received."""
    key: str | None
    """The idempotency key."""
    message: bytes = field(repr=False)
    """Head and body."""


End = Callable[["Proxy", socket.socket], Awaitable[None]]
"""Ends the client's connection."""


@dataclass(frozen=True)
class Plan:
    """What happens to one request. `Plan()` forwards the request, and the whole answer back."""

    sent: float = 1.0
    """The share of the request that reaches the server."""
    answered: float | None = 1.0
    """The share of the answer that reaches the client. None: the proxy does not wait for an answer."""
    instead: bytes | None = None
    """What the client receives instead of the server's answer."""
    end: End | None = None
    """How the connection ends. None keeps it open."""


async def close(_: "Proxy", client: socket.socket) -> None:
    """Close the connection in an orderly way: FIN after all data."""
    client.close()


async def reset(_: "Proxy", client: socket.socket) -> None:
    """Reset the connection: RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    client.close()


async def stall(_: "Proxy", client: socket.socket) -> None:
    """Send nothing more until the client gives up."""
    while await _receive(client):
        pass


async def refuse(proxy: "Proxy", client: socket.socket) -> None:
    """Reset the connection, and refuse new ones until `Proxy.open` is called."""
    await reset(proxy, client)
    proxy.shut()


@dataclass
class Proxy:
    """A running proxy, and the requests that it received."""

    upstream: int
    port: int
    decide: Callable[[Request], Plan]
    takes: Callable[[int], bool]
    strip_keys: bool
    requests: list[Request] = field(default_factory=list[Request])
    _listener: socket.socket | None = None
    _opened: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Accept connections, if the proxy does not yet."""
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(_BACKLOG)
            self._opened.set()

    def shut(self) -> None:
        """Stop listening: new connections are refused."""
        if self._listener is not None:
            anyio.notify_closing(self._listener)
            self._listener.close()
            self._listener = None
            self._opened = anyio.Event()

    async def run(self) -> None:
        """Accept connections whenever the proxy is open; never return."""
        accepted = 0
        async with anyio.create_task_group() as connections:
            while True:
                await self._opened.wait()
                with suppress(OSError, anyio.ClosedResourceError):  # shut while waiting
                    while (listener := self._listener) is not None:
                        await anyio.wait_readable(listener)
                        client, _ = listener.accept()
                        client.setblocking(False)
                        accepted += 1
                        if self.takes(accepted):
                            connections.start_soon(self._serve, client)
                        else:
                            await reset(self, client)

    async def _serve(self, client: socket.socket) -> None:
        """Carry out the plans of one connection's requests, one at a time."""
        server = _unconnected()
        try:
            with client, server:
                while message := await _receive_message(client):
                    plan = self.decide(self._note(message))
                    answer = b""
                    if plan.sent:
                        await _connect(server, self.upstream)
                        forwarded = _KEY.sub(b"", message, count=1) if self.strip_keys else message
                        await _send(server, forwarded[: math.ceil(len(forwarded) * plan.sent)])
                        if plan.answered is not None and not (answer := await _receive_message(server)):
                            break  # the server has closed the connection, so close the client's, too
                    if plan.instead is not None:
                        answer = plan.instead
                    await _send(client, answer[: math.ceil(len(answer) * (plan.answered or 0))])
                    if plan.end is not None:
                        await plan.end(self, client)
                        break
        except OSError:
            pass  # one side has closed its connection, and `with` closes the other one

    def _note(self, message: bytes) -> Request:
        found = _KEY.search(message)
        request = Request(len(self.requests) + 1, None if found is None else found[1].decode(), message)
        self.requests.append(request)
        return request


@asynccontextmanager
async def proxy(
    upstream: int,
    decide: Callable[[Request], Plan],
    *,
    takes: Callable[[int], bool] = bool,
    strip_keys: bool = False,
) -> AsyncGenerator[Proxy]:
    """Run a proxy.

    Args:
        upstream: The port of the server, on this machine.
        decide: Returns the plan of a request.
        takes: Returns whether to accept the connection with this number (1 is the first) or to reset it at once.
        strip_keys: Whether to remove the idempotency keys from the requests.
    """
    with _bound(0) as reserved:  # never listens, but reserves the port while the proxy is shut
        running = Proxy(upstream, reserved.getsockname()[1], decide, takes, strip_keys)
        running.open()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(running.run)
                yield running
                tasks.cancel_scope.cancel()
        finally:
            running.shut()


# ---- sockets


def _unconnected() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _bound(port: int) -> socket.socket:
    sock = _unconnected()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def _connect(sock: socket.socket, port: int) -> None:
    """Connect the socket, if it is not connected."""
    try:
        sock.getpeername()
    except OSError:
        try:
            sock.connect(("127.0.0.1", port))
        except BlockingIOError:
            await anyio.wait_writable(sock)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "not connected") from None


async def _send(sock: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            await anyio.wait_writable(sock)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(_CHUNK)
        except BlockingIOError:
            await anyio.wait_readable(sock)


async def _receive_message(sock: socket.socket) -> bytes:
    """Return one whole message, head and body; empty if the other side closes the connection before its end."""
    message = b""
    end = None
    while end is None or len(message) < end:
        if not (data := await _receive(sock)):
            return b""
        message += data
        if end is None and (head := message.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(message, 0, head)
            end = head + 4 + (0 if length is None else int(length[1]))
    return message
