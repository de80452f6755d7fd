"""Who the client is to the service: an API key, or bearer tokens from a source."""

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable

import anyio

from convertrilo.errors import ConfigurationError

TokenSource = Callable[[], str | Awaitable[str]]
"""Returns a bearer token, or is awaited for one."""


class Credentials:
    """The API key and the source of bearer tokens; neither is ever shown."""

    def __init__(self, api_key: str | None, get_token: TokenSource | None) -> None:
        self.api_key = api_key
        self.get_token = get_token
        self.sender = "" if api_key is None else hashlib.sha256(api_key.encode()).hexdigest()[:8]
        """Tells one API key from another, and is too short to find one by; empty for bearer tokens."""
        self.renewals = 0
        """How often the source was asked for another token because one was rejected."""
        self._renewed = ""
        self._renewing = anyio.Lock()

    async def token(self) -> str:
        """Ask the source for a bearer token.

        Raises:
            ConfigurationError: What it returned cannot be a token.
        """
        assert self.get_token is not None
        given = self.get_token()
        token = await given if inspect.isawaitable(given) else given
        if not is_visible(token):
            raise ConfigurationError("get_token must return the token as a string of visible ASCII characters")
        return token

    async def renewed_token(self, since: int) -> str:
        """Return a token for one that was rejected; the source is asked once, however many calls need it.

        Args:
            since: What `renewals` was when the rejected token was handed out.
        """
        async with self._renewing:
            if self.renewals == since:
                self._renewed = await self.token()
                self.renewals += 1
            return self._renewed


def is_visible(secret: object) -> bool:
    """Return whether a credential is a string of visible ASCII characters: a header carries no others."""
    return isinstance(secret, str) and re.fullmatch("[!-~]+", secret) is not None
