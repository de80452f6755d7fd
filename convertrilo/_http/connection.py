"""One HTTP/1.1 connection to one origin, on asyncio and trio."""

import math
import select
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import anyio
import anyio.abc
import h11
import httpx

BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""The errors of a stream whose connection failed."""

_READ_SIZE = 65536
_BODY_READ_SIZE = 256 * 1024  # as much as asyncio receives at a time: smaller reads would copy the rest
_PIECE_SIZE = 256 * 1024
_LARGEST_HEAD = 102400


def reason_of(error: BaseException) -> str:
    """Return the message of an error, or of its cause."""
    return str(error.__cause__ or error) or type(error).__name__


def deadline_in(timeout: float | None) -> float:
    """Return the event loop's time at which a timeout in seconds ends; infinity for None."""
    return math.inf if timeout is None else anyio.current_time() + timeout


class Origin(NamedTuple):
    """The address of a server."""

    scheme: str
    host: str
    port: int


class Connection:
    """One connection to one origin, for one request at a time."""

    def __init__(self, origin: Origin, stream: anyio.abc.ByteStream) -> None:
        self.origin: Origin = origin
        self.idle_since: float = 0.0
        """Monotonic seconds at which the connection became idle."""
        self.silent: bool = True
        """Whether the server has sent nothing since the current request began."""
        self._stream = stream
        self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  # anyio's extra, not Django's
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)

    async def send(self, request: httpx.Request, timeouts: Mapping[str, float | None]) -> h11.Response:
        """Send a request, and return the head of its answer."""
        self.silent = True
        request.extensions["begun"] = True
        try:
            await self._send(request, timeouts.get("write"))
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        except httpx.WriteError:
            pass  # a server that rejects a request early may have answered before it closed the connection
        while not isinstance(event := await self.receive(timeouts.get("read")), h11.Response):
            pass  # an informational response
        return event

    async def _send(self, request: httpx.Request, timeout: float | None) -> None:
        # The head and the start of the body share one send, which is enough for most requests.
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        pending = self._http.send(head) or b""
        if isinstance(request.stream, httpx.ByteStream):
            for chunk in request.stream:
                data = self._http.send(h11.Data(data=chunk)) or b""
                if len(data) > _PIECE_SIZE:
                    await self._write(pending, timeout)
                    await self._write(data, timeout, len(data) - _PIECE_SIZE)
                    pending = data[-_PIECE_SIZE:]
                else:
                    pending += data
        else:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            request.extensions["complete"] = True  # any chunk may be the last
            chunks = aiter(request.stream)
            try:
                async for chunk in chunks:
                    await self._write(pending + (self._http.send(h11.Data(data=chunk)) or b""), timeout)
                    pending = b""
            finally:
                # Trio warns about an async generator that is not finished.
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
        pending += self._http.send(h11.EndOfMessage()) or b""
        request.extensions["complete"] = True
        if pending:
            await self._write(pending, timeout)

    async def _write(self, data: bytes, timeout: float | None, end: int | None = None) -> None:
        # Send in pieces, because the event loop copies the rest of data that the socket takes only in part.
        end = len(data) if end is None else end
        for start in range(0, end, _PIECE_SIZE):
            try:
                with anyio.CancelScope(deadline=deadline_in(timeout)) as scope:
                    await self._stream.send(data[start : min(start + _PIECE_SIZE, end)])
            except BROKEN as error:
                raise httpx.WriteError(reason_of(error)) from error
            if scope.cancelled_caught:
                raise httpx.WriteTimeout(f"not sent within {timeout:g} s")

    async def receive(self, timeout: float | None) -> Any:
        """Return the next event of the answer."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise httpx.RemoteProtocolError(str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            is_body = self._http.their_state is h11.SEND_BODY
            data = await self._read(_BODY_READ_SIZE if is_body else _READ_SIZE, timeout)
            if data:
                self.silent = False
            elif self._http.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("the server closed the connection without an answer")
            self._http.receive_data(data)

    async def _read(self, size: int, timeout: float | None) -> bytes:
        try:
            with anyio.CancelScope(deadline=deadline_in(timeout)):
                return await self._stream.receive(size)
        except anyio.EndOfStream:
            return b""
        except BROKEN as error:
            raise httpx.ReadError(reason_of(error)) from error
        raise httpx.ReadTimeout(f"nothing received for {timeout:g} s")

    def finish(self) -> bool:
        """Prepare for the next request; return False if the current one did not end cleanly."""
        http = self._http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        return True

    def closed_by_server(self) -> bool:
        """Return whether the server closed an idle connection: it is readable only if its end has arrived."""
        fileno = self._socket.fileno()
        if fileno < 0:
            return True
        if not hasattr(select, "poll"):  # on Windows, where select() takes any socket
            return bool(select.select([fileno], [], [], 0)[0])
        poller = select.poll()
        poller.register(fileno, select.POLLIN)
        return bool(poller.poll(0))

    async def aclose(self) -> None:
        """Close the connection."""
        # Closing does not wait, because TLS sends no closing message here, so the shield needs no time limit.
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()
