"""The sandbox over a port: uvicorn inside the running event loop, or in a thread of its own."""

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
    from convertrilo.sandbox import Sandbox


@attrs.frozen
class SandboxServer:
    """A sandbox that is served on a port, from a thread of its own."""

    base_url: str
    """Where it is, on loopback."""
    api_key: str = attrs.field(repr=False)
    """A key with all scopes."""
    sandbox: "Sandbox"
    """For `jobs`, `requests`, `tokens`, `webhooks`, `faults` and the assertions; its clock is its thread's."""


class _Protocol(H11Protocol):
    """HTTP/1.1 whose connections can be broken on purpose."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself narrows it
        super().connection_made(transport)
        # asyncio does it for sockets made as IPPROTO_TCP only; head and body go out apart: without it that takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inner: ASGIApp = self.app

        def abort(how: str) -> None:
            if how == "cut_response":
                transport.close()  # what was sent still arrives
            else:
                transport.abort()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), ABORT: abort}
            try:
                await inner(scope, receive, send)
            except asyncio.CancelledError:  # the server ends: uvicorn would answer 500, and log a traceback
                transport.abort()
                await asyncio.sleep(0)  # until it knows that the connection is lost

        self.app = app


class _Server(uvicorn.Server):
    """uvicorn as a guest: signals are the host's, beginning and end are events."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self.ended = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and say when it is over."""
        try:
            await super().serve(sockets)
        finally:
            self.ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serve(sandbox: "Sandbox", *, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str]:
    """Serve an entered sandbox on a port, in this event loop, and yield its base URL.

    On asyncio only, because uvicorn is; `serve_in_thread` serves any program. Who may connect to `host` may do with the
    sandbox whatever its credentials allow, hence loopback.

    Args:
        sandbox: an entered sandbox.
        host: the address to bind to.
        port: the port; 0 takes a free one.

    Raises:
        RuntimeError: not on asyncio.
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
    """Enter a sandbox and serve it until Ctrl-C or SIGTERM; then end its encodes, and remove what they were writing.

    Args:
        sandbox: a sandbox that is not entered yet.
        announce: told the base URL once requests are answered; the sandbox then has its `api_key`.
        host: the address to bind to; others than loopback let other machines in.
        port: the port; 0 takes a free one.

    Raises:
        RuntimeError: not on asyncio, or another sandbox runs on the same state.
        OSError: the port is taken.
    """
    async with AsyncExitStack() as stack:
        signals: AsyncIterator[Signals] | None = None
        with suppress(NotImplementedError):  # on Windows, where Ctrl-C cancels the main task
            # Before anything is open: a signal from now on ends the block, and not the process.
            signals = stack.enter_context(open_signal_receiver(SIGINT, SIGTERM))
        await stack.enter_async_context(sandbox)
        announce(await stack.enter_async_context(serve(sandbox, host=host, port=port)))
        if signals is None:
            await anyio.sleep_forever()
        else:
            await anext(aiter(signals))


@contextmanager
def serve_in_thread(sandbox: "Sandbox", *, host: str = "127.0.0.1", port: int = 0) -> Generator[str]:
    """Run a sandbox that is not entered yet in a thread with its own event loop, and yield its base URL.

    For programs on trio, or on no event loop at all. `sandbox.jobs`, `.requests`, `.tokens` and `.faults` may be used
    from the caller's thread; its clock and its awaitable methods may not. Two busy threads of one process wait for each
    other's GIL: for load, run `convertrilo sandbox`, a process of its own.

    Args:
        sandbox: the sandbox; it is entered and left in the thread.
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
