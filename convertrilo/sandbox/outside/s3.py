"""A client of S3 and compatible object stores: list a prefix, read an object, write an object; signed or anonymous."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote, unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree as ET

import anyio
import anyio.to_thread
import attrs
import httpx

from convertrilo.errors import Issue
from convertrilo.sandbox.outside.network import Network, save
from convertrilo.sandbox.state.problem import MediaError, Problem
from convertrilo.sandbox.state.streams import read_stream

_REGION = "us-east-1"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_LABEL = re.compile(r"[A-Za-z0-9-]{1,63}")
_SIZE = re.compile(r"[0-9]{0,18}")
_MAX_KEY_BYTES = 1_024
_EMPTY_PAGES = 100
"""The maximum number of successive pages without an object; some stores send such pages for deleted objects."""
_MAX_RESPONSE = 8 * 1024**2
_CHUNK_BYTES = 1 << 18
_UPLOADS_AT_ONCE = 16
_WRITE_TIMEOUT = httpx.Timeout(30.0, read=300.0)  # some stores copy a big upload before they respond


@attrs.frozen
class Object:
    """One object of a listing; `size` is in bytes."""

    key: str
    size: int


def place_issues(place: Mapping[str, Any], field: str, *, needs_key: bool) -> list[Issue]:
    """Return what is wrong with a place in S3, in the wire's shape; `field` is its name in the request."""
    issues: list[Issue] = []
    bucket, endpoint = place.get("bucket"), place.get("endpoint")
    if not bucket:
        issues.append(Issue(f"{field}.bucket", "is required"))
    elif not _BUCKET.fullmatch(bucket):
        issues.append(Issue(f"{field}.bucket", "is not a valid bucket name"))
    if needs_key and not place.get("key"):
        issues.append(Issue(f"{field}.key", "is required"))
    issues += [
        Issue(f"{field}.{name}", f"must have at most {_MAX_KEY_BYTES} bytes of valid UTF-8")
        for name in ("key", "prefix")
        if not _is_key(place.get(name) or "")
    ]
    if endpoint is not None and not _is_endpoint(endpoint):
        issues.append(Issue(f"{field}.endpoint", "must be an http or https URL of a host"))
    if place.get("region") is not None and not _LABEL.fullmatch(place["region"]):
        issues.append(Issue(f"{field}.region", "is not a valid region name"))
    if not (place.get("accessKeyId") or "").isascii():
        issues.append(Issue(f"{field}.accessKeyId", "must be ASCII: it goes into a header"))
    if (place.get("accessKeyId") is None) != (place.get("secretAccessKey") is None):
        missing = "accessKeyId" if place.get("accessKeyId") is None else "secretAccessKey"
        issues.append(Issue(f"{field}.{missing}", "is required together with the other credential"))
    return issues


def _is_key(key: str) -> bool:
    try:
        return len(key.encode()) <= _MAX_KEY_BYTES
    except UnicodeEncodeError:
        return False


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, (parts.port, httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme in ("http", "https") and bool(host) and not (parts.query or parts.fragment or "@" in url)


class S3:
    """Calls object stores. A `place` has the wire's shape of `sourceS3` or `outputS3`.

    Args:
        network: opens the connections.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._uploads = anyio.CapacityLimiter(_UPLOADS_AT_ONCE)

    async def check(self, place: Mapping[str, Any]) -> None:
        """Check that the store's host is allowed.

        Raises:
            Problem: 400 `private_ip_blocked`, `host_not_resolvable`.
        """
        await self._network.addresses(urlsplit(address(place, "")).hostname or "")

    async def objects(self, place: Mapping[str, Any]) -> AsyncGenerator[Object]:
        """Yield the objects under the place's `prefix`, in the store's order, fetching page by page.

        Raises:
            MediaError: the store returns an error or an invalid listing.
        """
        token: str | None = None
        empty = 0
        while empty < _EMPTY_PAGES:
            query = {"encoding-type": "url", "list-type": "2", "prefix": place.get("prefix") or ""}
            if token is not None:
                query["continuation-token"] = token
            async with self._request("GET", place, "", query) as response:
                listing = await _xml(response)
            is_quoted = _text(listing, "EncodingType") == "url"  # stores without this feature send keys unquoted
            listed = listing.findall("{*}Contents")
            for each in listed:
                key, size = _text(each, "Key"), _text(each, "Size")
                if not _SIZE.fullmatch(size):
                    raise _no_listing()
                yield Object(unquote_plus(key) if is_quoted else key, int(size or 0))
            empty = 0 if listed else empty + 1
            token = _text(listing, "NextContinuationToken")
            if not token or _text(listing, "IsTruncated") != "true":
                return
        raise MediaError("the object store's listing does not end")

    async def fetch(self, place: Mapping[str, Any], target: Path, *, limit: int) -> None:
        """Fetch the object at the place's `key` into `target`.

        Raises:
            MediaError: the store returns an error, or the object has more than `limit` bytes.
        """
        async with self._request("GET", place, place["key"]) as response:
            await save(response, target, limit=limit)

    async def store(self, place: Mapping[str, Any], source: Path, media_type: str) -> None:
        """Write a file to the object at the place's `key`, in one request, which S3 limits to 5 GiB.

        Raises:
            MediaError: the store returns an error.
        """
        async with self._uploads:
            with source.open("rb") as file:
                async with self._request("PUT", place, place["key"], body=file, media_type=media_type):
                    pass

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        place: Mapping[str, Any],
        key: str,
        query: Mapping[str, str] | None = None,
        *,
        body: IO[bytes] | None = None,
        media_type: str | None = None,
    ) -> AsyncGenerator[httpx.Response]:
        """Send one request and yield the response if it is a success."""
        url = address(place, key) + (f"?{urlencode(sorted(query.items()), quote_via=quote)}" if query else "")
        headers = {} if media_type is None else {"content-type": media_type}
        if place.get("accessKeyId") is not None:  # in a thread: signing hashes the body
            headers |= await anyio.to_thread.run_sync(_signature, method, url, place, body)
        try:
            async with self._network.client() as client:
                request = client.build_request(
                    method,
                    url,
                    headers={**headers, "accept-encoding": "identity"},
                    content=None if body is None else _chunks(body),
                    timeout=_WRITE_TIMEOUT,
                    # Send the target as it was signed: httpx would normalize a key such as a/../b.
                    extensions={"target": url.partition("//")[2].partition("/")[2].join(("/", "")).encode()},
                )
                if body is not None:
                    request.headers["content-length"] = str(body.seek(0, 2))
                    del request.headers["transfer-encoding"]
                    body.seek(0)
                response = await self._network.send(client, request)
                try:
                    if not response.is_success:
                        raise MediaError(f"the object store answers {response.status_code} {await _reason(response)}")
                    yield response
                finally:
                    await response.aclose()
        except Problem as problem:
            raise MediaError(problem.message.rstrip(".")) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last two: a redirect's location
            raise MediaError(f"the object store does not answer ({type(error).__name__})") from None


def address(place: Mapping[str, Any], key: str) -> str:
    """Return the URL of an object, or of the bucket if `key` is empty.

    The bucket is the first segment of the path. Without `forcePathStyle` it is the first label of the host instead,
    if it is a valid label.
    """
    bucket, region = place["bucket"], place.get("region") or _REGION
    endpoint = urlsplit(place.get("endpoint") or f"https://s3.{region}.amazonaws.com")
    folder = endpoint.path.strip("/")
    host, path = endpoint.netloc, [folder] if folder else []
    if place.get("forcePathStyle") or not _DNS_BUCKET.fullmatch(bucket) or _is_number(endpoint.hostname or ""):
        path.append(bucket)
    else:
        host = f"{bucket}.{host}"
    return f"{endpoint.scheme}://{host}/" + "/".join([*path, quote(key, safe="/-_.~")] if key else path)


def _is_number(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _signature(method: str, url: str, place: Mapping[str, Any], body: IO[bytes] | None) -> dict[str, str]:
    """Return the headers of an AWS signature, version 4."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method=method, url=url, data=body)
    credentials = Credentials(place["accessKeyId"], place["secretAccessKey"])
    S3SigV4Auth(credentials, "s3", place.get("region") or _REGION).add_auth(request)
    return {name: str(value) for name, value in request.headers.items()}


async def _chunks(file: IO[bytes]) -> AsyncGenerator[bytes]:
    while chunk := await anyio.to_thread.run_sync(file.read, _CHUNK_BYTES):
        yield chunk


async def _read(response: httpx.Response) -> bytes:
    try:
        return await read_stream(cast("AsyncGenerator[bytes]", response.aiter_bytes()), _MAX_RESPONSE)
    except Problem:
        raise MediaError("the object store's answer is too long") from None


async def _xml(response: httpx.Response) -> ET.Element:
    try:
        return ET.fromstring(await _read(response))  # noqa: S314 - expat limits the expansion of entities
    except (ET.ParseError, LookupError, ValueError):  # not XML, or in an unknown encoding
        raise _no_listing() from None


def _no_listing() -> MediaError:
    return MediaError("the object store's answer is not a listing: is the endpoint right?")


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""


async def _reason(response: httpx.Response) -> str:
    """Return the code of an error response, such as `NoSuchBucket`; the rest may repeat credentials."""
    found = re.search(rb"<Code>([A-Za-z0-9.]{1,100})</Code>", await _read(response))
    return found[1].decode() if found else response.reason_phrase
