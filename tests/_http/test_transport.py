"""The connection pool: reuse, the cap, expiry, dead connections, streams, errors, cancellation, closing."""

import os
import random
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from fake_clock import FakeClock
from loopback import Handler, Received, answer, echo, fetch, loopback, send, sockets_to, until

from convertrilo._http.transport import PoolTransport

REPEATABLE = {"repeatable": True}
REQUESTS = 10_000 if os.environ.get("CHAOS_SCALE") == "full" else 3_000
"""How many of them are made while a third is cancelled."""


class Gate:
    """A handler that lets everybody wait until the gate is opened."""

    def __init__(self) -> None:
        self.opened = anyio.Event()

    async def __call__(self, request: Received) -> bytes:
        await self.opened.wait()
        return await echo(request)


async def test_the_connection_that_became_idle_last_is_used_first() -> None:
    async with loopback(echo) as server, PoolTransport() as transport:
        first, second, third = [await send(transport, server.url) for _ in range(3)]
        for response in (second, first, third):
            await response.aread()
        assert (transport.idle, transport.in_flight) == (3, 0)
        for _ in range(3):
            await fetch(transport, server.url)
        held = [await send(transport, server.url) for _ in range(3)]
        assert [request.connection for request in server.requests] == [1, 2, 3, 3, 3, 3, 3, 1, 2]
        for response in held:
            await response.aclose()


async def test_requests_above_the_cap_wait_their_turn() -> None:
    gate = Gate()
    async with loopback(gate) as server, PoolTransport(max_connections=2) as transport:
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(fetch, transport, f"{server.url}/{number}")
                await until(lambda: transport.in_flight + transport.waiting == number + 1)  # noqa: B023  # awaited here
            await until(lambda: len(server.requests) == 2)
            assert (transport.in_flight, transport.waiting) == (2, 4)
            gate.opened.set()
        assert sorted(request.target for request in server.requests[:2]) == ["/0", "/1"]
        assert sorted(request.target for request in server.requests[2:4]) == ["/2", "/3"]
        assert server.accepted == 2
        assert (transport.in_flight, transport.waiting, transport.idle) == (0, 0, 2)


async def test_no_free_connection_in_time_is_a_pool_timeout() -> None:
    async with loopback(echo) as server, PoolTransport(max_connections=1) as transport:
        response = await send(transport, server.url)
        with pytest.raises(httpx.PoolTimeout) as caught:
            await send(transport, f"{server.url}/late", extensions={"timeout": {"pool": 0.01}})
        assert caught.value.request.url.path == "/late"
        assert (transport.in_flight, transport.waiting) == (1, 0)
        await response.aread()
        assert await fetch(transport, f"{server.url}/next") == b"/next"


async def test_one_task_may_hold_several_responses() -> None:
    async with loopback(echo) as server, PoolTransport(max_connections=3) as transport:
        responses = [await send(transport, f"{server.url}/{number}") for number in range(3)]
        assert [await response.aread() for response in responses] == [b"/0", b"/1", b"/2"]


async def test_a_connection_idle_for_too_long_is_dropped() -> None:
    clock = FakeClock()
    async with loopback(echo) as server, PoolTransport(keepalive_expiry=5, clock=clock.monotonic) as transport:
        old, young = [await send(transport, server.url) for _ in range(2)]
        await old.aread()
        clock.advance(3)
        await young.aread()
        clock.advance(3)
        await fetch(transport, server.url)
        assert [request.connection for request in server.requests] == [1, 2, 2]
        assert (transport.idle, len(sockets_to(server))) == (1, 1)
        clock.advance(5)
        await fetch(transport, server.url)
        assert server.accepted == 3
        assert (transport.idle, len(sockets_to(server))) == (1, 1)


async def test_a_connection_the_server_closed_while_idle_is_not_used() -> None:
    async with loopback(echo) as server, PoolTransport() as transport:
        held = [await send(transport, server.url) for _ in range(3)]
        for response in held:
            await response.aread()
        await server.hang_up()
        assert await fetch(transport, f"{server.url}/again", content=b"!") == b"/again!"
        assert server.accepted == 4
        assert (transport.idle, len(sockets_to(server))) == (1, 1)


async def silence(request: Received) -> None:
    """Hang up."""


async def reset(request: Received) -> None:
    """Hang up rudely, so that the client's read fails instead of ending."""
    raw = request.stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def half_an_answer(request: Received) -> None:
    await request.stream.send(b"HTTP/1.1 200 O")


async def stream_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("last_words", [silence, reset])
async def test_a_repeatable_request_survives_a_server_that_closes_the_connection_just_then(last_words: Handler) -> None:
    async def handler(request: Received) -> bytes | None:
        return await last_words(request) if request.connection == 1 and request.target == "/2" else await echo(request)

    async with loopback(handler) as server, PoolTransport() as transport:
        await fetch(transport, f"{server.url}/1")
        assert await fetch(transport, f"{server.url}/2", content=b"once", extensions=REPEATABLE) == b"/2once"
        sent = [(request.connection, request.target) for request in server.requests]
        assert sent == [(1, "/1"), (1, "/2"), (2, "/2")]
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 1, 1)


@pytest.mark.parametrize(
    ("last_words", "content", "extensions", "error"),
    [
        pytest.param(silence, lambda: b"x", {}, httpx.RemoteProtocolError, id="not repeatable"),
        pytest.param(reset, lambda: b"x", {}, httpx.ReadError, id="not repeatable, reset"),
        pytest.param(silence, lambda: stream_of(b"x"), REPEATABLE, httpx.RemoteProtocolError, id="streamed body"),
        pytest.param(half_an_answer, lambda: b"x", REPEATABLE, httpx.RemoteProtocolError, id="half an answer came"),
    ],
)
async def test_any_other_request_is_sent_once(
    last_words: Handler, content: Callable[[], Any], extensions: dict[str, Any], error: type[Exception]
) -> None:
    async def handler(request: Received) -> bytes | None:
        return await last_words(request) if request.target == "/2" else await echo(request)

    async with loopback(handler) as server, PoolTransport() as transport:
        await fetch(transport, f"{server.url}/1")
        with pytest.raises(error):
            await fetch(transport, f"{server.url}/2", content=content(), extensions=extensions)
        assert [request.target for request in server.requests] == ["/1", "/2"]
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)


async def test_a_server_that_always_hangs_up_is_asked_twice_at_most() -> None:
    async def handler(request: Received) -> bytes | None:
        return await (silence if request.target == "/2" else echo)(request)

    async with loopback(handler) as server, PoolTransport() as transport:
        await fetch(transport, f"{server.url}/1")
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, f"{server.url}/2", extensions=REPEATABLE)
        assert [request.target for request in server.requests] == ["/1", "/2", "/2"]
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(transport, f"{server.url}/2", extensions=REPEATABLE)
        assert len(server.requests) == 4


async def test_idle_connections_of_other_origins_make_room() -> None:
    async with loopback(echo) as one, loopback(echo) as two, PoolTransport(max_connections=1) as transport:
        for _ in range(3):
            for server in (one, two, two):
                assert await fetch(transport, f"{server.url}/x") == b"/x"
                assert (transport.idle, len(sockets_to(one, two))) == (1, 1)
        assert (one.accepted, two.accepted) == (3, 3)


async def test_the_longest_idle_connection_makes_room_first() -> None:
    async with loopback(echo) as one, loopback(echo) as two, loopback(echo) as three:
        async with PoolTransport(max_connections=2) as transport:
            for server in (one, two, three, two, three):
                await fetch(transport, server.url)
        assert (one.accepted, two.accepted, three.accepted) == (1, 1, 1)


async def test_many_tasks_to_several_origins_all_get_through_a_narrow_cap() -> None:
    got: list[bytes] = []

    async def ask(url: str) -> None:
        got.append(await fetch(transport, url))

    async with loopback(echo) as one, loopback(echo) as two, loopback(echo) as three:
        async with PoolTransport(max_connections=2) as transport, anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(ask, f"{(one, two, three)[number % 3].url}/{number}")
        assert sorted(got, key=lambda target: int(target[1:])) == [b"/%d" % number for number in range(60)]


async def test_a_body_is_streamed_both_ways() -> None:
    go_on = anyio.Event()

    async def handler(request: Received) -> bytes:
        await request.stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        return b"3\r\ntwo\r\n0\r\n\r\n"

    async with loopback(handler) as server, PoolTransport() as transport:
        response = await send(transport, server.url, content=stream_of(b"alpha", b"beta"))
        parts = []
        async for part in response.aiter_raw():
            parts.append(part)
            go_on.set()
        assert parts == [b"one", b"two"]
        assert server.requests[0].body == b"alphabeta"
        assert (transport.in_flight, transport.idle) == (0, 1)


async def test_a_response_that_is_not_read_closes_its_connection() -> None:
    async with loopback(echo) as server, PoolTransport() as transport:
        response = await send(transport, server.url)
        await response.aclose()
        await response.aclose()
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)


async def test_a_connection_that_the_server_will_close_is_not_kept() -> None:
    async def handler(request: Received) -> bytes:
        return answer(b"bye", headers=["Connection: close"])

    async with loopback(handler) as server, PoolTransport() as transport:
        assert await fetch(transport, server.url) == b"bye"
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)


async def test_bytes_after_an_answer_are_not_taken_for_the_next_one() -> None:
    async def handler(request: Received) -> bytes:
        return await echo(request) + (answer(b"an answer nobody asked for") if request.target == "/1" else b"")

    async with loopback(handler) as server, PoolTransport() as transport:
        assert await fetch(transport, f"{server.url}/1") == b"/1"
        assert await fetch(transport, f"{server.url}/2", content=b"!", extensions=REPEATABLE) == b"/2!"
        assert server.requests[-1].connection == 2


async def test_small_requests_are_not_held_back_by_the_kernel() -> None:
    async with loopback(echo) as server, PoolTransport() as transport:
        await fetch(transport, server.url)
        (client,) = sockets_to(server)
        with socket.socket(fileno=os.dup(client)) as twin:
            assert twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def endless(request: Received) -> None:
    await request.stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await request.stream.send(b"3\r\nand\r\n")


def other_end(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The other end of what the next connection will be."""
    ours, theirs = socket.socketpair()

    async def connect(*_: Any, **__: Any) -> anyio.abc.ByteStream:
        return await anyio.abc.UNIXSocketStream.from_socket(ours)

    monkeypatch.setattr(anyio, "connect_tcp", connect)
    return theirs


async def test_an_answer_of_a_server_that_has_stopped_reading_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses what is too large before it has all of it: the answer says why, and not that a pipe is broken."""
    with other_end(monkeypatch) as theirs:
        theirs.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        theirs.shutdown(socket.SHUT_RD)
        async with PoolTransport() as transport:
            response = await send(transport, "http://too-large.test/", content=bytes(10_000_000))
            assert (response.status_code, await response.aread()) == (413, b"no")
            assert (transport.in_flight, transport.idle) == (0, 0)


class Streamed(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"film"


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        ({"content": b""}, True),
        ({"content": bytes(100_000)}, True),
        ({"content": bytes(10_000_000)}, False),
        ({"stream": Streamed(), "headers": {"Host": "gone.test", "Content-Length": "4"}}, True),
    ],
    ids=["empty", "small", "big", "streamed"],
)
async def test_a_request_says_whether_all_of_it_may_have_gone_out(
    body: Any, complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_end(monkeypatch).close()
    async with PoolTransport() as transport:
        request = httpx.Request("POST", "http://gone.test/", **body)
        with pytest.raises(httpx.TransportError):
            await transport.handle_async_request(request)
        assert (request.extensions["begun"], request.extensions["complete"]) == (True, complete)


async def test_a_response_closed_early_closes_its_connection() -> None:
    async with loopback(endless) as server, PoolTransport() as transport:
        response = await send(transport, server.url)
        chunks = response.aiter_raw()
        assert isinstance(chunks, AsyncGenerator)
        async with aclosing(chunks):
            assert (await anext(chunks)).startswith(b"and")
        await response.aclose()
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)
        await until(lambda: not server.streams)


async def garbage(request: Received) -> bytes:
    return b"SSH-2.0-OpenSSH_9.9\r\n\r\n"


async def cut_short(request: Received) -> None:
    await request.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


async def stall(request: Received) -> None:
    await anyio.sleep_forever()


async def stall_in_the_body(request: Received) -> None:
    await request.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "request_", "error"),
    [
        pytest.param(echo, {"url": "http://{nobody}"}, httpx.ConnectError, id="nobody listens"),
        pytest.param(echo, {"url": f"http://{'a' * 64}.test"}, httpx.ConnectError, id="no host can have that name"),
        pytest.param(echo, {"url": "ftp://127.0.0.1"}, httpx.UnsupportedProtocol, id="another protocol"),
        pytest.param(echo, {"headers": {"X-Bad": "one\ntwo"}}, httpx.LocalProtocolError, id="an illegal header"),
        pytest.param(silence, {}, httpx.RemoteProtocolError, id="no answer"),
        pytest.param(reset, {}, httpx.ReadError, id="a reset"),
        pytest.param(garbage, {}, httpx.RemoteProtocolError, id="not HTTP"),
        pytest.param(cut_short, {}, httpx.RemoteProtocolError, id="half a body"),
        pytest.param(stall, {"timeout": {"read": 0.01}}, httpx.ReadTimeout, id="no answer in time"),
        pytest.param(stall_in_the_body, {"timeout": {"read": 0.01}}, httpx.ReadTimeout, id="half a body in time"),
    ],
)
async def test_what_goes_wrong_is_an_error_of_httpx_and_leaves_nothing_behind(
    handler: Handler, request_: dict[str, Any], error: type[httpx.RequestError], nobody: str
) -> None:
    async with loopback(handler) as server, PoolTransport() as transport:
        request = httpx.Request(
            request_.get("method", "GET"),
            request_.get("url", server.url).replace("{nobody}", nobody),
            headers=request_.get("headers"),
            content=request_.get("content"),
            extensions={"timeout": request_.get("timeout", {})},
        )
        with pytest.raises(error) as caught:
            await (await transport.handle_async_request(request)).aread()
        assert type(caught.value) is error
        assert caught.value.request is request
        assert str(caught.value)
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)


async def test_a_server_that_does_not_read_is_a_write_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it accepts nothing; the system fills its buffers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with PoolTransport() as transport:
            extensions = {"timeout": {"write": 0.01}}
            with anyio.fail_after(60), pytest.raises(httpx.WriteTimeout):
                await send(transport, url, content=bytes(2**25), extensions=extensions)
            assert (transport.in_flight, transport.idle) == (0, 0)


async def test_closing_ends_what_is_in_flight_and_refuses_what_comes_later() -> None:
    failures: list[type[Exception]] = []

    async def ask() -> None:
        try:
            await fetch(transport, server.url)
        except (httpx.ReadError, httpx.ConnectError) as error:
            failures.append(type(error))

    async with loopback(stall) as server, anyio.create_task_group() as tasks:
        transport = PoolTransport(max_connections=2)
        for _ in range(3):
            tasks.start_soon(ask)
        await until(lambda: (len(server.requests), transport.waiting) == (2, 1))
        await transport.aclose()
        await until(lambda: len(failures) == 3)
        assert sorted(failures, key=str) == [httpx.ConnectError, httpx.ReadError, httpx.ReadError]
        with pytest.raises(httpx.ConnectError, match="the transport is closed"):
            await fetch(transport, server.url)
        assert (transport.in_flight, transport.idle, len(sockets_to(server))) == (0, 0, 0)


async def test_closing_closes_idle_connections() -> None:
    async with loopback(echo) as server:
        async with PoolTransport() as transport:
            await fetch(transport, server.url)
            assert len(sockets_to(server)) == 1
        assert (transport.idle, len(sockets_to(server))) == (0, 0)
        await transport.aclose()


async def test_cancelled_requests_leave_neither_slot_nor_socket_behind() -> None:
    rng = random.Random(8)
    numbers = iter(range(REQUESTS))
    reused: set[int] = set()
    answered = cancelled = 0

    async def handler(request: Received) -> bytes | None:
        target = request.target.encode()
        behaviour = rng.randrange(10)
        if behaviour == 0 and request.connection in reused:
            return None
        reused.add(request.connection)
        if behaviour == 1:
            return answer(target, headers=["Connection: close"])
        if behaviour in (2, 3, 4):
            await request.stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n/" % len(target))
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            return target[1:]
        return answer(target)

    async def cancel(scope: anyio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async def work() -> None:
        nonlocal answered, cancelled
        for number in numbers:
            with anyio.CancelScope() as scope:
                if number % 2:
                    # Steps, not seconds: few enough to meet requests in line, connecting, sending and receiving.
                    tasks.start_soon(cancel, scope, rng.randrange(10))
                assert await fetch(transport, f"{server.url}/{number}", extensions=REPEATABLE) == b"/%d" % number
                answered += 1
            cancelled += scope.cancelled_caught

    async with loopback(handler) as server:
        async with PoolTransport(max_connections=30) as transport:
            async with anyio.create_task_group() as tasks:
                for _ in range(36):
                    tasks.start_soon(work)
            assert answered + cancelled == REQUESTS
            assert cancelled >= REQUESTS / 3
            assert (transport.in_flight, transport.waiting) == (0, 0)
            assert 0 < transport.idle == len(sockets_to(server)) <= 30
        assert len(sockets_to(server)) == 0
