"""The service that a command talks to: the real one with a saved account, or the sandbox on this machine."""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from convertrilo.cli.output import note

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    import httpx

    from convertrilo.client import AsyncClient
    from convertrilo.events import AttemptEvent, Listener
    from convertrilo.journal import Journal
    from convertrilo.retry import RetryPolicy

    class ClientOptions(TypedDict, total=False):
        """The options of `AsyncClient` that commands set."""

        api_key: str | None
        retry: RetryPolicy
        journal: Journal | None
        transport: httpx.AsyncBaseTransport
        on_event: Listener


T = TypeVar("T")

_SILENT_WAIT = 1.0
"""Seconds; longer waits before a retry are explained on a terminal."""


class ServiceTarget:
    """The service that a command talks to.

    Args:
        profile: The profile that --profile names, if any.
        sandbox: Whether to use the sandbox instead.
    """

    def __init__(self, profile: str | None, *, sandbox: bool) -> None:
        self.profile = profile
        self.sandbox = sandbox

    @property
    def suffix(self) -> str:
        """The options that make another command talk to the same service, with a leading space."""
        if self.sandbox:
            return " --sandbox"
        return f" --profile {self.profile}" if self.profile else ""

    def default_journal(self, file: Path) -> Path:
        """Return the default journal of a file of jobs: beside it, or with --sandbox in the sandbox's folder.

        Removing that folder removes the sandbox's jobs, and the journal with them.
        """
        from hashlib import sha256
        from urllib.parse import quote

        from convertrilo.cli.settings import DEFAULT_PROFILE, profile_name, state_folder

        if self.sandbox:
            return state_folder() / f"bulk-{sha256(os.fsencode(file.resolve())).hexdigest()[:16]}.db"
        name = profile_name(self.profile)
        infix = "" if name == DEFAULT_PROFILE else f".{quote(name, safe='')}"
        return file.with_name(f"{file.name}{infix}.db")

    def run(
        self,
        work: "Callable[[AsyncClient], Awaitable[T]]",
        *,
        how_to_resume: Callable[[], str] = str,
        by_token: bool = False,
        **options: "Unpack[ClientOptions]",
    ) -> T:
        """Run work with a client, and return its result.

        Args:
            work: Called with the client.
            how_to_resume: Says, after an interruption, what state the work is in and how to resume it.
            by_token: Whether the work needs an access token, as `keys` does.
            options: Options of `AsyncClient`.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or a closed terminal ended the work.
        """
        import anyio

        from convertrilo.cli.interrupt import interruptible

        return anyio.run(partial(interruptible, self.client(by_token=by_token, **options), work, how_to_resume))

    @asynccontextmanager
    async def client(
        self, *, by_token: bool = False, **options: "Unpack[ClientOptions]"
    ) -> "AsyncGenerator[AsyncClient]":
        """Yield a client of the service.

        Raises:
            ConfigurationError: There are no credentials, or the sandbox cannot be used.
        """
        if sys.stderr.isatty():
            options.setdefault("on_event", _explain_wait)
        open_client = self._sandbox_client if self.sandbox else partial(self._account_client, by_token)
        async with open_client(options) as client:
            yield client

    @asynccontextmanager
    async def _account_client(self, by_token: bool, options: "ClientOptions") -> "AsyncGenerator[AsyncClient]":
        from convertrilo.cli.settings import account_settings
        from convertrilo.client import AsyncClient
        from convertrilo.errors import ConfigurationError

        account = account_settings(self.profile)
        token = account.access_token
        if by_token and token is None:
            raise ConfigurationError(
                "this command needs an access token: log in with convertrilo login --email YOU@EXAMPLE.COM, "
                "or set CONVERTRILO_ACCESS_TOKEN"
            )
        if account.api_key is None and token is None:
            raise ConfigurationError(
                "no API key: log in with convertrilo login, set CONVERTRILO_API_KEY, or use this machine with --sandbox"
            )
        get_token = None if token is None else lambda: token
        options.setdefault("api_key", account.api_key)
        async with AsyncClient(get_token=get_token, base_url=account.base_url, **options) as client:
            yield client

    @asynccontextmanager
    async def _sandbox_client(self, options: "ClientOptions") -> "AsyncGenerator[AsyncClient]":
        from convertrilo.cli.extras import requires_sandbox_extra
        from convertrilo.cli.settings import state_folder
        from convertrilo.errors import ConfigurationError

        with requires_sandbox_extra():
            from convertrilo.sandbox import Sandbox
        folder = state_folder()
        sandbox = Sandbox(encoder="ffmpeg", state=folder, allow_private_sources=True)

        async def get_token() -> str:
            return (await client.login({"email": sandbox.email, "password": sandbox.password})).access_token or ""

        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(sandbox)
            except (OSError, RuntimeError) as error:
                raise ConfigurationError(
                    f"the sandbox in {folder} cannot be used: {error}. Wait until the other command has ended, "
                    "share one sandbox with convertrilo sandbox, or remove the folder to start over"
                ) from error
            client = await stack.enter_async_context(sandbox.client(get_token=get_token, **options))
            yield client


def _explain_wait(event: "AttemptEvent") -> None:
    """Print why the command waits before its next attempt."""
    if event.wait is not None and event.wait >= _SILENT_WAIT:
        note(f"{event.operation}: no answer yet ({event.status or event.outcome}), next attempt in {event.wait:.0f} s")
