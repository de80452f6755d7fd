"""The wire: a last-in-first-out pool of single HTTP/1.1 connections as an httpx transport, on asyncio and trio."""

import math
import select
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Self

import anyio
import anyio.abc
import h11
import httpx

MAX_CONNECTIONS = 100

# Uvicorn, Apache and Node close a connection that was idle for 5 s. Dropping ours before that leaves no moment in
# which a request and the server's goodbye cross on the wire.
KEEPALIVE_EXPIRY = 4.0

_CLOSED = "the transport is closed, and sends no more requests"
_PORTS = {"http": 80, "https": 443}
_READ_SIZE = 65536
_BODY_READ_SIZE = 256 * 1024  # as much as asyncio receives at a time: to cut that into pieces is to copy it
_PIECE_SIZE = 256 * 1024
_LARGEST_HEAD = 102400
_BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else anyio.current_time() + timeout


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Connection:
    """One connection to one origin, for one request at a time."""

    def __init__(self, origin: _Origin, stream: anyio.abc.ByteStream) -> None:
        self.origin: _Origin = origin
        self.idle_since: float = 0.0
        self.silent: bool = True
        self._stream = stream
        self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  # anyio's extra, not Django's
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)

    async def send(self, request: httpx.Request, timeouts: Mapping[str, float | None]) -> h11.Response:
        """Send a request and return the head of its answer."""
        self.silent = True
        request.extensions["begun"] = True
        try:
            await self._send(request, timeouts.get("write"))
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        except httpx.WriteError:
            pass  # a server that refuses early may have answered before it hung up
        while not isinstance(event := await self.receive(timeouts.get("read")), h11.Response):
            pass  # an informational response
        return event

    async def _send(self, request: httpx.Request, timeout: float | None) -> None:
        # The head goes out with the start of the body: one send for most requests.
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
            request.extensions["complete"] = True  # any of its pieces may be the last
            chunks = aiter(request.stream)
            try:
                async for chunk in chunks:
                    await self._write(pending + (self._http.send(h11.Data(data=chunk)) or b""), timeout)
                    pending = b""
            finally:
                # Trio warns of an async generator that is left halfway.
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
        pending += self._http.send(h11.EndOfMessage()) or b""
        request.extensions["complete"] = True
        if pending:
            await self._write(pending, timeout)

    async def _write(self, data: bytes, timeout: float | None, end: int | None = None) -> None:
        # In pieces: what is left of a send that the socket does not take whole is copied.
        end = len(data) if end is None else end
        for start in range(0, end, _PIECE_SIZE):
            try:
                with anyio.CancelScope(deadline=_deadline(timeout)) as scope:
                    await self._stream.send(data[start : min(start + _PIECE_SIZE, end)])
            except _BROKEN as error:
                raise httpx.WriteError(_reason(error)) from error
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
            with anyio.CancelScope(deadline=_deadline(timeout)):
                return await self._stream.receive(size)
        except anyio.EndOfStream:
            return b""
        except _BROKEN as error:
            raise httpx.ReadError(_reason(error)) from error
        raise httpx.ReadTimeout(f"nothing received for {timeout:g} s")

    def finish(self) -> bool:
        """Make ready for the next request, unless this one ended in any other way than cleanly."""
        http = self._http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        return True

    def closed_by_server(self) -> bool:
        """Whether an idle connection has something to read, which can only be its end."""
        fileno = self._socket.fileno()
        if fileno < 0:
            return True
        if not hasattr(select, "poll"):  # Windows, where select() takes any socket
            return bool(select.select([fileno], [], [], 0)[0])
        poller = select.poll()
        poller.register(fileno, select.POLLIN)
        return bool(poller.poll(0))

    async def aclose(self) -> None:
        # Closing waits for nobody, as TLS says no goodbye here, so the shield needs no bound.
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()


class _Exchange(httpx.AsyncByteStream):
    """One request, and the body of its answer. It borrows a slot of the pool until it is closed."""

    connection: _Connection

    def __init__(self, pool: "PoolTransport", request: httpx.Request) -> None:
        url = request.url
        if url.scheme not in _PORTS:
            raise httpx.UnsupportedProtocol(f"only http and https are spoken here, not {url.scheme!r}", request=request)
        extensions: dict[str, Any] = request.extensions  # pyright: ignore[reportUnknownMemberType]  # httpx has no type
        self.request = request
        self.origin: _Origin = _Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])
        self.timeouts: Mapping[str, float | None] = extensions.get("timeout", {})
        self.repeatable: bool = extensions.get("repeatable") is True and isinstance(request.stream, httpx.ByteStream)
        self._pool: PoolTransport | None = pool

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            event = await self.connection.receive(self.timeouts.get("read"))
        except httpx.RequestError as error:
            error.request = self.request
            await self.aclose()
            raise
        except BaseException:
            await self.aclose()
            raise
        if isinstance(event, h11.Data):
            return event.data
        raise StopAsyncIteration

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.give_back(self)


class PoolTransport(httpx.AsyncBaseTransport):
    """Sends a request on the connection that became idle last, or on a new one.

    A request's `extensions` may hold httpx's `timeout` (seconds to `connect`, to `read` or `write` anything, and, as
    `pool`, to wait for a free connection), and `repeatable`: True where sending it twice does no harm. When the server
    closed an idle connection just as the request went out, a repeatable one whose body is in memory goes again, once,
    on a new connection; any other fails, as nobody knows whether it arrived. Afterwards they hold `begun`, whether any
    of it may have gone out, and `complete`, whether all of it may.

    Args:
        max_connections: Most connections open at once, idle ones included, to all origins. More requests wait in line.
        keepalive_expiry: Seconds after which an idle connection is dropped.
        ssl_context: For https; made at the first https request where none is given. It is set to offer HTTP/1.1 alone.
        clock: Monotonic seconds, which `keepalive_expiry` is measured by.

    Raises:
        httpx.TransportError: From a request, as httpx's own transports do, with the request attached.
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
        exchange = _Exchange(self, request)
        for how_far in ("begun", "complete"):
            request.extensions.setdefault(how_far, False)  # a caller's own transport may be sending it again
        try:
            # The exchange borrows the slot, not the task: a task may hold several open responses.
            self._slots.acquire_on_behalf_of_nowait(exchange)
        except anyio.WouldBlock:
            await self._wait_in_line(exchange)
        try:
            answer = await self._send(exchange)
        except httpx.RequestError as error:
            self._slots.release_on_behalf_of(exchange)
            error.request = request
            raise
        except BaseException:
            self._slots.release_on_behalf_of(exchange)
            raise
        return httpx.Response(
            answer.status_code,
            headers=answer.headers.raw_items(),
            stream=exchange,
            request=request,
            extensions={"http_version": b"HTTP/" + answer.http_version, "reason_phrase": answer.reason},
        )

    async def give_back(self, exchange: _Exchange) -> None:
        """Keep the connection if its answer ended cleanly, close it if not, and let the next request have the slot."""
        connection = exchange.connection
        try:
            if connection.finish() and not self._closed:
                connection.idle_since = self._clock()
                self._idle.append(connection)
            else:
                await self._close(connection)
        finally:
            self._slots.release_on_behalf_of(exchange)

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

    async def _send(self, exchange: _Exchange) -> h11.Response:
        connection = await self._reuse(exchange.origin)
        if connection is not None:
            try:
                return await self._send_on(connection, exchange)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                if not (exchange.repeatable and connection.silent):
                    raise
        return await self._send_on(await self._connect(exchange), exchange)

    async def _send_on(self, connection: _Connection, exchange: _Exchange) -> h11.Response:
        try:
            answer = await connection.send(exchange.request, exchange.timeouts)
        except BaseException:
            await self._close(connection)
            raise
        exchange.connection = connection
        return answer

    async def _reuse(self, origin: _Origin) -> _Connection | None:
        expired = self._clock() - self._keepalive_expiry
        while self._idle and self._idle[0].idle_since <= expired:
            await self._close(self._idle.pop(0))
        while (connection := self._pop_idle(origin)) is not None:
            # All that an idle connection can have to say is that the server closed it.
            if not connection.closed_by_server():
                return connection
            await self._close(connection)
        return None

    def _pop_idle(self, origin: _Origin) -> _Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin:
                return self._idle.pop(index)
        return None

    async def _connect(self, exchange: _Exchange) -> _Connection:
        # The slot is ours, but idle connections of other origins may fill the house.
        while self._idle and self.in_flight + len(self._idle) > self._slots.total_tokens:
            await self._close(self._idle.pop(0))
        if self._closed:
            raise httpx.ConnectError(_CLOSED)
        origin = exchange.origin
        host, port = origin.host, origin.port
        timeout = exchange.timeouts.get("connect")
        try:
            with anyio.CancelScope(deadline=_deadline(timeout)):
                stream: anyio.abc.ByteStream
                if origin.scheme == "http":
                    stream = await anyio.connect_tcp(host, port)
                else:
                    stream = await anyio.connect_tcp(
                        host,
                        port,
                        ssl_context=self._tls,
                        tls_standard_compatible=False,
                    )
                connection = _Connection(origin, stream)
                self._open.add(connection)
                if self._closed:
                    await self._close(connection)
                    raise httpx.ConnectError(_CLOSED)
                return connection
        except (*_BROKEN, anyio.EndOfStream, UnicodeError) as error:
            raise httpx.ConnectError(f"{host}:{port}: {_reason(error)}") from error
        raise httpx.ConnectTimeout(f"{host}:{port}: not connected within {timeout:g} s")

    async def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        await connection.aclose()

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
