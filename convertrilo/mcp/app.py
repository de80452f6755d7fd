"""The command: its options, where the journal is, and the life of the server."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import httpx
import platformdirs
from anyio.abc import TaskStatus
from mcp.server.stdio import stdio_server

from convertrilo._version import __version__
from convertrilo.cli.extras import needing_the_sandbox
from convertrilo.client import DEFAULT_BASE_URL, AsyncClient
from convertrilo.errors import ConfigurationError, ConvertriloError
from convertrilo.events import log_attempts
from convertrilo.journal import Journal
from convertrilo.mcp.calls import WatchedJournal
from convertrilo.mcp.server import make_server
from convertrilo.mcp.storage import profiles_in
from convertrilo.mcp.toolbox import Toolbox
from convertrilo.mcp.tools import tools

_EPILOG = """\
environment:
  CONVERTRILO_API_KEY                      the API key
  CONVERTRILO_BASE_URL                     another service than https://api.convertrilo.com
  CONVERTRILO_S3_<NAME>_ACCESS_KEY_ID      a storage profile <name>: agents name it, and never see what is in it
  CONVERTRILO_S3_<NAME>_SECRET_ACCESS_KEY
  CONVERTRILO_S3_<NAME>_ENDPOINT           where its store is not Amazon's
  CONVERTRILO_S3_<NAME>_REGION

An MCP host starts this command and talks to it on stdin and stdout; its log is on stderr.
"""


def run(arguments: Sequence[str]) -> int:
    """Serve until the host closes stdin, and return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("convertrilo").setLevel(logging.INFO)
    try:
        anyio.run(_serve, options)
    except ConvertriloError as error:
        sys.stderr.write(f"convertrilo-mcp: {error.message}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convertrilo-mcp",
        description="Let an agent encode videos with Convertrilo: an MCP server on stdin and stdout.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--read-only", action="store_true", help="offer no tool that makes or cancels anything")
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="encode on this machine, with no account and no network; what it makes is kept beside the journal",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="where to write down what is sent, so that nothing is made twice; one file for each account "
        "[default: mcp-<host>.db in the user's state folder]",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    profiles = profiles_in(os.environ)
    table = tools(profiles)
    secrets = [secret for each in profiles.values() for secret in (each.access_key_id, each.secret_access_key)]
    path: Path = options.journal or _default_journal(sandbox=options.sandbox)
    journal = WatchedJournal(path)
    failure: ConvertriloError | None = None
    closing, closed = anyio.Event(), anyio.Event()

    async def hold(*, task_status: TaskStatus[tuple[AsyncClient, str]]) -> None:
        try:
            async with _client(journal, path, sandbox=options.sandbox) as connected:
                task_status.started(connected)
                await closing.wait()
        finally:
            closed.set()

    # The client and what belongs to it has a task of its own, so that it can be closed before stdin is.
    async with anyio.create_task_group() as tasks:
        try:
            client, api_key = await tasks.start(hold)
        except ConvertriloError as error:
            failure = error
        else:
            toolbox = Toolbox(client, journal, profiles, path.with_name(f"{path.stem}-folders"))
            server = make_server(toolbox, table, read_only=options.read_only, secrets=[*secrets, api_key])
            async with stdio_server() as (incoming, outgoing):
                serving = partial(server.run, incoming, outgoing, server.create_initialization_options())
                number = await _until_told(serving)
                closing.set()
                await closed.wait()
                if number is not None:
                    os._exit(128 + number)  # a thread is reading stdin, and nothing wakes it
    if failure is not None:
        raise failure


async def _until_told(serve: Callable[[], Awaitable[None]]) -> int | None:
    """Serve until stdin ends, or SIGINT or SIGTERM arrives; return which."""
    told: int | None = None

    async def listen() -> None:
        nonlocal told
        with suppress(NotImplementedError), anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            told = await anext(aiter(signals))  # not on Windows
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await serve()
        tasks.cancel_scope.cancel()
    return told


@asynccontextmanager
async def _client(journal: Journal, path: Path, *, sandbox: bool) -> AsyncGenerator[tuple[AsyncClient, str]]:
    """Yield a client of the service, or of a sandbox that lives as long, and its API key."""
    if not sandbox:
        async with AsyncClient(journal=journal, on_event=log_attempts) as client:
            yield client, os.environ.get("CONVERTRILO_API_KEY", "")
        return
    with needing_the_sandbox():
        from convertrilo.sandbox import Sandbox, serve
    from convertrilo.transport import PoolTransport

    async with AsyncExitStack() as stack:
        service = Sandbox(encoder="ffmpeg", state=path.parent / "sandbox", allow_private_sources=True)
        try:
            await stack.enter_async_context(service)
        except (OSError, RuntimeError) as error:  # another one has this state
            raise ConfigurationError(f"{error}; another --journal has a sandbox of its own") from error
        base_url = await stack.enter_async_context(serve(service))
        # Its own connections: a proxy that the environment names is not for this machine.
        client = AsyncClient(
            service.api_key, base_url=base_url, transport=PoolTransport(), journal=journal, on_event=log_attempts
        )
        yield await stack.enter_async_context(client), service.api_key


def _default_journal(*, sandbox: bool) -> Path:
    host = "sandbox" if sandbox else httpx.URL(os.environ.get("CONVERTRILO_BASE_URL") or DEFAULT_BASE_URL).host
    folder = platformdirs.user_state_path("convertrilo", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"there can be no folder {folder} for the journal: {error.strerror}") from error
    return folder / f"mcp-{host}.db"
