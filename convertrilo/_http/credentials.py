"""The client's credentials: an API key, or bearer tokens from the caller's token source."""

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable

import anyio

from convertrilo.errors import ConfigurationError

TokenSource = Callable[[], str | Awaitable[str]]
"""Returns a bearer token, or an awaitable of one."""


class Credentials:
    """The API key and the source of bearer tokens; neither is ever shown."""

    def __init__(self, api_key: str | None, get_token: TokenSource | None) -> None:
        self.api_key = api_key
        self.get_token = get_token
        self.sender: str = "" if api_key is None else hashlib.sha256(api_key.encode()).hexdigest()[:8]
        """A hash that distinguishes API keys, too short to recover a key from; empty for bearer tokens."""
        self.renewals: int = 0
        """How many times a rejected token was replaced."""
        self._renewed = ""
        self._renewing = anyio.Lock()

    async def token(self) -> str:
        """Ask the source for a bearer token.

        Raises:
            ConfigurationError: The source did not return a usable token.
        """
        assert self.get_token is not None
        given = self.get_token()
        token = await given if inspect.isawaitable(given) else given
        if not is_visible(token):
            raise ConfigurationError("get_token must return the token as a string of visible ASCII characters")
        return token

    async def renewed_token(self, since: int) -> str:
        """Return a replacement for a rejected token; concurrent calls ask the source only once.

        Args:
            since: The value of `renewals` when the rejected token was handed out.
        """
        async with self._renewing:
            if self.renewals == since:
                self._renewed = await self.token()
                self.renewals += 1
            return self._renewed


class BearerToken:
    """The bearer token of one call, which may be replaced once after the service rejected it."""

    __slots__ = ("_credentials", "_renewals", "current", "rejected")

    def __init__(self, credentials: Credentials) -> None:
        self.current: str | None = None
        """The token of the latest attempt; `None` before the first one."""
        self.rejected: str | None = None
        """The token that the service rejected."""
        self._credentials = credentials
        self._renewals = 0

    async def get(self) -> str:
        """Return the token for the next attempt: a replacement if the service rejected the current one.

        Raises:
            ConfigurationError: The source did not return a usable token.
        """
        if self.rejected is None:
            self._renewals = self._credentials.renewals
            token = await self._credentials.token()
        else:
            token = await self._credentials.renewed_token(self._renewals)
        self.current = token
        return token

    def reject(self) -> bool:
        """Note that the service rejected the token; return whether a replacement may be tried."""
        if self.rejected is not None:
            return False
        self.rejected = self.current
        return True


def is_visible(secret: object) -> bool:
    """Return whether a credential is a string of visible ASCII characters: a header carries no others."""
    return isinstance(secret, str) and re.fullmatch("[!-~]+", secret) is not None
