"""Requests for one page of a listing (`ListObjectsV2`): signed by botocore, sent over our own connections."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import httpx

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.transport import make_transport
from convertrilo.errors import TransferError
from convertrilo.ingest.objects import Page, S3Object
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.transfers.storage import BrokenAttempt, body_of, no_answer, refusal, until_done

_MAX_PAGE_BYTES = 16 * 1024**2
_MAX_REDIRECTS = 5
"""How often AWS may answer that the bucket is in another region."""


class ListedPage(NamedTuple):
    """One answer of `ListObjectsV2`: the objects, and the continuation token if there are more."""

    objects: Page
    token: str | None


ListPage = Callable[[str | None, str | None], Awaitable[ListedPage]]
"""Lists one page, given the key after which the page begins and the continuation token; either may be None."""


class PageLister:
    """Requests pages over one transport, and repeats failed requests as the client's retry policy allows."""

    def __init__(self, client: BaseClient, folder: S3Folder, transport: httpx.AsyncBaseTransport) -> None:
        self._engine, self._options = engine_of(client)
        self._folder = folder
        self._send = transport.handle_async_request

    async def page(self, after: str | None, token: str | None) -> ListedPage:
        """Return the page at a continuation token, or else the page after a key, or else the first page.

        Raises:
            ConfigurationError: Expired credentials cannot be renewed.
            TransferError: The store does not answer, refuses, or answers with something other than a listing.
        """
        query = {"list-type": "2", "encoding-type": "url"}
        if self._folder.prefix:
            query["prefix"] = self._folder.prefix
        if token is not None:
            query["continuation-token"] = token
        elif after is not None:
            query["start-after"] = after
        try:
            attempt = partial(self._attempt, query)
            return await until_done("listObjectsV2", "GET", self._engine, self._options, attempt, lambda: 0)
        except BrokenAttempt as broken:
            raise TransferError(f"bucket {self._folder.bucket} cannot be listed: {broken}") from broken

    async def _attempt(self, query: Mapping[str, str]) -> ListedPage:
        folder = self._folder
        for _ in range(_MAX_REDIRECTS):
            region, url = folder.region, folder.url(query)
            request = httpx.Request(
                "GET",
                url,
                headers=await self._signed_headers(url),
                extensions={"timeout": self._options.timeout.as_dict(), "repeatable": True},
            )
            try:
                response = await self._send(request)
                try:
                    if response.status_code == 200:
                        return _parse(await _read_body(response))
                    bucket_region = response.headers.get("x-amz-bucket-region")
                    if folder.endpoint is not None or bucket_region in (None, region):
                        raise await refusal(response, self._engine.clock.time())
                    folder.region = bucket_region
                finally:
                    await response.aclose()
            except (httpx.HTTPError, OSError) as error:
                raise no_answer(error, request.method, request.url) from error
        raise BrokenAttempt(f"AWS redirects from region to region; the last region is {folder.region}")

    async def _signed_headers(self, url: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        await self._folder.renew_keys()
        keys = self._folder.frozen_keys()
        if keys is None:
            return {}
        request = AWSRequest(method="GET", url=url)
        S3SigV4Auth(keys, "s3", self._folder.region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}


@asynccontextmanager
async def open_lister(client: BaseClient, folder: S3Folder, connections: int) -> AsyncGenerator[PageLister]:
    """Yield a lister with its own connections, at most `connections` of them."""
    transport = make_transport(max_connections=connections)
    try:
        yield PageLister(client, folder, transport)
    finally:
        await transport.aclose()


async def list_page(client: BaseClient, folder: S3Folder, *, after: str | None, token: str | None) -> ListedPage:
    """Return the page at a continuation token, or else the page after a key, or else the first page.

    Raises:
        ConfigurationError: Expired credentials cannot be renewed.
        TransferError: The store does not answer, refuses, or answers with something other than a listing.
    """
    async with open_lister(client, folder, 1) as lister:
        return await lister.page(after, token)


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async with body_of(response) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_PAGE_BYTES:
                raise BrokenAttempt(f"the answer is not a page of a listing: it has more than {_MAX_PAGE_BYTES} bytes")
    return bytes(body)


def _parse(body: bytes) -> ListedPage:
    try:
        root = ET.fromstring(body)  # noqa: S314  # expat limits the expansion of entities
    except ET.ParseError:
        raise BrokenAttempt("the answer is not a listing; is the endpoint right?") from None
    objects: Page = []
    token, is_quoted, is_truncated = None, False, False
    contents: list[dict[str, str]] = []
    for element in root:
        name = _local_name(element.tag)
        if name == "Contents":
            contents.append({_local_name(child.tag): child.text or "" for child in element})
        elif name == "NextContinuationToken":
            token = element.text
        elif name == "IsTruncated":
            is_truncated = element.text == "true"
        elif name == "EncodingType":
            is_quoted = element.text == "url"
    if is_truncated and not token:
        raise BrokenAttempt("the answer says that there are more objects, but has no continuation token")
    if _local_name(root.tag) != "ListBucketResult":
        raise BrokenAttempt("the answer is not a listing; is the endpoint right?")
    for each in contents:
        key = each.get("Key", "")
        objects.append(
            S3Object(
                unquote_plus(key, errors="surrogateescape") if is_quoted else key,
                int(each["Size"]) if "Size" in each else None,
                each.get("ETag", "").strip('"') or None,
                None,
                _parse_time(each.get("LastModified")),
            )
        )
    return ListedPage(objects, token if is_truncated else None)


def _local_name(tag: str) -> str:
    return tag[tag.rfind("}") + 1 :]


def _parse_time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
