"""The wire: a last-in-first-out pool of single HTTP/1.1 connections as an httpx transport, on asyncio and trio."""

import contextlib
import math
import select
import ssl
import time
import urllib.request
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, Self

import anyio
import anyio.abc
import httpcore
import httpx

MAX_CONNECTIONS = 100

# Uvicorn, Apache and Node close a connection that was idle for 5 s. Dropping ours before that leaves no moment in
# which a request and the server's goodbye cross on the wire.
KEEPALIVE_EXPIRY = 4.0

_CLOSED = "the transport is closed, and sends no more requests"
_PORTS = {"http": 80, "https": 443}
_BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
_HTTPX_ERRORS: Mapping[type[Exception], type[httpx.RequestError]] = {
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.WriteTimeout: httpx.WriteTimeout,
}
_HTTPCORE_ERRORS = tuple(_HTTPX_ERRORS)


def _to_httpx(error: Exception, request: httpx.Request) -> httpx.RequestError:
    return _HTTPX_ERRORS[type(error)](str(error), request=request)


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else anyio.current_time() + timeout


class _Stream(httpcore.AsyncNetworkStream):
    """An anyio stream as httpcore wants it, for one request at a time.

    Against httpcore's own it saves a send (the head goes out with the start of the body) and a timer per request.
    """

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  # anyio's extra, not Django's
        self.begin()

    def begin(self) -> None:
        """Expect a request: its head comes first, and waits for what follows it."""
        self._head: bytes | None = None
        self.silent = True

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._head is None:
            self._head = buffer
            return None
        if not buffer:
            return None
        buffer, self._head = self._head + buffer, b""
        try:
            with anyio.CancelScope(deadline=_deadline(timeout)):
                return await self._stream.send(buffer)
        except _BROKEN as error:
            raise httpcore.WriteError(_reason(error)) from error
        raise httpcore.WriteTimeout(f"not sent within {timeout:g} s")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with anyio.CancelScope(deadline=_deadline(timeout)):
                if self._head:
                    head, self._head = self._head, b""
                    # A server that refuses early may have answered before it hung up.
                    with contextlib.suppress(*_BROKEN):
                        await self._stream.send(head)
                data = await self._stream.receive(max_bytes)
                self.silent = False
                return data
        except anyio.EndOfStream:
            return b""
        except _BROKEN as error:
            raise httpcore.ReadError(_reason(error)) from error
        raise httpcore.ReadTimeout(f"nothing received for {timeout:g} s")

    async def aclose(self) -> None:
        # Closing waits for nobody, as TLS says no goodbye here, so the shield needs no bound.
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()

    def readable(self) -> bool:
        """Whether there is something to read, be it the end."""
        fileno = self._socket.fileno()
        if fileno < 0:
            return True
        if not hasattr(select, "poll"):  # Windows, where select() takes any socket
            return bool(select.select([fileno], [], [], 0)[0])
        poller = select.poll()
        poller.register(fileno, select.POLLIN)
        return bool(poller.poll(0))


class _Connection:
    """One connection, for one request at a time."""

    def __init__(self, origin: httpcore.Origin, stream: _Stream) -> None:
        self.origin = origin
        self.stream = stream
        self.http = httpcore.AsyncHTTP11Connection(origin, stream)
        self.idle_since = 0.0


class _Payload:
    """The body of a request, read anew each time it is sent.

    When a send fails halfway, httpcore drops the iterator, and trio warns of an async generator dropped so.
    """

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._chunks = aiter(self._stream)
        return self._chunks

    async def aclose(self) -> None:
        aclose: Callable[[], Awaitable[None]] | None = getattr(self._chunks, "aclose", None)
        if aclose is not None:
            await aclose()


class _Exchange(httpx.AsyncByteStream):
    """One request, and the body of its answer. It borrows a slot of the pool until it is closed."""

    connection: _Connection
    _answer: httpcore.Response
    _body: AsyncIterator[bytes]

    def __init__(self, request: httpx.Request, give_back: "Callable[[_Exchange], Awaitable[None]]") -> None:
        url = request.url
        if url.scheme not in _PORTS:
            raise httpx.UnsupportedProtocol(f"only http and https are spoken here, not {url.scheme!r}", request=request)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        extensions: dict[str, Any] = request.extensions  # pyright: ignore[reportUnknownMemberType]  # no type
        port = url.port or _PORTS[url.scheme]
        self.origin = httpcore.Origin(url.raw_scheme, url.raw_host, port)
        self.payload = _Payload(request.stream)
        self.core = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=port, target=url.raw_path),
            headers=request.headers.raw,
            content=self.payload,
            extensions=extensions,
        )
        self.request = request
        self.timeouts: Mapping[str, float | None] = extensions.get("timeout", {})
        self.repeatable = extensions.get("repeatable") is True and isinstance(request.stream, httpx.ByteStream)
        self._give_back: Callable[[_Exchange], Awaitable[None]] | None = give_back

    def begin(self, connection: _Connection, answer: httpcore.Response) -> None:
        """Have the head of the answer, and its body ahead."""
        assert isinstance(answer.stream, AsyncIterable)
        self.connection = connection
        self._answer = answer
        self._body = aiter(answer.stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._body)
        except StopAsyncIteration:
            raise
        except _HTTPCORE_ERRORS as error:
            await self.aclose()
            raise _to_httpx(error, self.request) from error
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is None:
            return
        try:
            await self._answer.aclose()
            if not self.connection.http.is_idle():
                # Closed early. Trio warns of an async generator left halfway, and httpcore leaves two: on a closed
                # connection they run to their end at once.
                with anyio.CancelScope(shield=True), contextlib.suppress(*_HTTPCORE_ERRORS):
                    async for _ in self._body:
                        pass
        finally:
            await give_back(self)


class PoolTransport(httpx.AsyncBaseTransport):
    """Sends a request on the connection that became idle last, or on a new one.

    A request's `extensions` may hold httpx's `timeout` (seconds to `connect`, to `read` or `write` anything, and, as
    `pool`, to wait for a free connection), and `repeatable`: True where sending it twice does no harm. When the server
    closed an idle connection just as the request went out, a repeatable one whose body is in memory goes again, once,
    on a new connection; any other fails, as nobody knows whether it arrived.

    Args:
        max_connections: Most connections open at once, idle ones included, to all origins. More requests wait in line.
        keepalive_expiry: Seconds after which an idle connection is dropped.
        ssl_context: For https; made at the first https request where none is given. It is set to offer HTTP/1.1 alone.
        clock: Monotonic seconds, which `keepalive_expiry` is measured by.

    Raises:
        httpx.TransportError: From a request, as httpx's own transports do, with the request attached.
        RuntimeError: From a request after `aclose`.
    """

    def __init__(
        self,
        *,
        max_connections: int = MAX_CONNECTIONS,
        keepalive_expiry: float = KEEPALIVE_EXPIRY,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = anyio.CapacityLimiter(max_connections)
        self._keepalive_expiry = keepalive_expiry
        self._ssl_context = ssl_context
        self._clock = clock
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []  # the longest idle first
        self._closed = False

    @property
    def in_flight(self) -> int:
        """How many requests have a connection or are opening one."""
        return self._slots.borrowed_tokens

    @property
    def idle(self) -> int:
        """How many connections are open and unused."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many requests wait in line for a connection."""
        return self._slots.statistics().tasks_waiting

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; its connection is free again once the response is read to its end or closed."""
        exchange = _Exchange(request, self._give_back)
        try:
            # The exchange borrows the slot, not the task: a task may hold several open responses.
            self._slots.acquire_on_behalf_of_nowait(exchange)
        except anyio.WouldBlock:
            await self._wait_in_line(exchange)
        try:
            answer = await self._send(exchange)
        except _HTTPCORE_ERRORS as error:
            self._slots.release_on_behalf_of(exchange)
            raise _to_httpx(error, request) from error
        except BaseException:
            self._slots.release_on_behalf_of(exchange)
            raise
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=exchange,
            request=request,
            extensions=answer.extensions,  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # no type
        )

    async def aclose(self) -> None:
        """Close every connection; requests in flight fail, and later ones are refused."""
        self._closed = True
        self._idle.clear()
        while self._open:
            await self._close(next(iter(self._open)))

    async def _wait_in_line(self, exchange: _Exchange) -> None:
        timeout = exchange.timeouts.get("pool")
        with anyio.CancelScope(deadline=_deadline(timeout)) as scope:
            await self._slots.acquire_on_behalf_of(exchange)
        if scope.cancelled_caught:
            raise httpx.PoolTimeout(f"no connection was free within {timeout:g} s", request=exchange.request)

    async def _send(self, exchange: _Exchange) -> httpcore.Response:
        connection = await self._reuse(exchange.origin)
        if connection is not None:
            try:
                return await self._send_on(connection, exchange)
            except (httpcore.ReadError, httpcore.RemoteProtocolError):
                if not (exchange.repeatable and connection.stream.silent):
                    raise
        return await self._send_on(await self._connect(exchange), exchange)

    async def _send_on(self, connection: _Connection, exchange: _Exchange) -> httpcore.Response:
        connection.stream.begin()
        try:
            answer = await connection.http.handle_async_request(exchange.core)
            if connection.stream.silent:
                # These bytes came with the answer before this one.
                raise httpcore.RemoteProtocolError("the server sent more than it was asked for")
        except BaseException:
            await self._close(connection)
            await exchange.payload.aclose()
            raise
        exchange.begin(connection, answer)
        return answer

    async def _reuse(self, origin: httpcore.Origin) -> _Connection | None:
        expired = self._clock() - self._keepalive_expiry
        while self._idle and self._idle[0].idle_since <= expired:
            await self._close(self._idle.pop(0))
        while (connection := self._pop_idle(origin)) is not None:
            # All that an idle connection can have to say is that the server closed it.
            if not connection.stream.readable():
                return connection
            await self._close(connection)
        return None

    def _pop_idle(self, origin: httpcore.Origin) -> _Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin:
                return self._idle.pop(index)
        return None

    async def _connect(self, exchange: _Exchange) -> _Connection:
        # The slot is ours, but idle connections of other origins may fill the house.
        while self._idle and self.in_flight + len(self._idle) > self._slots.total_tokens:
            await self._close(self._idle.pop(0))
        if self._closed:
            raise RuntimeError(_CLOSED)
        origin = exchange.origin
        host, port = origin.host.decode("ascii"), origin.port
        timeout = exchange.timeouts.get("connect")
        try:
            with anyio.CancelScope(deadline=_deadline(timeout)):
                stream: anyio.abc.ByteStream
                if origin.scheme == b"http":
                    stream = await anyio.connect_tcp(host, port)
                else:
                    stream = await anyio.connect_tcp(host, port, ssl_context=self._tls, tls_standard_compatible=False)
                connection = _Connection(origin, _Stream(stream))
                self._open.add(connection)
                if self._closed:
                    await self._close(connection)
                    raise RuntimeError(_CLOSED)
                return connection
        except (*_BROKEN, anyio.EndOfStream, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}:{port}: {_reason(error)}") from error
        raise httpcore.ConnectTimeout(f"{host}:{port}: not connected within {timeout:g} s")

    async def _give_back(self, exchange: _Exchange) -> None:
        connection = exchange.connection
        try:
            if connection.http.is_idle() and not self._closed:
                connection.idle_since = self._clock()
                self._idle.append(connection)
            else:
                await self._close(connection)
        finally:
            self._slots.release_on_behalf_of(exchange)

    async def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        await connection.stream.aclose()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = self._ssl_context or httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context


class _ProxyTransport(httpx.AsyncBaseTransport):
    """Sends a request through the proxy of its scheme, except to the hosts of `NO_PROXY`."""

    def __init__(self, direct: httpx.AsyncBaseTransport, proxies: Mapping[str, httpx.AsyncBaseTransport]) -> None:
        self._direct = direct
        self._proxies = proxies

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._proxies.get(request.url.scheme, self._direct)
        if urllib.request.proxy_bypass(request.url.netloc.decode("ascii")):
            transport = self._direct
        try:
            response = await transport.handle_async_request(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        response.request = request
        return response

    async def aclose(self) -> None:
        for transport in (self._direct, *self._proxies.values()):
            await transport.aclose()


def make_transport(
    *,
    max_connections: int = MAX_CONNECTIONS,
    keepalive_expiry: float = KEEPALIVE_EXPIRY,
    ssl_context: ssl.SSLContext | None = None,
) -> httpx.AsyncBaseTransport:
    """Make a `PoolTransport`, behind which httpx's own transport serves what the environment has a proxy for.

    `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read as Python's `urllib` reads them, which includes
    the system's settings on macOS and Windows.

    Args:
        max_connections: Most connections open at once, in the pool and to each proxy.
        keepalive_expiry: Seconds after which an idle connection is dropped.
        ssl_context: For https; made when it is needed where none is given.
    """
    configured = urllib.request.getproxies()
    proxies = {scheme: proxy for scheme in _PORTS if (proxy := configured.get(scheme) or configured.get("all"))}
    if not proxies:
        return PoolTransport(
            max_connections=max_connections, keepalive_expiry=keepalive_expiry, ssl_context=ssl_context
        )
    verify = ssl_context or httpx.create_ssl_context()
    limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=keepalive_expiry)
    return _ProxyTransport(
        PoolTransport(max_connections=max_connections, keepalive_expiry=keepalive_expiry, ssl_context=verify),
        {
            scheme: httpx.AsyncHTTPTransport(
                verify=verify, limits=limits, proxy=proxy if "://" in proxy else f"http://{proxy}"
            )
            for scheme, proxy in proxies.items()
        },
    )
