"""The connection pool over TLS, and the proxies of the environment."""

import random
import ssl
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest
import trustme
from anyio.streams.tls import TLSAttribute
from loopback import Received, answer, echo, fetch, loopback, send, sockets_to

from convertrilo._http.transport import PoolTransport, make_transport


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_https_connections_are_reused_and_speak_http_1_1(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def handler(request: Received) -> bytes:
        protocol: str | None = request.stream.extra(TLSAttribute.alpn_protocol)
        return answer(f"{protocol} {len(request.body)}".encode())

    async with loopback(handler, ssl_context=server_tls) as server, PoolTransport(ssl_context=client_tls) as transport:
        for size in (0, 10, 300_000):
            assert await fetch(transport, server.url, content=bytes(size)) == b"http/1.1 %d" % size
        assert (server.accepted, transport.idle) == (1, 1)
        await server.hang_up()
        assert await fetch(transport, server.url) == b"http/1.1 0"
        assert (server.accepted, transport.idle, len(sockets_to(server))) == (2, 1, 1)


async def test_the_tls_context_is_made_once_and_not_before_it_is_needed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []

    def make() -> ssl.SSLContext:
        made.append(client_tls)
        return client_tls

    monkeypatch.setattr(httpx, "create_ssl_context", make)
    async with loopback(echo) as plain, loopback(echo, ssl_context=server_tls) as secure, PoolTransport() as transport:
        await fetch(transport, plain.url)
        assert made == []
        responses = [await send(transport, secure.url) for _ in range(2)]
        for response in responses:
            await response.aread()
        assert secure.accepted == 2
        assert len(made) == 1


async def test_a_certificate_of_an_unknown_authority_is_refused(server_tls: ssl.SSLContext) -> None:
    async with loopback(echo, ssl_context=server_tls) as server, PoolTransport() as transport:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await fetch(transport, server.url)
        assert (transport.in_flight, len(sockets_to(server))) == (0, 0)


async def test_a_certificate_of_another_host_is_refused(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with loopback(echo, ssl_context=server_tls) as server, PoolTransport(ssl_context=client_tls) as transport:
        with pytest.raises(httpx.ConnectError, match="certificate is not valid for 'localhost'"):
            await fetch(transport, server.url.replace("127.0.0.1", "localhost"))
        assert (transport.in_flight, len(sockets_to(server))) == (0, 0)


async def say_nothing(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await anyio.sleep_forever()


async def hang_up(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await stream.receive()


async def speak_plainly(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(answer(b"no TLS here"))


@pytest.mark.parametrize(
    ("accept", "timeout", "error"),
    [
        (say_nothing, 0.05, httpx.ConnectTimeout),
        (hang_up, 60.0, httpx.ConnectError),
        (speak_plainly, 60.0, httpx.ConnectError),
    ],
)
async def test_a_handshake_that_goes_wrong_is_a_connection_that_failed(
    accept: Callable[[anyio.abc.SocketStream], Awaitable[None]],
    timeout: float,
    error: type[Exception],
    client_tls: ssl.SSLContext,
) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, accept)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with PoolTransport(ssl_context=client_tls) as transport:
            with pytest.raises(error):
                await send(transport, f"https://127.0.0.1:{port}", extensions={"timeout": {"connect": timeout}})
            assert (transport.in_flight, transport.idle) == (0, 0)
        tasks.cancel_scope.cancel()


async def test_handshakes_that_are_cancelled_leave_nothing_behind(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    rng = random.Random(8)
    numbers = iter(range(200))
    cancelled = 0

    async def handler(request: Received) -> bytes:
        return answer(headers=["Connection: close"])

    async def cancel(scope: anyio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async def work() -> None:
        nonlocal cancelled
        for _ in numbers:
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel, scope, rng.randrange(30))
                await fetch(transport, server.url)
            cancelled += scope.cancelled_caught

    async with loopback(handler, ssl_context=server_tls) as server, PoolTransport(ssl_context=client_tls) as transport:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(work)
        assert 40 < cancelled < 200
        assert (transport.in_flight, transport.waiting, transport.idle) == (0, 0, 0)
        assert sockets_to(server) == []


async def proxy(request: Received) -> bytes | None:
    """Be a proxy: tunnel CONNECT, and answer for the whole web otherwise."""
    if request.method != "CONNECT":
        return answer(b"proxied " + request.target.encode())
    host, _, port = request.target.partition(":")
    async with await anyio.connect_tcp(host, int(port)) as upstream, anyio.create_task_group() as tasks:

        async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
            async for chunk in source:
                await sink.send(chunk)
            tasks.cancel_scope.cancel()

        await request.stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
        tasks.start_soon(pump, request.stream, upstream)
        tasks.start_soon(pump, upstream, request.stream)
    return None


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "proxied"),
    [
        ({}, False),
        ({"HTTP_PROXY": "{proxy}"}, True),
        ({"http_proxy": "{proxy}"}, True),
        ({"http_proxy": "127.0.0.1:{port}"}, True),
        ({"ALL_PROXY": "{proxy}"}, True),
        ({"HTTPS_PROXY": "{proxy}"}, False),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "example.test"}, True),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "example.test, 127.0.0.1"}, False),
        ({"HTTP_PROXY": "{proxy}", "NO_PROXY": "*"}, False),
    ],
)
async def test_the_proxies_of_the_environment_are_used(
    variables: dict[str, str], proxied: bool, environment: pytest.MonkeyPatch
) -> None:
    async with loopback(proxy) as forwarder, loopback(echo) as server:
        for name, value in variables.items():
            environment.setenv(name, value.format(proxy=forwarder.url, port=forwarder.port))
        async with make_transport() as transport:
            body = await fetch(transport, f"{server.url}/x")
        assert body == (f"proxied {server.url}/x" if proxied else "/x").encode()
        assert (forwarder.accepted, server.accepted) == (int(proxied), int(not proxied))
        assert sockets_to(forwarder, server) == []


async def test_https_goes_through_a_tunnel_of_the_proxy(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, environment: pytest.MonkeyPatch
) -> None:
    async with loopback(proxy) as forwarder, loopback(echo, ssl_context=server_tls) as server:
        environment.setenv("HTTPS_PROXY", forwarder.url)
        async with make_transport(ssl_context=client_tls) as transport:
            assert await fetch(transport, f"{server.url}/x", content=b"y") == b"/xy"
        assert [request.method for request in forwarder.requests] == ["CONNECT"]


async def test_without_a_proxy_the_pool_itself_serves(environment: pytest.MonkeyPatch) -> None:
    async with make_transport() as transport:
        assert isinstance(transport, PoolTransport)


async def test_an_error_behind_a_proxy_tells_the_request(nobody: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", f"http://{nobody}")
    async with make_transport() as transport:
        with pytest.raises(httpx.ConnectError) as caught:
            await fetch(transport, "http://example.test/x")
        assert caught.value.request.url == "http://example.test/x"
