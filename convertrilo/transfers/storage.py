"""Requests to presigned storage URLs: redirects, error responses and retries.

These requests carry no API credentials. No error message shows a presigned URL: its signature is itself a credential.
"""

import base64
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import anyio
import attrs
import httpx

from convertrilo._http.context import Options
from convertrilo._http.engine import Engine
from convertrilo._http.tries import Tries
from convertrilo._version import __version__
from convertrilo.errors import Issue, ValidationError
from convertrilo.events import AttemptEvent, Beginning, Observation, Outcome, notify
from convertrilo.retry import FailureKind, kind_of_answer, retry_after

T = TypeVar("T")

MakeBody = Callable[[], httpx.AsyncByteStream]
"""Returns the request body of one attempt, from the start of the source."""

_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 4096
_SECONDS_TO_CLOSE = 5.0
_RETRYABLE = frozenset({FailureKind.NOT_SENT, FailureKind.REFUSED, FailureKind.UNCLEAR})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_EXPIRED_STATUSES = frozenset({401, 403, 404, 410})


@attrs.define(eq=False)
class BrokenAttempt(Exception):  # noqa: N818  # internal: callers receive a TransferError
    """A failed attempt: the reason, and whether another attempt may help."""

    reason: str
    kind: FailureKind = FailureKind.REJECTED
    status: int | None = None
    retry_after: float | None = None
    """Seconds that the storage asks to wait before the next attempt."""

    def __str__(self) -> str:
        return self.reason

    @property
    def is_expired(self) -> bool:
        """Whether the URL may have expired, so that a fresh one may work."""
        return self.status in _EXPIRED_STATUSES


async def until_done(
    name: str,
    method: str,
    engine: Engine,
    options: Options,
    attempt: Callable[[], Awaitable[T]],
    reached: Callable[[], int],
) -> T:
    """Repeat an attempt until it succeeds.

    Args:
        name: The operation's name in `AttemptEvent`.
        method: The HTTP method of the attempt.
        engine: Provides the clock, the retry budget and the event listener.
        options: Provides the retry policy. Its deadline is not used, because a big file may take longer.
        attempt: Makes one attempt.
        reached: Returns how many bytes the attempts have transferred so far. The policy's `max_attempts` limits the
            attempts in a row that make no progress.

    Raises:
        BrokenAttempt: The last attempt failed.
        ConfigurationError: The client is closed.
    """
    if engine.observer is None:
        return await _until_done(name, engine, options, attempt, reached, None)
    with engine.observer.watch(Beginning(operation=name, method=method)) as observation:
        return await _until_done(name, engine, options, attempt, reached, observation)


async def _until_done(
    name: str,
    engine: Engine,
    options: Options,
    attempt: Callable[[], Awaitable[T]],
    reached: Callable[[], int],
    observation: Observation | None,
) -> T:
    policy, clock = options.retry, engine.clock
    tries = Tries(engine, policy)  # counts the attempts in a row without progress
    started, attempts, furthest, has_spent = clock.monotonic(), 0, reached(), False

    def report(outcome: Outcome, status: int | None = None, wait: float | None = None) -> None:
        elapsed = clock.monotonic() - started
        event = AttemptEvent(
            operation=name, attempt=attempts, outcome=outcome, status=status, wait=wait, elapsed=elapsed
        )
        if observation is not None:
            observation.end_attempt(event)
        notify(engine.on_event, event)

    while True:
        engine.check_open()
        attempts += 1
        tries.begin()
        if observation is not None:
            # The trace headers are not sent: they are for the service, and the storage is a third party.
            observation.begin_attempt(attempts)
        try:
            result = await attempt()
        except BrokenAttempt as broken:
            if reached() > furthest:
                tries.restart()
            furthest = max(furthest, reached())
            retry_after = broken.retry_after or 0.0
            wait = retry_after or tries.backoff()
            may_retry = broken.kind in _RETRYABLE and tries.are_left and retry_after <= policy.max_retry_after
            is_free = broken.retry_after is not None
            if not may_retry or not (is_free or engine.budget.spend()):
                report(broken.kind.value, broken.status)
                raise
            has_spent = has_spent or not is_free
            report(broken.kind.value, broken.status, wait)
        except BaseException:
            report("interrupted")
            raise
        else:
            if has_spent:
                engine.budget.give_back()
            report("ok")
            return result
        await clock.sleep(wait)


@asynccontextmanager
async def exchange(
    engine: Engine,
    options: Options,
    method: str,
    url: httpx.URL,
    headers: Sequence[tuple[str, str]],
    make_body: MakeBody | None = None,
) -> AsyncGenerator[httpx.Response]:
    """Send one request, follow redirects, and yield the successful response.

    Raises:
        BrokenAttempt: No response arrives, the response is an error, or it breaks off while its body is read.
    """
    try:
        response = await _follow(engine, options, method, url, headers, make_body)
        try:
            if response.status_code >= 300:
                raise await refusal(response, engine.clock.time())
            yield response
        finally:
            await response.aclose()
    except httpx.HTTPError as error:
        raise no_answer(error, method, url) from error


def no_answer(error: httpx.HTTPError | OSError, method: str, url: httpx.URL) -> BrokenAttempt:
    """Return the failure of an attempt that got no response."""
    if isinstance(error, httpx.RequestError):
        error.request = httpx.Request(method, f"{url.scheme}://{url.host}")  # the original URL holds the signature
    kind = FailureKind.NOT_SENT if isinstance(error, _NOT_SENT) else FailureKind.UNCLEAR
    return BrokenAttempt(f"no answer from {url.host}: {str(error) or type(error).__name__}", kind)


async def _follow(
    engine: Engine,
    options: Options,
    method: str,
    url: httpx.URL,
    headers: Sequence[tuple[str, str]],
    make_body: MakeBody | None,
) -> httpx.Response:
    fixed = [("User-Agent", f"convertrilo-python/{__version__}"), *headers]
    for _ in range(_MAX_REDIRECTS + 1):
        request = httpx.Request(
            method,
            url,
            headers=[("Host", url.netloc.decode("ascii")), *fixed],
            stream=httpx.ByteStream(b"") if make_body is None else make_body(),
            extensions={"timeout": options.timeout.as_dict()},
        )
        try:
            response = await engine.send(request)
        except OSError as error:  # from a custom transport; `on_disk` handles the OSErrors of the disk
            raise httpx.NetworkError(str(error), request=request) from error
        if not response.has_redirect_location:
            return response
        await response.aclose()
        target = url.join(response.headers["location"])
        if url.scheme == "https" and target.scheme != "https":
            raise BrokenAttempt(f"{url.host} redirects to an address without encryption")
        if make_body is not None and response.status_code not in (307, 308):
            raise BrokenAttempt(f"{url.host} redirects with {response.status_code}, which does not resend the file")
        url = target
    raise BrokenAttempt(f"{url.host} redirects more than {_MAX_REDIRECTS} times")


@asynccontextmanager
async def body_of(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over a response's body, which need not be read to its end."""
    # A custom transport may have read the whole body already, as the transport of a test does.
    chunks = response.aiter_bytes() if response.is_stream_consumed else response.aiter_raw()
    try:
        yield chunks
    finally:
        # The iterator consists of nested async generators. Closing the outermost one leaves the others to the garbage
        # collector, and trio warns about that. Once the connection is closed, iterating runs all of them to their end.
        with anyio.move_on_after(_SECONDS_TO_CLOSE, shield=True), suppress(Exception):
            await response.aclose()
            async for _ in chunks:
                pass


async def refusal(response: httpx.Response, now: float) -> BrokenAttempt:
    """Return the failure that an error response means.

    The failure shows only the code and the message of the body, because S3 repeats signatures in the rest.
    """
    beginning = b""
    async with body_of(response) as chunks:
        async for chunk in chunks:
            beginning += chunk
            if len(beginning) >= _MAX_ERROR_BYTES:
                break
    code, message = _error_in(beginning)
    status = response.status_code
    seconds = retry_after(status, response.headers, now)
    kind = kind_of_answer(status, code, told_to_wait=seconds is not None, has_token=False)
    if code == "RequestTimeout":  # S3 answers 400 with this code when the file arrives too slowly
        kind = FailureKind.UNCLEAR
    details = ": ".join(part for part in (code, message) if part)
    reason = f"the storage answers {status}" + (f" ({details})" if details else "")
    return BrokenAttempt(reason, kind, status, seconds)


def _error_in(body: bytes) -> tuple[str, str]:
    """Return the code and message in an error body: XML from S3 and compatible stores, JSON from others."""
    text = body.decode("utf-8", "replace")
    code, message = re.search(r"<Code>([^<]{1,100})<", text), re.search(r"<Message>([^<]{1,500})<", text)
    if code is not None:
        return code[1], "" if message is None else message[1]
    try:
        wire = json.loads(text)
        return str(wire["code"])[:100], str(wire["message"])[:500]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ""


# Headers with a digest of the whole file, even in a partial response: name, pattern of the value, algorithm.
_DIGESTS = (
    ("repr-digest", r"sha-512=:([^:]+):", "sha512"),  # RFC 9530
    ("repr-digest", r"sha-256=:([^:]+):", "sha256"),
    ("digest", r"[Ss][Hh][Aa]-256=([^,]+)", "sha256"),  # RFC 3230
    ("x-amz-checksum-sha256", r"([^-]+)", "sha256"),  # a value with a hyphen is a digest of digests
    ("x-goog-hash", r"md5=([^,]+)", "md5"),
)


def digest_in(headers: httpx.Headers) -> tuple[str, str] | None:
    """Return the algorithm and the hexadecimal value of the digest of the whole file, if the headers hold one.

    An ETag counts as an MD5 digest only if Amazon S3's other headers prove that it is one.
    """
    for name, pattern, algorithm in _DIGESTS:
        found = re.search(rf"(?:^|[,\s]){pattern}(?:$|[,\s])", headers.get(name, ""))
        if found is not None:
            try:
                return algorithm, base64.b64decode(found[1], validate=True).hex()
            except ValueError:
                continue
    return _md5_in_etag(headers)


def _md5_in_etag(headers: httpx.Headers) -> tuple[str, str] | None:
    """Return the MD5 in an ETag of Amazon S3: of an object uploaded in one piece, without a customer's own key."""
    found = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    is_md5 = (
        headers.get("server") == "AmazonS3"
        and headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
        and "x-amz-server-side-encryption-customer-algorithm" not in headers
        and headers.get("x-amz-storage-class") != "EXPRESS_ONEZONE"
    )
    return ("md5", found[1]) if found is not None and is_md5 else None


def checked_url(name: str, text: str) -> httpx.URL:
    """Check a presigned URL, and return it; `name` is the argument's name in errors.

    Raises:
        ValidationError: The text is not an http or https URL.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValidationError(name, [Issue("", "must be an http or https URL")])
    return url
