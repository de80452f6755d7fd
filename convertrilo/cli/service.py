"""How a command talks to the service: to the real one as a saved account, or to the sandbox on this machine."""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convertrilo.cli.output import note

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient
    from convertrilo.events import AttemptEvent

T = TypeVar("T")

_PATIENCE = 1.0
"""Seconds for which somebody at a terminal waits without asking why."""


class Service:
    """The service that a command talks to.

    Args:
        profile: The saved account to use, if one was named.
        sandbox: Whether to use the sandbox instead.
    """

    def __init__(self, profile: str | None, *, sandbox: bool) -> None:
        self.profile = profile
        self.sandbox = sandbox

    @property
    def suffix(self) -> str:
        """What a command must end with to talk to the same service."""
        if self.sandbox:
            return " --sandbox"
        return f" --profile {self.profile}" if self.profile else ""

    def journal_of(self, file: Path) -> Path:
        """Return where the journal of a file of jobs is: beside it, or in the sandbox's state, to go with that."""
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
        state: Callable[[], str] = str,
        by_token: bool = False,
        **options: Any,
    ) -> T:
        """Do some work with a client, and return its result.

        Args:
            work: What to do.
            state: Says in which state things are, and how to go on, if the work is interrupted.
            by_token: Whether it takes an access token, as `keys` does.
            options: `AsyncClient`'s own.

        Raises:
            Interrupted: By Ctrl-C, SIGTERM, or a terminal that was closed.
        """
        import anyio

        from convertrilo.cli.interrupt import interruptible

        return anyio.run(partial(interruptible, self.client(by_token=by_token, **options), work, state))

    @asynccontextmanager
    async def client(self, *, by_token: bool = False, **options: Any) -> "AsyncGenerator[AsyncClient]":
        """Yield a client of the service.

        Raises:
            ConfigurationError: No credentials are known, or the sandbox cannot be used.
        """
        if sys.stderr.isatty():
            options.setdefault("on_event", _tell)
        open_client = self._of_the_sandbox if self.sandbox else partial(self._of_the_account, by_token)
        async with open_client(options) as client:
            yield client

    @asynccontextmanager
    async def _of_the_account(self, by_token: bool, options: dict[str, Any]) -> "AsyncGenerator[AsyncClient]":
        from convertrilo.cli.settings import account
        from convertrilo.client import AsyncClient
        from convertrilo.errors import ConfigurationError

        who = account(self.profile)
        token = who.access_token
        if by_token and token is None:
            raise ConfigurationError(
                "this takes an access token: log in with convertrilo login --email YOU@EXAMPLE.COM, "
                "or set CONVERTRILO_ACCESS_TOKEN"
            )
        if who.api_key is None and token is None:
            raise ConfigurationError(
                "no API key: log in with convertrilo login, set CONVERTRILO_API_KEY, "
                "or work on this machine with --sandbox"
            )
        get_token = None if token is None else lambda: token
        async with AsyncClient(who.api_key, get_token=get_token, base_url=who.base_url, **options) as client:
            yield client

    @asynccontextmanager
    async def _of_the_sandbox(self, options: dict[str, Any]) -> "AsyncGenerator[AsyncClient]":
        from convertrilo.cli.extras import needing_the_sandbox
        from convertrilo.cli.settings import state_folder
        from convertrilo.errors import ConfigurationError

        with needing_the_sandbox():
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
                    "serve one sandbox for both with convertrilo sandbox, or remove the folder to begin anew"
                ) from error
            client = await stack.enter_async_context(sandbox.client(get_token=get_token, **options))
            yield client


def _tell(event: "AttemptEvent") -> None:
    """Say why nothing seems to happen."""
    if event.wait is not None and event.wait >= _PATIENCE:
        note(f"{event.operation}: no answer yet ({event.status or event.outcome}), again in {event.wait:.0f} s")
