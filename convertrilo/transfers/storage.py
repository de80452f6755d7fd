"""Requests to a storage host, by the presigned URLs it handed out: redirects, refusals, and trying again.

Nothing here carries the API's credentials, and no URL is ever shown: its signature is a credential of its own.
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
from convertrilo._version import __version__
from convertrilo.errors import Issue, ValidationError
from convertrilo.events import AttemptEvent, Beginning, Observation, Outcome, notify
from convertrilo.retry import FailureKind, kind_of_answer, retry_after

T = TypeVar("T")

MakeBody = Callable[[], httpx.AsyncByteStream]
"""Returns the body of one request, from its beginning."""

_MAX_REDIRECTS = 5
_MOST_OF_AN_ERROR = 4096
_SECONDS_TO_END = 5.0
_AGAIN = frozenset({FailureKind.NOT_SENT, FailureKind.REFUSED, FailureKind.UNCLEAR})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NO_LONGER_VALID = frozenset({401, 403, 404, 410})


@attrs.define(eq=False)
class BrokenAttempt(Exception):  # noqa: N818  # no error: it tells the loop that an attempt failed
    """An attempt that did not work."""

    reason: str
    kind: FailureKind = FailureKind.REJECTED
    status: int | None = None
    told: float | None = None
    """Seconds after which the storage wants to be asked again."""

    def __str__(self) -> str:
        return self.reason

    @property
    def is_expired(self) -> bool:
        """Whether the URL does not work, or no more: another one might."""
        return self.status in _NO_LONGER_VALID


async def until_done(
    name: str,
    method: str,
    engine: Engine,
    options: Options,
    attempt: Callable[[], Awaitable[T]],
    reached: Callable[[], int],
) -> T:
    """Repeat an attempt until it works.

    Args:
        name: What `AttemptEvent.operation` says.
        method: By which HTTP method an attempt asks.
        engine: Whose clock, retry budget and listener are used.
        options: Whose retry policy is used, but for its deadline: a big file takes its time.
        attempt: What to do.
        reached: How far all attempts so far have come. Only as many in a row as the policy allows may come no further.

    Raises:
        BrokenAttempt: As the last attempt did.
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
    started, tries, futile, furthest, paid = clock.monotonic(), 0, 0, reached(), False

    def tell(outcome: Outcome, status: int | None = None, wait: float | None = None) -> None:
        elapsed = clock.monotonic() - started
        event = AttemptEvent(operation=name, attempt=tries, outcome=outcome, status=status, wait=wait, elapsed=elapsed)
        if observation is not None:
            observation.end_attempt(event)
        notify(engine.on_event, event)

    while True:
        engine.check_open()
        tries += 1
        if observation is not None:
            observation.begin_attempt(tries)  # its headers are for the service, and storage is somebody else's
        try:
            result = await attempt()
        except BrokenAttempt as broken:
            futile = 1 if reached() > furthest else futile + 1
            furthest = max(furthest, reached())
            told = broken.told or 0.0
            wait = told or policy.backoff(futile, engine.random)
            may = broken.kind in _AGAIN and futile < policy.max_attempts and told <= policy.max_retry_after
            if not may or (broken.told is None and not engine.budget.spend()):
                tell(broken.kind.value, broken.status)
                raise
            paid = paid or broken.told is None
            tell(broken.kind.value, broken.status, wait)
        except BaseException:
            tell("interrupted")
            raise
        else:
            if paid:
                engine.budget.give_back()
            tell("ok")
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
    """Send one request, following redirects, and yield its answer, which is a success.

    Raises:
        BrokenAttempt: There is no answer, it is an error, or it breaks off while it is read.
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
    """Return what it means that a request has no answer."""
    if isinstance(error, httpx.RequestError):
        error.request = httpx.Request(method, f"{url.scheme}://{url.host}")  # the real one has the signature
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
        except OSError as error:  # from a caller's own transport; an error of the disk's must not be taken for it
            raise httpx.NetworkError(str(error), request=request) from error
        if not response.has_redirect_location:
            return response
        await response.aclose()
        target = url.join(response.headers["location"])
        if url.scheme == "https" and target.scheme != "https":
            raise BrokenAttempt(f"{url.host} redirects to an address without encryption")
        if make_body is not None and response.status_code not in (307, 308):
            raise BrokenAttempt(f"{url.host} redirects elsewhere, and not the file ({response.status_code})")
        url = target
    raise BrokenAttempt(f"{url.host} redirects more than {_MAX_REDIRECTS} times")


@asynccontextmanager
async def body_of(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield the iterator of an answer's body, which need not be read to its end."""
    # A caller's own transport may have read it all, as that of a test does.
    chunks = response.aiter_bytes() if response.is_stream_consumed else response.aiter_raw()
    try:
        yield chunks
    finally:
        # It is made of generators in generators: closing the outermost leaves the others to the garbage collector,
        # of which trio complains. On a connection that is closed they all come to their end, if it is one of ours.
        with anyio.move_on_after(_SECONDS_TO_END, shield=True), suppress(Exception):
            await response.aclose()
            async for _ in chunks:
                pass


async def refusal(response: httpx.Response, now: float) -> BrokenAttempt:
    """Return what an error answer means. Of its body only code and message are shown: S3 repeats signatures in it."""
    start = b""
    async with body_of(response) as chunks:
        async for chunk in chunks:
            start += chunk
            if len(start) >= _MOST_OF_AN_ERROR:
                break
    code, message = _error_in(start)
    status = response.status_code
    told = retry_after(status, response.headers, now)
    kind = kind_of_answer(status, code, told_to_wait=told is not None, has_token=False)
    if code == "RequestTimeout":  # S3 says so with a 400 when the file came too slowly
        kind = FailureKind.UNCLEAR
    said = ": ".join(part for part in (code, message) if part)
    return BrokenAttempt(f"the storage answers {status}" + (f" ({said})" if said else ""), kind, status, told)


def _error_in(body: bytes) -> tuple[str, str]:
    """Return code and message of an error's body: XML from S3 and its kind, JSON from others."""
    text = body.decode("utf-8", "replace")
    code, message = re.search(r"<Code>([^<]{1,100})<", text), re.search(r"<Message>([^<]{1,500})<", text)
    if code is not None:
        return code[1], "" if message is None else message[1]
    try:
        wire = json.loads(text)
        return str(wire["code"])[:100], str(wire["message"])[:500]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ""


_DIGESTS = (  # which header has a digest of the whole file, even in a partial answer; how it writes it; which one it is
    ("repr-digest", r"sha-512=:([^:]+):", "sha512"),  # RFC 9530
    ("repr-digest", r"sha-256=:([^:]+):", "sha256"),
    ("digest", r"[Ss][Hh][Aa]-256=([^,]+)", "sha256"),  # RFC 3230
    ("x-amz-checksum-sha256", r"([^-]+)", "sha256"),  # one with a hyphen is a digest of digests
    ("x-goog-hash", r"md5=([^,]+)", "md5"),
)


def digest_in(headers: httpx.Headers) -> tuple[str, str] | None:
    """Return algorithm and value (in hexadecimal) of the digest that an answer gives of the whole file, if any.

    An ETag is taken for one only where Amazon S3 says enough to be sure that it is the MD5.
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
    """Return the MD5 that is an ETag of S3's: of an object that was put whole, and has no key of its own."""
    found = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    is_md5 = (
        headers.get("server") == "AmazonS3"
        and headers.get("x-amz-server-side-encryption", "AES256") == "AES256"
        and "x-amz-server-side-encryption-customer-algorithm" not in headers
        and headers.get("x-amz-storage-class") != "EXPRESS_ONEZONE"
    )
    return ("md5", found[1]) if found is not None and is_md5 else None


def checked_url(name: str, text: str) -> httpx.URL:
    """Return a URL that a file can be sent to or fetched from; `name` is what an error calls it.

    Raises:
        ValidationError: It is none.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValidationError(name, [Issue("", "must be an http or https URL")])
    return url
