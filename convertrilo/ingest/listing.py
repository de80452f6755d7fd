"""Listing a folder in S3, or in a store that speaks like it: signed by botocore, carried by our own connections.

A big folder is listed in several ranges of keys at a time. tests/bench/bench_listing.py measures it: a quarter of the
CPU that boto3 needs, on any event loop.
"""

import os
import re
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree as ET

import anyio
import anyio.to_thread
import attrs
import httpx

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.transport import make_transport
from convertrilo.errors import ConfigurationError, Issue, TransferError, ValidationError
from convertrilo.ingest.objects import Page, S3Object, is_text
from convertrilo.models import S3FolderSource, S3Source
from convertrilo.transfers.storage import BrokenAttempt, body_of, no_answer, refusal, until_done

_REGION = "us-east-1"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_MAX_PAGE = 16 * 1024**2
_MAX_MOVES = 5
"""How often AWS may say that a bucket is in another region."""
_UNRESERVED = "-_.~"


Take = Callable[[Page], Awaitable[object]]


def parse_url(url: str) -> S3FolderSource:
    """Return the folder that `s3://bucket/prefix` names; the prefix is taken as it stands, with all that is in it.

    Raises:
        ValidationError: It is no such URL.
    """
    scheme, mark, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not mark or scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise ValidationError("source", [Issue("", f"must be s3://bucket/prefix, not {url[:80]!r}")])
    return S3FolderSource(bucket=bucket, prefix=prefix or None)


# ---- who asks, and where


@attrs.define(eq=False)
class Folder:
    """A prefix in a bucket, with what a request for it needs."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    path_style: bool
    keys: Any = attrs.field(repr=False)
    """botocore's credentials; `None` asks as nobody."""

    def url(self, query: Mapping[str, str]) -> str:
        """Return the URL of a request about the bucket, in the form that is signed."""
        where = urlsplit(self.endpoint or _aws(self.region))
        host, path = where.netloc, where.path.rstrip("/")
        if self.path_style:
            path += f"/{self.bucket}"
        else:
            host = f"{self.bucket}.{host}"
        parameters = "&".join(f"{name}={quote(value, safe=_UNRESERVED)}" for name, value in sorted(query.items()))
        return f"{where.scheme}://{host}{path or '/'}?{parameters}"

    def frozen_keys(self) -> Any:
        """Return the credentials as they are now; those that run out soon are renewed, which may ask the network.

        Raises:
            ConfigurationError: They cannot be had.
        """
        try:
            return None if self.keys is None else self.keys.get_frozen_credentials()
        except Exception as error:  # botocore's, the network's, or those of a `credential_process`
            raise ConfigurationError(f"AWS's credentials cannot be had: {error}") from error

    async def renew_keys(self) -> None:
        """Renew credentials that run out soon, in a thread, so that nobody waits for that who needs them later.

        Raises:
            ConfigurationError: They cannot be had.
        """
        if getattr(self.keys, "refresh_needed", bool)():
            await anyio.to_thread.run_sync(self.frozen_keys, abandon_on_cancel=True)

    def source(self, key: str) -> S3Source:
        """Return an object as the source of a job.

        Raises:
            ConfigurationError: The credentials cannot be had, or are temporary, and the API takes none of those.
        """
        keys = self.frozen_keys()
        if keys is not None and keys.token:
            raise ConfigurationError(
                "these AWS credentials are temporary, with a session token, and the API has no field for one: use "
                "the access key id and the secret access key of a user who may read the bucket, or, where anybody may, "
                "list it as anonymous"
            )
        return S3Source(
            bucket=self.bucket,
            key=key,
            endpoint=self.endpoint,
            region=self.region,
            access_key_id=None if keys is None else keys.access_key,
            secret_access_key=None if keys is None else keys.secret_key,
            force_path_style=self.path_style,
        )


async def open_folder(source: str | S3FolderSource, *, anonymous: bool = False) -> Folder:
    """Find out with which credentials, and in which region, a folder is read.

    Those that the source gives; else those of AWS's standard chain (environment, profile, role of the machine); else
    none. `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL` name another store than Amazon's where the source names none.

    Args:
        source: The folder, or `s3://bucket/prefix`.
        anonymous: Whether to sign nothing, whatever credentials there are.

    Raises:
        ValidationError: The source is no folder in S3.
        ConfigurationError: botocore is not installed, or AWS's configuration or credentials cannot be had.
    """
    if isinstance(source, str):
        source = parse_url(source)
    _check(source, anonymous=anonymous)
    return await anyio.to_thread.run_sync(partial(_open, source, anonymous=anonymous), abandon_on_cancel=True)


def _check(source: S3FolderSource, *, anonymous: bool) -> None:
    issues: list[Issue] = []
    if not _BUCKET.fullmatch(source.bucket):
        issues.append(Issue("bucket", f"is not the name of a bucket: {source.bucket!r}"))
    if source.endpoint is not None:
        where = urlsplit(source.endpoint)
        if where.scheme not in ("http", "https") or not where.hostname or where.query or "@" in where.netloc:
            issues.append(Issue("endpoint", "must be an http or https URL of a host, without user name and query"))
    if (source.access_key_id is None) != (source.secret_access_key is None):
        missing = "access_key_id" if source.access_key_id is None else "secret_access_key"
        issues.append(Issue(missing, "is required with the other half of the credentials"))
    elif source.access_key_id is not None and anonymous:
        issues.append(Issue("access_key_id", "must not be set where the folder is listed as anonymous"))
    if issues:
        raise ValidationError("source", issues)


def _open(source: S3FolderSource, *, anonymous: bool) -> Folder:
    try:
        from botocore.credentials import Credentials
        from botocore.session import Session
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'listing S3 needs {error.name}; install it with: pip install "convertrilo[s3]"'
        ) from None
    keys, region, endpoint = None, source.region, source.endpoint
    try:
        session = Session()
        if region is None:
            region = session.get_config_variable("region")
        if endpoint is None:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if source.access_key_id is not None and source.secret_access_key is not None:
            keys = Credentials(source.access_key_id, source.secret_access_key)
        elif not anonymous:
            keys = session.get_credentials()
    except Exception as error:  # botocore's, or those of a `credential_process`
        raise ConfigurationError(f"AWS's configuration cannot be used: {error}") from error
    folder = Folder(
        bucket=source.bucket,
        prefix=source.prefix or "",
        endpoint=endpoint or None,
        region=region or _REGION,
        path_style=source.force_path_style is not False,  # the contract's default for a folder
        keys=keys,
    )
    folder.frozen_keys()  # a role is taken on here, in this thread
    return folder


def _aws(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


# ---- one page


class Listed(NamedTuple):
    """One answer of `ListObjectsV2`: the objects, and the token to ask for the next ones with."""

    objects: Page
    token: str | None


Ask = Callable[[str | None, str | None], Awaitable[Listed]]
"""Lists one page, given the key that it begins behind, and the token that it begins behind where there is one."""


class _Lister:
    """Asks for pages, each again where that may help."""

    def __init__(self, client: BaseClient, folder: Folder, transport: httpx.AsyncBaseTransport) -> None:
        self._engine, self._options = engine_of(client)
        self._folder = folder
        self._send = transport.handle_async_request

    async def page(self, after: str | None, token: str | None) -> Listed:
        """Return the next objects: those behind a token, or behind a key.

        Raises:
            ConfigurationError: Credentials that ran out cannot be renewed.
            TransferError: The store does not answer, refuses, or answers with something else than a listing.
        """
        query = {"list-type": "2", "encoding-type": "url"}
        if self._folder.prefix:
            query["prefix"] = self._folder.prefix
        if token is not None:
            query["continuation-token"] = token
        elif after is not None:
            query["start-after"] = after
        try:
            attempt = partial(self._ask, query)
            return await until_done("listObjectsV2", "GET", self._engine, self._options, attempt, lambda: 0)
        except BrokenAttempt as broken:
            raise TransferError(f"bucket {self._folder.bucket} cannot be listed: {broken}") from broken

    async def _ask(self, query: Mapping[str, str]) -> Listed:
        folder = self._folder
        for _ in range(_MAX_MOVES):
            region, url = folder.region, folder.url(query)
            request = httpx.Request(
                "GET",
                url,
                headers=await self._headers(url),
                extensions={"timeout": self._options.timeout.as_dict(), "repeatable": True},
            )
            try:
                response = await self._send(request)
                try:
                    if response.status_code == 200:
                        return _read(await _body(response))
                    told = response.headers.get("x-amz-bucket-region")
                    if folder.endpoint is not None or told in (None, region):
                        raise await refusal(response, self._engine.clock.time())
                    folder.region = told  # the bucket is elsewhere in AWS, and it says where
                finally:
                    await response.aclose()
            except (httpx.HTTPError, OSError) as error:
                raise no_answer(error, request.method, request.url) from error
        raise BrokenAttempt(f"AWS sends from region to region, the last of which is {folder.region}")

    async def _headers(self, url: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        await self._folder.renew_keys()
        keys = self._folder.frozen_keys()
        if keys is None:
            return {}
        request = AWSRequest(method="GET", url=url)
        S3SigV4Auth(keys, "s3", self._folder.region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}


async def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    async with body_of(response) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_PAGE:
                raise BrokenAttempt(f"the answer is longer than {_MAX_PAGE} bytes, and so no page of a listing")
    return bytes(body)


def _read(body: bytes) -> Listed:
    try:
        root = ET.fromstring(body)  # noqa: S314  # expat bounds what entities expand to
    except ET.ParseError:
        raise BrokenAttempt("the answer is no listing; is the endpoint right?") from None
    objects: Page = []
    token, is_quoted, is_truncated = None, False, False
    contents: list[dict[str, str]] = []
    for element in root:
        name = _local(element.tag)
        if name == "Contents":
            contents.append({_local(child.tag): child.text or "" for child in element})
        elif name == "NextContinuationToken":
            token = element.text
        elif name == "IsTruncated":
            is_truncated = element.text == "true"
        elif name == "EncodingType":
            is_quoted = element.text == "url"
    if is_truncated and not token:
        raise BrokenAttempt("the answer says that there is more, and not where")
    if _local(root.tag) != "ListBucketResult":
        raise BrokenAttempt("the answer is no listing; is the endpoint right?")
    for each in contents:
        key = each.get("Key", "")
        objects.append(
            S3Object(
                unquote_plus(key, errors="surrogateescape") if is_quoted else key,
                int(each["Size"]) if "Size" in each else None,
                each.get("ETag", "").strip('"') or None,
                None,
                _time(each.get("LastModified")),
            )
        )
    return Listed(objects, token if is_truncated else None)


def _local(tag: str) -> str:
    return tag[tag.rfind("}") + 1 :]


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


# ---- all pages, several ranges at a time

CONCURRENCY = 8
"""Ranges of keys that are listed at once."""

_ALONE = 10
"""Pages that are listed one after the other before a folder counts as big."""
_AHEAD = 16
"""Pages that a range keeps for itself, by the distance of its keys so far, when it is divided."""
_WASTE = 8
"""One request in so many may find an empty range before no more are divided off."""
_DIGITS = 32
"""How many characters of a key count."""


class UnorderedError(TransferError):
    """The store does not list in the order of the keys, which came out when several ranges were listed already."""


async def list_objects(
    client: BaseClient, folder: Folder, take: Take, *, concurrency: int = CONCURRENCY, ask: Ask | None = None
) -> None:
    """List a folder, and hand on every object once, a page at a time.

    Pages come in the order of their keys while one range is listed, which is the first ten pages and a folder that is
    no bigger; then in any order. The next page of a range is asked for when the last one was taken, so a slow taker
    slows the listing down, and `concurrency` pages are in memory at most.

    Args:
        client: Whose retry policy, clock and listener are used. Its credentials and connections are not.
        folder: What to list.
        take: Awaited with each page; with several at once, once several ranges are listed.
        concurrency: How many ranges are listed at once; 1 keeps the pages in order.
        ask: Lists one page, given the key or the token that it begins behind; by default over connections of its own.

    Raises:
        UnorderedError: Some objects may be missing, which a listing in one range finds.
        ConfigurationError: Credentials that ran out cannot be renewed.
        TransferError: The store does not answer, refuses, or answers with something else than a listing.
    """
    if ask is not None:
        await _Ranges(ask, folder.prefix, take, concurrency).list()
        return
    async with _listing(client, folder, concurrency) as lister:
        await _Ranges(lister.page, folder.prefix, take, concurrency).list()


async def list_page(client: BaseClient, folder: Folder, *, after: str | None, token: str | None) -> Listed:
    """List one page: the objects behind a token, or behind a key, or the first ones.

    Raises:
        ConfigurationError: Credentials that ran out cannot be renewed.
        TransferError: The store does not answer, refuses, or answers with something else than a listing.
    """
    async with _listing(client, folder, 1) as lister:
        return await lister.page(after, token)


@asynccontextmanager
async def _listing(client: BaseClient, folder: Folder, connections: int) -> AsyncGenerator[_Lister]:
    transport = make_transport(max_connections=connections)
    try:
        yield _Lister(client, folder, transport)
    finally:
        await transport.aclose()


class _Ranges:
    """The parts of a folder that are listed at once, divided as the listing goes on."""

    def __init__(self, ask: Ask, prefix: str, take: Take, concurrency: int) -> None:
        self._ask = ask
        self._prefix = prefix
        self._take = take
        self._concurrency = concurrency
        self._running = 0
        self._pages = 0
        self._empty = 0
        self._in_order = True
        self._is_divided = False

    async def list(self) -> None:
        """List all of it; the first error ends it. A store without order ends it too, once all pages are taken."""
        failures: list[Exception] = []

        async def work(after: str | None, until: str | None) -> None:
            try:
                await self._list(after, until, begin)
            except Exception as error:  # noqa: BLE001  # raised below, outside of the group
                failures.append(error)
                tasks.cancel_scope.cancel()
            finally:
                self._running -= 1

        def begin(after: str | None, until: str | None) -> None:
            self._running += 1
            tasks.start_soon(work, after, until)

        async with anyio.create_task_group() as tasks:
            begin(None, None)
        if failures:
            raise failures[0]
        if self._is_in_vain:
            raise UnorderedError("the store does not list in the order of the keys, and only one range at a time")

    @property
    def _is_in_vain(self) -> bool:
        """Whether the folder was divided where there are no ranges, as in directory buckets."""
        return self._is_divided and not self._in_order

    async def _list(self, after: str | None, until: str | None, begin: Callable[[str, str | None], None]) -> None:
        """List the keys behind one key, up to another one that may come down as the range is divided."""
        token: str | None = None
        is_first = True
        last = b"" if after is None else _order(after)
        seen = set[int]()
        while not self._is_in_vain:
            listed = await self._ask(after, token)
            marks = _marks(listed)
            if not seen.isdisjoint(marks):
                raise TransferError("the store says again and again that the same page is next")
            seen.update(marks)
            page, token = listed.objects, listed.token
            self._pages += 1
            keys = [last, *(_order(each.key) for each in page)]
            last = keys[-1]
            self._in_order = self._in_order and keys == sorted(keys)
            if page and until is not None and _order(page[-1].key) > _order(until):
                page, token = [each for each in page if _order(each.key) <= _order(until)], None
            if is_first and not page:
                self._empty += 1
            is_first = False
            if token is not None and (middle := self._divide(page, until)) is not None:
                self._is_divided = True
                begin(middle, until)
                until = middle
            if page:
                await self._take(page)
            if token is None:
                return

    def _divide(self, page: Page, until: str | None) -> str | None:
        """Return where to divide what is left of a range behind a page, if that is worth it."""
        is_big = self._pages >= _ALONE and self._in_order
        if not (is_big and page) or self._running >= self._concurrency or self._empty * _WASTE > self._pages:
            return None
        return ahead([each.key for each in page], until, self._prefix)


def _marks(listed: Listed) -> list[int]:
    """Return what a page would be known by if it came again: its first key, and the token for what is behind it.

    Hashes: a folder of ten million objects has ten thousand pages.
    """
    marks = [hash(("key", each.key)) for each in listed.objects[:1]]
    return marks if listed.token is None else [*marks, hash(("token", listed.token))]


def _order(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def ahead(keys: Sequence[str], until: str | None, prefix: str) -> str | None:
    """Return a key about 16 pages behind a page, by the distance of that page's keys, if it is before `until`.

    Keys are read as the digits of a number, in the base of the characters that occur in them. Wherever the result
    lies, the keys before and behind it are all keys: a bad guess costs a request, and no key.
    """
    skip = len(prefix)
    alphabet = sorted(each for each in set[str]().union(*(key[skip:] for key in keys)) if is_text(each))
    base = len(alphabet) + 1

    def number(key: str) -> int:
        value = 0
        for position in range(_DIGITS):
            character = key[skip + position : skip + position + 1]
            digit = bisect_left(alphabet, character) + 1 if character else 0
            value = value * base + min(digit, base - 1)
        return value

    value = number(keys[-1]) + _AHEAD * (number(keys[-1]) - number(keys[0]))
    digits: list[int] = []
    for _ in range(_DIGITS):
        value, digit = divmod(value, base)
        digits.append(digit)
    middle = prefix + "".join(alphabet[max(digit, 1) - 1] for digit in reversed(digits))
    if value or middle <= keys[-1] or (until is not None and middle >= until):
        return None
    return middle
