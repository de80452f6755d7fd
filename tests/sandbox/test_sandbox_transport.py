"""The in-process transport behaves like a connection."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup
from sandbox_help import JOB
from starlette.types import ASGIApp, Receive, Scope, Send

from convertrilo.sandbox import Sandbox
from convertrilo.sandbox.transport import InProcessTransport


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo every piece of the request before reading the next."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]})
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message["more_body"]
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    await anyio.sleep_forever()


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("a bug")


@asynccontextmanager
async def in_process(app: ASGIApp) -> AsyncGenerator[httpx.AsyncClient]:
    async with anyio.create_task_group() as tasks:
        async with httpx.AsyncClient(transport=InProcessTransport(app, tasks, "http://a.example")) as http:
            yield http
        tasks.cancel_scope.cancel()


async def test_other_hosts_are_refused(bare: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ConnectError):
        await bare.get("https://api.example.com/jobs")


async def begun(app: ASGIApp, tasks: TaskGroup) -> tuple[httpx.Response, AsyncIterator[bytes]]:
    """Return a response whose body is unread, and the pieces of the body."""
    transport = InProcessTransport(app, tasks, "http://a.example")
    answer = await transport.handle_async_request(httpx.Request("GET", "http://a.example/"))
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    return answer, aiter(answer.stream)


async def test_an_answers_pieces_arrive_one_by_one_and_wait_for_their_reader() -> None:
    async with anyio.create_task_group() as tasks:
        answer, pieces = await begun(endless, tasks)
        for _ in range(3):
            assert await anext(pieces) == b"x" * 1000
        await answer.aclose()
        # The app is not cancelled: it ends because its reader is gone.


async def test_a_request_is_read_piece_by_piece() -> None:
    given: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            given.append(number)
            yield bytes([number])

    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["more_body"]:
            seen.append(len(given))
        assert message["body"] == b""
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with in_process(app) as http:
        assert (await http.post("http://a.example/", content=pieces())).status_code == 204
    assert seen == [1, 2, 3]


async def test_a_body_goes_through_unchanged() -> None:
    async with in_process(echo) as http:
        answer = await http.post("http://a.example/p%20q?r", content=b"body")
        assert (answer.content, answer.headers["x-path"]) == (b"body", "/p q")


async def test_a_read_timeout_is_kept() -> None:
    async with in_process(silent) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("http://a.example/", timeout=0.01)


async def test_a_bug_in_the_app_is_raised_where_it_is_seen() -> None:
    async with in_process(broken) as http:
        with pytest.raises(ZeroDivisionError):
            await http.get("http://a.example/")


async def test_an_answer_whose_server_ends_in_the_middle_is_not_taken_for_whole() -> None:
    async with anyio.create_task_group() as tasks:
        _, pieces = await begun(endless, tasks)
        assert await anext(pieces) == b"x" * 1000
        tasks.cancel_scope.cancel()
    with pytest.raises(httpx.RemoteProtocolError):
        [piece async for piece in pieces]


async def test_many_callers_at_once_and_a_third_of_them_give_up(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    async def create(number: int) -> None:
        with anyio.CancelScope() as scope:
            if number % 3 == 0:
                scope.cancel()
            answer = await http.post("/jobs", json=JOB, headers={"idempotency-key": str(number)})
            assert answer.status_code == 200

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(create, number)
    keys = [job.idempotency_key for job in sandbox.jobs]
    assert len(keys) == len(set(keys))
    assert {str(number) for number in range(300) if number % 3} <= set(keys)


async def test_a_closed_sandbox_refuses() -> None:
    async with Sandbox() as sandbox:
        transport = sandbox.transport()
    with pytest.raises(httpx.ConnectError, match="closed"):
        await transport.handle_async_request(httpx.Request("GET", sandbox.base_url))


async def test_a_sandbox_that_is_not_entered_says_so() -> None:
    sandbox = Sandbox()
    for _ in range(2):
        for use in (lambda: sandbox.jobs, lambda: sandbox.tokens, sandbox.client, sandbox.transport):
            with pytest.raises(RuntimeError, match="not entered"):
                use()
        assert sandbox.requests == []
        async with sandbox:
            with pytest.raises(RuntimeError, match="entered already"):
                await sandbox.__aenter__()
            assert sandbox.jobs == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "gstreamer"}, "the encoders are ffmpeg, instant"),
        ({"tokens": -1}, "not -1"),
        ({"max_encodes": 0}, "and 0"),
    ],
)
def test_a_sandbox_that_cannot_be_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sandbox(**options)


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with Sandbox():
            raise KeyError("mine")
