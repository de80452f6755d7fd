"""An httpx transport that passes requests to the sandbox's ASGI app in process, without a socket.

Both directions stream as over a connection: a body is passed on piece by piece, and each piece waits for its reader.
The app runs in the sandbox's own tasks, so it continues when a caller gives up, as a real server would.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import httpx
from starlette.types import ASGIApp, Message

from convertrilo.sandbox.api.app import ABORT

_BROKEN: dict[str, Callable[[httpx.Request], httpx.TransportError]] = {
    "refuse": lambda request: httpx.ConnectError("connection refused", request=request),
    "cut_response": lambda request: httpx.RemoteProtocolError("the answer ended early", request=request),
}


def _reset(request: httpx.Request) -> httpx.TransportError:
    return httpx.ReadError("connection reset by peer", request=request)


class InProcessTransport(httpx.AsyncBaseTransport):
    """Sends requests for the sandbox's host to the sandbox, and refuses all others.

    Args:
        app: the sandbox's ASGI app.
        tasks: the task group that runs the app.
        base_url: the URL whose host is served.
    """

    def __init__(self, app: ASGIApp, tasks: anyio.abc.TaskGroup, base_url: str) -> None:
        self._app = app
        self._tasks = tasks
        self._base = httpx.URL(base_url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the app and return the response."""
        url = request.url
        if (url.host, url.port) != (self._base.host, self._base.port):
            raise httpx.ConnectError(f"the sandbox serves {self._base.host} only, not {url.host}", request=request)
        timeout: dict[str, float | None] = request.extensions.get("timeout", {})
        exchange = _AsgiExchange(request, timeout.get("read"))
        try:
            self._tasks.start_soon(exchange.run, self._app)
        except RuntimeError:
            raise httpx.ConnectError("the sandbox is closed", request=request) from None
        try:
            await exchange.send_body(timeout.get("write"))
            status, headers = await exchange.head()
        except BaseException:
            exchange.hang_up()
            raise
        return httpx.Response(status, headers=headers, stream=_ResponseBody(exchange), request=request)


class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, exchange: "_AsgiExchange") -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self  # not a generator: that would have to be closed when iteration ends early

    async def __anext__(self) -> bytes:
        if chunk := await self._exchange.next_chunk():
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._exchange.hang_up()


class _HungUpError(OSError):
    """The client is gone, so nothing can be sent; ASGI asks servers to raise an OSError."""


class _AsgiExchange:
    """One request and its response, between the client's task and the app's."""

    def __init__(self, request: httpx.Request, read_timeout: float | None) -> None:
        self._request = request
        self._read_timeout = read_timeout
        self._sent: deque[bytes] = deque()
        self._sent_all = False
        self._read_all = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._error: BaseException | None = None
        self._gone = False
        self._changed: anyio.Event | None = None  # created only when a task waits

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()

    # ---- the client's side

    async def send_body(self, timeout: float | None) -> None:
        """Pass the request body on, until all is sent or a response arrives early."""
        stream = self._request.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        pieces = stream.__aiter__()
        try:
            async for chunk in pieces:
                self._sent.append(chunk)
                self._notify()
                if not isinstance(stream, httpx.ByteStream):
                    with anyio.move_on_after(timeout) as scope:
                        await self._until(lambda: not self._sent or self._answered)
                    if scope.cancelled_caught:
                        raise httpx.WriteTimeout("the sandbox does not read the request body", request=self._request)
                    if self._answered:
                        break
        finally:
            if isinstance(pieces, AsyncGenerator):  # httpx's generator; the loop may end early
                await pieces.aclose()
        self._sent_all = True
        self._notify()

    @property
    def _answered(self) -> bool:
        return self._head is not None or self._error is not None

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Wait for the status and headers of the response."""
        await self._read(lambda: self._answered)
        if self._head is None:
            assert self._error is not None
            raise self._error
        return self._head

    async def next_chunk(self) -> bytes:
        """Return the next piece of the response body; an empty piece is the end."""
        await self._read(lambda: self._chunks or self._finished or self._error)
        if self._chunks:
            chunk = self._chunks.popleft()
            self._notify()
            return chunk
        if self._error is not None:
            raise self._error
        return b""

    async def _read(self, condition: Callable[[], Any]) -> None:
        if condition():
            return
        with anyio.move_on_after(self._read_timeout) as scope:
            await self._until(condition)
        if scope.cancelled_caught:
            raise httpx.ReadTimeout("the sandbox did not answer in time", request=self._request)

    def hang_up(self) -> None:
        """Tell the app that the client is gone."""
        self._gone = True
        self._notify()

    # ---- the app's side

    async def run(self, app: ASGIApp) -> None:
        """Run the app for the request; an exception in the app is raised in the client."""
        try:
            await app(self._scope(), self._receive, self._send)
        except _HungUpError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again in the client's task
            self._error = self._error or error
        finally:
            if not self._finished and self._error is None:  # as if a server had died
                self._error = (_reset if self._head is None else _BROKEN["cut_response"])(self._request)
            self._finished = True
            self._notify()

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": (url.host, url.port),
            "extensions": {ABORT: self._abort},
        }

    def _abort(self, how: str) -> None:
        self._error = _BROKEN.get(how, _reset)(self._request)
        self._gone = True
        self._notify()

    async def _receive(self) -> Message:
        await self._until(lambda: self._gone or (not self._read_all and (self._sent or self._sent_all)))
        if self._gone:
            return {"type": "http.disconnect"}
        chunk = self._sent.popleft() if self._sent else b""
        self._read_all = self._sent_all and not self._sent
        self._notify()
        return {"type": "http.request", "body": chunk, "more_body": not self._read_all}

    async def _send(self, message: Message) -> None:
        if self._gone:
            raise _HungUpError("the client hung up")
        if message["type"] == "http.response.start":
            self._head = (message["status"], list(message.get("headers", ())))
        elif body := message.get("body", b""):
            self._chunks.append(bytes(body))
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._finished = True
        self._notify()
        if message.get("more_body"):
            await self._until(lambda: not self._chunks or self._gone)
