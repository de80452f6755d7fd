"""The transport: a last-in-first-out pool of HTTP/1.1 connections, and httpx's own transport for proxies."""

import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Self

import anyio
import anyio.abc
import h11
import httpx

from convertrilo._http.connection import BROKEN, Connection, Origin, deadline_in, reason_of

MAX_CONNECTIONS = 100

# Uvicorn, Apache and Node close a connection that was idle for 5 s. The pool drops it earlier, so that no request
# goes out while the server closes the connection.
KEEPALIVE_EXPIRY = 4.0

_CLOSED = "the transport is closed"
_PORTS = {"http": 80, "https": 443}


class _Exchange(httpx.AsyncByteStream):
    """One request and the body of its answer; it holds a slot of the pool until it is closed."""

    connection: Connection

    def __init__(self, pool: "PoolTransport", request: httpx.Request) -> None:
        url = request.url
        if url.scheme not in _PORTS:
            raise httpx.UnsupportedProtocol(
                f"the URL must begin with http:// or https://, not {url.scheme!r}", request=request
            )
        extensions: dict[str, Any] = request.extensions  # pyright: ignore[reportUnknownMemberType]  # httpx has no type
        self.request = request
        self.origin: Origin = Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])
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

    The transport reads these `extensions` of a request:

    - `timeout`, as in httpx: seconds to `connect`, to `read` or `write` some data, and, as `pool`, to wait for a free
      connection.
    - `repeatable`: True if the request may be sent twice. When the server closed an idle connection just as a
      repeatable request with its body in memory went out, the transport sends the request once more, on a new
      connection. Any other request fails, because it may have arrived.

    The transport sets two more: `begun`, whether any byte of the request may have been sent, and `complete`, whether
    the whole request may have been sent.

    Args:
        max_connections: The maximum number of open connections to all origins, including idle connections. Further
            requests wait.
        keepalive_expiry: Seconds after which an idle connection is dropped.
        ssl_context: For https; by default created with the first https request. The pool sets it to offer HTTP/1.1
            only.
        clock: Returns monotonic seconds, for `keepalive_expiry`.

    Raises:
        httpx.TransportError: A request failed; the error has the request attached, as in httpx's own transports.
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
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []  # the longest idle first
        self._closed = False

    @property
    def in_flight(self) -> int:
        """The number of requests that have a connection or are opening one."""
        return self._slots.borrowed_tokens

    @property
    def idle(self) -> int:
        """The number of open connections that no request uses."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a connection."""
        return self._slots.statistics().tasks_waiting

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; its connection becomes free once the response is read to its end or closed."""
        exchange = _Exchange(self, request)
        for how_far in ("begun", "complete"):
            request.extensions.setdefault(how_far, False)  # another transport may be sending the request again
        try:
            # The exchange holds the slot, not the task: a task may hold several open responses.
            self._slots.acquire_on_behalf_of_nowait(exchange)
        except anyio.WouldBlock:
            await self._wait_for_slot(exchange)
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
        """Keep the connection if its answer ended cleanly, else close it; then free its slot for the next request."""
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
        """Close every connection; requests in flight and later requests fail."""
        self._closed = True
        self._idle.clear()
        while self._open:
            await self._close(next(iter(self._open)))

    async def _wait_for_slot(self, exchange: _Exchange) -> None:
        timeout = exchange.timeouts.get("pool")
        with anyio.CancelScope(deadline=deadline_in(timeout)) as scope:
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

    async def _send_on(self, connection: Connection, exchange: _Exchange) -> h11.Response:
        try:
            answer = await connection.send(exchange.request, exchange.timeouts)
        except BaseException:
            await self._close(connection)
            raise
        exchange.connection = connection
        return answer

    async def _reuse(self, origin: Origin) -> Connection | None:
        expired = self._clock() - self._keepalive_expiry
        while self._idle and self._idle[0].idle_since <= expired:
            await self._close(self._idle.pop(0))
        while (connection := self._pop_idle(origin)) is not None:
            # An idle connection is readable only because the server closed it.
            if not connection.closed_by_server():
                return connection
            await self._close(connection)
        return None

    def _pop_idle(self, origin: Origin) -> Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin:
                return self._idle.pop(index)
        return None

    async def _connect(self, exchange: _Exchange) -> Connection:
        # This request holds a slot, but idle connections to other origins may exhaust max_connections.
        while self._idle and self.in_flight + len(self._idle) > self._slots.total_tokens:
            await self._close(self._idle.pop(0))
        if self._closed:
            raise httpx.ConnectError(_CLOSED)
        origin = exchange.origin
        host, port = origin.host, origin.port
        timeout = exchange.timeouts.get("connect")
        try:
            with anyio.CancelScope(deadline=deadline_in(timeout)):
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
                connection = Connection(origin, stream)
                self._open.add(connection)
                if self._closed:
                    await self._close(connection)
                    raise httpx.ConnectError(_CLOSED)
                return connection
        except (*BROKEN, anyio.EndOfStream, UnicodeError) as error:
            raise httpx.ConnectError(f"{host}:{port}: {reason_of(error)}") from error
        raise httpx.ConnectTimeout(f"{host}:{port}: not connected within {timeout:g} s")

    async def _close(self, connection: Connection) -> None:
        self._open.discard(connection)
        await connection.aclose()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = self._ssl_context or httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context


class _ProxyTransport(httpx.AsyncBaseTransport):
    """Sends a request through the proxy for its scheme, except to the hosts in `NO_PROXY`."""

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
    """Return a `PoolTransport`, with httpx's own transport for the requests that go through a proxy.

    `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` have the same meaning as in Python's `urllib`, which also
    reads the system's settings on macOS and Windows.

    Args:
        max_connections: The maximum number of open connections, in the pool and to each proxy.
        keepalive_expiry: Seconds after which an idle connection is dropped.
        ssl_context: For https; by default created when it is needed.
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
