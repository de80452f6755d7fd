"""Serve a sandbox on a port: uvicorn in the running event loop, or in a thread with its own loop."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from signal import SIGINT, SIGTERM, Signals
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import attrs
import uvicorn
from anyio import open_signal_receiver
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from convertrilo.sandbox.api.app import ABORT

if TYPE_CHECKING:
    from convertrilo.sandbox.sandbox import Sandbox


@attrs.frozen
class SandboxServer:
    """A sandbox that is served on a port, from its own thread."""

    base_url: str
    """The base URL, on loopback."""
    api_key: str = attrs.field(repr=False)
    """An API key with all scopes."""
    sandbox: "Sandbox"
    """The sandbox, for `jobs`, `requests`, `tokens`, `webhooks`, `faults` and the assertions.

    Its clock belongs to the sandbox's thread.
    """


class _Protocol(H11Protocol):
    """HTTP/1.1 with connections that faults can break."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself narrows it
        super().connection_made(transport)
        # Without this, sending head and body takes 40 ms; asyncio sets it only for sockets created as IPPROTO_TCP.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inner: ASGIApp = self.app

        def abort(how: str) -> None:
            if how == "cut_response":
                transport.close()  # the bytes sent before still arrive
            else:
                transport.abort()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), ABORT: abort}
            try:
                await inner(scope, receive, send)
            except asyncio.CancelledError:  # the server stops; uvicorn would respond with 500 and log a traceback
                transport.abort()
                await asyncio.sleep(0)  # let the protocol notice the lost connection

        self.app = app


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to its host, and has events for its start and end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self.ended = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Do nothing: signals belong to the host program."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and set `ended` afterwards."""
        try:
            await super().serve(sockets)
        finally:
            self.ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and set `ready`."""
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serve(sandbox: "Sandbox", *, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str]:
    """Serve an entered sandbox on a port, in this event loop, and yield its base URL.

    This needs asyncio, because uvicorn does; `serve_in_thread` works beside any event loop. The default host is
    loopback, so that other machines cannot use the sandbox.

    Args:
        sandbox: an entered sandbox.
        host: the address to bind to.
        port: the port; 0 takes a free one.

    Raises:
        RuntimeError: the event loop is not asyncio.
        OSError: the port is taken.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        message = "serve() needs asyncio, because uvicorn does; serve_in_thread() runs beside any event loop"
        raise RuntimeError(message) from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        config = uvicorn.Config(
            sandbox.app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = _Server(config)
        sandbox.task_group.start_soon(partial(server.serve, sockets=[listener]))
        try:
            await server.ready.wait()
            shown = f"[{host}]" if family == socket.AF_INET6 else host
            yield f"http://{shown}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            with anyio.CancelScope(shield=True):
                await server.ended.wait()


async def serve_until_stopped(
    sandbox: "Sandbox", announce: Callable[[str], None], *, host: str = "127.0.0.1", port: int = 0
) -> None:
    """Enter a sandbox and serve it until Ctrl-C or SIGTERM; then stop its encodes and remove unfinished outputs.

    Args:
        sandbox: a sandbox that is not entered yet.
        announce: called with the base URL once the server is ready; the sandbox then has its `api_key`.
        host: the address to bind to; an address other than loopback admits other machines.
        port: the port; 0 takes a free one.

    Raises:
        RuntimeError: the event loop is not asyncio, or another sandbox uses the same state.
        OSError: the port is taken.
    """
    async with AsyncExitStack() as stack:
        signals: AsyncIterator[Signals] | None = None
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels the main task
            # Entered first: from here on, a signal ends the block instead of the process.
            signals = stack.enter_context(open_signal_receiver(SIGINT, SIGTERM))
        await stack.enter_async_context(sandbox)
        announce(await stack.enter_async_context(serve(sandbox, host=host, port=port)))
        if signals is None:
            await anyio.sleep_forever()
        else:
            await anext(aiter(signals))


@contextmanager
def serve_in_thread(sandbox: "Sandbox", *, host: str = "127.0.0.1", port: int = 0) -> Generator[str]:
    """Run a sandbox in a thread with its own event loop, and yield its base URL.

    Use this in programs on trio, or without an event loop. `sandbox.jobs`, `.requests`, `.tokens` and `.faults` may be
    used from the caller's thread; the clock and the awaitable methods may not. Two busy threads of one process compete
    for the GIL: for load tests, run `convertrilo sandbox` as a separate process.

    Args:
        sandbox: a sandbox that is not entered yet; it is entered and left in the thread.
        host: the address to bind to.
        port: the port; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    with (
        anyio.from_thread.start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(sandbox),
        portal.wrap_async_context_manager(serve(sandbox, host=host, port=port)) as base_url,
    ):
        yield base_url
