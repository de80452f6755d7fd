"""Sources on the web: which URLs are allowed, and how they are fetched."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from convertrilo.sandbox.outside.network import Network, save
from convertrilo.sandbox.state.problem import MediaError, Problem
from convertrilo.sandbox.state.rules import Rules

_REDIRECTS = 5
_ASSUMED_BITS_PER_SECOND = 5_000_000
_BINARY = frozenset({"application/octet-stream", "binary/octet-stream", "application/mp4", "application/x-matroska"})
_SIGNATURES = ("x-amz-signature=", "x-goog-signature=", "signature=", "sig=")


def duration_of(size: int) -> float:
    """Estimate the duration in seconds of a video of `size` bytes."""
    return size * 8 / _ASSUMED_BITS_PER_SECOND


class Sources:
    """Checks source URLs and fetches sources.

    Args:
        rules: the rules for URLs and sizes.
        network: opens the connections.
        fetches: whether sources are fetched; if not, no host is resolved or connected to.
    """

    def __init__(self, rules: Rules, network: Network, *, fetches: bool) -> None:
        self._rules = rules
        self._network = network
        self.fetches = fetches

    async def check_url(self, url: str, known: set[str] | None = None) -> None:
        """Check that a source URL is allowed.

        Args:
            url: the source URL.
            known: hosts that were checked before, and need no second look-up; the URL's host is added.

        Raises:
            Problem: 400, with the code of the rule that the URL breaks.
        """
        self._check_form(url)
        host = urlsplit(url).hostname or ""
        if known is None or host not in known:
            await self._network.addresses(host, resolve=self.fetches)
        if known is not None:
            known.add(host)

    def _check_form(self, url: str) -> None:
        rules = self._rules
        if not rules.url_ingest:
            raise Problem(400, "url_ingest_disabled", "Sources on the web are switched off.")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, (parts.port, httpx.URL(url).host)
        except (ValueError, httpx.InvalidURL):
            host, parts = None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            raise Problem(
                400, "invalid_url", "A source URL must be http or https, with a host and without a user name."
            )
        if host.lower().removesuffix(".") in rules.blocked_hosts:
            raise Problem(400, "url_host_blocked", f"Sources on {host} are not allowed.")
        if rules.signed_urls_only and not any(mark in parts.query.lower() for mark in _SIGNATURES):
            raise Problem(400, "signed_url_required", "A source URL must be signed.")

    async def estimate_duration(self, url: str) -> float | None:
        """Request a source's headers, and estimate its duration in seconds from its length.

        Returns:
            The estimate; None if sources are not fetched.

        Raises:
            Problem: 400 if the source cannot be fetched, has no length, is too big, or is not a video.
        """
        if not self.fetches:
            return None
        try:
            async with self._open(url) as response:
                return duration_of(int(response.headers["content-length"]))
        except MediaError as error:
            raise Problem(400, "probe_failed", f"The source cannot be used: {error}.") from None

    async def fetch(self, url: str, target: Path) -> None:
        """Fetch a source into a file.

        Raises:
            MediaError: the source cannot be fetched, or is not allowed.
        """
        try:
            async with self._open(url) as response:
                await save(response, target, limit=self._rules.max_source_bytes)
        except Problem as problem:
            raise MediaError(problem.message.rstrip(".")) from None
        except httpx.HTTPError as error:
            raise MediaError(f"the source could not be fetched ({type(error).__name__})") from None

    @asynccontextmanager
    async def _open(self, url: str) -> AsyncGenerator[httpx.Response]:
        """Request a source and follow redirects; every host on the way is checked."""
        async with self._network.client() as client:
            for _ in range(_REDIRECTS + 1):
                self._check_form(url)
                request = client.build_request("GET", url, headers={"accept-encoding": "identity"})
                try:
                    response = await self._network.send(client, request)
                except httpx.HTTPError as error:
                    raise MediaError(f"the source's server does not answer ({type(error).__name__})") from None
                except (httpx.InvalidURL, UnicodeError):  # httpx parses the location before it returns
                    raise MediaError("the source redirects to an invalid URL") from None
                try:
                    if not response.has_redirect_location:
                        self._check_headers(response)
                        yield response
                        return
                    url = str(httpx.URL(url).join(response.headers["location"]))
                finally:
                    await response.aclose()
        raise MediaError(f"the source redirects more than {_REDIRECTS} times")

    def _check_headers(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise MediaError(f"the source's server answers {response.status_code}")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and not kind.startswith("video/") and kind not in _BINARY:
            raise Problem(400, "unsupported_content_type", f"The source is {kind}, which is not a video.")
        length = response.headers.get("content-length", "")
        if not length.isdigit():
            raise Problem(400, "missing_content_length", "The source's server does not say how long it is.")
        if int(length) > self._rules.max_source_bytes:
            limit = self._rules.max_source_bytes
            raise Problem(400, "file_too_large", f"The source has {length} bytes; at most {limit} are allowed.")
