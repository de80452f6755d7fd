"""The command `convertrilo-mcp`: its options, its journal, and the lifetime of the server."""

import argparse
import hashlib
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
from convertrilo.cli.extras import requires_sandbox_extra
from convertrilo.cli.settings import DEFAULT_PROFILE, AccountSettings, account_settings
from convertrilo.client import AsyncClient
from convertrilo.errors import ConfigurationError, ConvertriloError
from convertrilo.events import log_attempts
from convertrilo.journal import Journal
from convertrilo.mcp.calls import RecordingJournal
from convertrilo.mcp.server import make_server
from convertrilo.mcp.storage import storage_profiles
from convertrilo.mcp.toolbox import Toolbox
from convertrilo.mcp.tools import tools

_EPILOG = """\
environment:
  CONVERTRILO_API_KEY                      the API key (default: the key saved by convertrilo login)
  CONVERTRILO_BASE_URL                     the service's base URL (default: https://api.convertrilo.com)
  CONVERTRILO_PROFILE                      the saved profile to use, like --profile
  CONVERTRILO_S3_<NAME>_ACCESS_KEY_ID      the storage profile <name>, which agents name without seeing its credentials
  CONVERTRILO_S3_<NAME>_SECRET_ACCESS_KEY
  CONVERTRILO_S3_<NAME>_ENDPOINT           the store's endpoint, unless it is Amazon S3
  CONVERTRILO_S3_<NAME>_REGION

An MCP host starts this command and talks to it on stdin and stdout. The log goes to stderr.
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
    parser.add_argument(
        "--profile", metavar="NAME", help="the saved profile to use [default: CONVERTRILO_PROFILE, or default]"
    )
    parser.add_argument("--read-only", action="store_true", help="offer no tool that makes or cancels jobs")
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="encode on this machine, with no account and no network; jobs and files are kept beside the journal, in "
        "a folder named after it",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="the file that records requests, so that no job is made twice; use one file per account "
        "[default: mcp-<host>.db in the user's state folder, a separate file for each profile]",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    profiles = storage_profiles(os.environ)
    table = tools(profiles)
    account = None if options.sandbox else account_settings(options.profile)
    path: Path = options.journal or _default_journal(account)
    journal = RecordingJournal(path)
    secrets = [secret for each in profiles.values() for secret in (each.access_key_id, each.secret_access_key)]
    secrets += [] if account is None else filter(None, (account.api_key, account.access_token))
    failure: ConvertriloError | None = None
    closing, closed = anyio.Event(), anyio.Event()

    async def keep_client_open(*, task_status: TaskStatus[AsyncClient]) -> None:
        try:
            async with _client(account, journal, path.with_name(f"{path.stem}-sandbox")) as client:
                task_status.started(client)
                await closing.wait()
        finally:
            closed.set()

    # The client lives in a task of its own, so that it can be closed while stdin is still open.
    async with anyio.create_task_group() as tasks:
        try:
            client = await tasks.start(keep_client_open)
        except ConvertriloError as error:
            failure = error
        else:
            toolbox = Toolbox(client, journal, profiles, path.with_name(f"{path.stem}-folders"))
            server = make_server(toolbox, table, read_only=options.read_only, secrets=secrets)
            async with stdio_server() as (incoming, outgoing):
                serving = partial(server.run, incoming, outgoing, server.create_initialization_options())
                number = await _serve_until_stopped(serving)
                closing.set()
                await closed.wait()
                if number is not None:
                    os._exit(128 + number)  # an ordinary exit would wait for the thread that is blocked reading stdin
    if failure is not None:
        raise failure


async def _serve_until_stopped(serve: Callable[[], Awaitable[None]]) -> int | None:
    """Serve until stdin ends or SIGINT or SIGTERM arrives; return the signal's number, if any."""
    received: int | None = None

    async def listen() -> None:
        nonlocal received
        with suppress(NotImplementedError), anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            received = await anext(aiter(signals))  # not on Windows
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await serve()
        tasks.cancel_scope.cancel()
    return received


@asynccontextmanager
async def _client(account: AccountSettings | None, journal: Journal, folder: Path) -> AsyncGenerator[AsyncClient]:
    """Yield a client of an account; without an account, of a sandbox in a folder, served while the client is open."""
    if account is not None:
        token = account.access_token
        get_token = None if token is None else lambda: token
        async with AsyncClient(
            account.api_key, get_token=get_token, base_url=account.base_url, journal=journal, on_event=log_attempts
        ) as client:
            yield client
        return
    with requires_sandbox_extra():
        from convertrilo.sandbox import Sandbox, serve
    from convertrilo._http.transport import PoolTransport

    async with AsyncExitStack() as stack:
        service = Sandbox(encoder="ffmpeg", state=folder, allow_private_sources=True)
        try:
            await stack.enter_async_context(service)
        except (OSError, RuntimeError) as error:  # the folder is in use
            raise ConfigurationError(f"{error}; name another --journal to use another sandbox") from error
        base_url = await stack.enter_async_context(serve(service))
        # A transport without the environment's proxy settings: the sandbox is on this machine.
        client = AsyncClient(
            service.api_key, base_url=base_url, transport=PoolTransport(), journal=journal, on_event=log_attempts
        )
        yield await stack.enter_async_context(client)


def _default_journal(account: AccountSettings | None) -> Path:
    """Return the default journal: a file for each host and profile.

    An API key does not say which account it belongs to, so a profile stands for an account.
    """
    try:
        name = "sandbox" if account is None else httpx.URL(account.base_url).host
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"the base URL is not valid: {error}") from None
    if account is not None and account.profile != DEFAULT_PROFILE:
        name += f"-{hashlib.sha256(account.profile.encode()).hexdigest()[:8]}"
    folder = platformdirs.user_state_path("convertrilo", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} for the journal cannot be created: {error.strerror}") from error
    return folder / f"mcp-{name}.db"
