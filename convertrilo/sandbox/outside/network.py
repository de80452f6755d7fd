"""Connections to hosts named in requests: one policy decides which hosts are allowed, and no other host is reached."""

import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import cast

import anyio
import httpx

from convertrilo.sandbox.state.problem import MediaError, Problem
from convertrilo.sandbox.state.streams import write_stream

_TIMEOUT = httpx.Timeout(30.0)


class _BorrowedTransport(httpx.AsyncBaseTransport):
    """Passes requests on to a transport, and leaves closing it to the owner."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)


class Network:
    """Opens connections to sources and output stores.

    Args:
        transport: replaces network connections; host names are then not resolved.
        allow_private: whether this machine and hosts in private networks are allowed.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None, *, allow_private: bool) -> None:
        self._transport = transport
        self._allow_private = allow_private

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context(trust_env=False)  # cached: creating one takes 20 ms

    def client(self) -> httpx.AsyncClient:
        """Return an HTTP client; send its requests with `send`."""
        transport = None if self._transport is None else _BorrowedTransport(self._transport)
        return httpx.AsyncClient(transport=transport, verify=self._tls, timeout=_TIMEOUT, trust_env=False)

    async def addresses(self, host: str, *, resolve: bool = True) -> list[str]:
        """Return the addresses of a host, after checking that all of them are allowed.

        The list is empty if the name is not resolved here: `resolve` is false, or there is a `transport`.

        Args:
            host: a name or an address.
            resolve: whether to look a name up.

        Raises:
            Problem: 400 `private_ip_blocked`, `host_not_resolvable`.
        """
        literal = _address(host)
        if literal is None and (self._transport is not None or not resolve):
            if host.lower() == "localhost" and not self._allow_private:
                raise _private(host)
            return []
        if literal is not None:
            found = [str(literal)]
        else:
            try:
                infos = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                raise Problem(400, "host_not_resolvable", f"The host {host} cannot be resolved.") from None
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        if not self._allow_private and not all(ipaddress.ip_address(each).is_global for each in found):
            raise _private(host)
        return found

    async def send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Send a request to an allowed host and return the response with its body unread; follow no redirects.

        Raises:
            Problem: the host is not allowed.
            httpx.HTTPError: there is no response.
        """
        found = await self.addresses(request.url.host)
        if not found:
            return await client.send(request, stream=True)
        # Connect to a checked address: the name may resolve to another address a moment later.
        request.extensions["sni_hostname"] = request.url.host
        for address in found[:-1]:
            request.url = request.url.copy_with(host=address)
            # localhost resolves to ::1 first, but most servers listen on 127.0.0.1 only.
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await client.send(request, stream=True)
        request.url = request.url.copy_with(host=found[-1])
        return await client.send(request, stream=True)


async def save(response: httpx.Response, target: Path, *, limit: int) -> None:
    """Stream a response body to a file.

    Raises:
        MediaError: the body ends early.
        Problem: 400 `file_too_large`.
        httpx.HTTPError: the connection breaks.
    """
    chunks = cast("AsyncGenerator[bytes]", response.aiter_bytes())
    written = await write_stream(chunks, target, limit=limit)
    length = response.headers.get("content-length", str(written.size))
    if str(written.size) != length:
        await anyio.Path(target).unlink()
        raise MediaError(f"the source ended after {written.size} of its {length} bytes")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _private(host: str) -> Problem:
    return Problem(400, "private_ip_blocked", f"The host {host} is in a private network.")
