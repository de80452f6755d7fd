"""Listing a folder in S3: odd keys on a real server, credentials from every source, errors, and divided listings."""

import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from botocore.credentials import RefreshableCredentials
from fake_clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from loopback import Received, answer, loopback, sockets_to
from object_store import ObjectStore

from convertrilo import AsyncClient, ConfigurationError, RetryPolicy, S3FolderSource, TransferError, ValidationError
from convertrilo.ingest import listing, s3_requests
from convertrilo.ingest.listing import list_objects
from convertrilo.ingest.objects import Page, S3Object
from convertrilo.ingest.s3_folder import S3Folder, open_folder, parse_url
from convertrilo.ingest.s3_requests import ListedPage

SECRET = "hush/hush+hush"
KEYS = [
    *("a b+c.mp4", "100%41.mp4", "a/../b.mp4", "./c.mp4", "quote'&<>\"#?;=.mp4", "two//slashes.mp4", "/first.mp4"),
    *(
        "caf\u00e9.mp4",
        "cafe\u0301.mp4",
        "Upper.mp4",
        "upper.mp4",
        "tab\tbell\x07.mp4",
        "😀.mp4",
        "\uffee.mp4",
        "x" * 1024,
    ),
]


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ignore the AWS configuration of this machine."""
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient("key", base_url="https://api.test", clock=FakeClock()) as client:
        yield client


async def listed(client: AsyncClient, folder: S3Folder, **options: Any) -> list[S3Object]:
    objects: list[S3Object] = []

    async def take(page: Page) -> None:
        objects.extend(page)

    await list_objects(client, folder, take, **options)
    return objects


# ---- what is in the bucket


async def test_every_key_comes_as_it_is(client: AsyncClient, object_store: ObjectStore) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS, b"video"))
    objects = await listed(client, await open_folder(object_store.folder(bucket)))
    assert sorted(each.key for each in objects) == sorted(KEYS)
    (one,) = [each for each in objects if each.key == "Upper.mp4"]
    assert one[:4] == ("Upper.mp4", 5, "421b47ffd946ca083b65cd668c6b17e6", None)
    assert one.last_modified is not None
    assert one.last_modified.tzinfo is not None


@pytest.mark.parametrize("prefix", ["films/", "films/a+b %/", "films/\u00e9/"])
async def test_a_prefix_is_taken_as_it_stands(client: AsyncClient, object_store: ObjectStore, prefix: str) -> None:
    bucket = object_store.private_bucket(**{f"{prefix}1.mp4": b"", "films/other.mp4": b"", "2.mp4": b""})
    objects = await listed(client, await open_folder(object_store.folder(bucket, prefix=prefix)))
    expected = [f"{prefix}1.mp4", *(["films/other.mp4"] if prefix == "films/" else [])]
    assert [each.key for each in objects] == expected


async def test_a_public_bucket_is_listed_without_credentials(client: AsyncClient, object_store: ObjectStore) -> None:
    bucket = object_store.bucket(**{"1.mp4": b""})
    folder = await open_folder(S3FolderSource(bucket=bucket, endpoint=object_store.endpoint))
    assert folder.keys is None
    assert [each.key for each in await listed(client, folder)] == ["1.mp4"]


async def test_what_is_not_there_is_named(client: AsyncClient, object_store: ObjectStore) -> None:
    with pytest.raises(TransferError, match=r"bucket no-such-bucket cannot be listed: .* 404 \(NoSuchBucket"):
        await listed(client, await open_folder(object_store.folder("no-such-bucket")))


async def test_many_pages_are_listed_in_ranges_and_every_object_comes_once(
    client: AsyncClient, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    monkeypatch.setattr(listing, "_UNDIVIDED_PAGES", 2)
    keys = [f"{folder}/{number:03}.mp4" for folder in "abc" for number in range(40)]
    bucket = object_store.private_bucket(**dict.fromkeys(keys, b""))
    folder = await open_folder(object_store.folder(bucket))
    assert sorted(each.key for each in await listed(client, folder)) == keys
    assert [each.key for each in await listed(client, folder, concurrency=1)] == keys


# ---- where, and as whom


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://films", "films", None),
        ("s3://films/", "films", None),
        ("s3://films/a b/?#%2F", "films", "a b/?#%2F"),
        ("s3://films//x", "films", "/x"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, bucket: str, prefix: str | None) -> None:
    assert parse_url(url) == S3FolderSource(bucket=bucket, prefix=prefix)


@pytest.mark.parametrize("url", ["", "films/x", "s3:/films", "https://films/x", "s3:///x", "s3://a b/x", "S3://films"])
def test_what_is_no_such_url_is_said(url: str) -> None:
    with pytest.raises(ValidationError, match="must be s3://bucket/prefix, not"):
        parse_url(url)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bucket": "not a bucket"}, "bucket: is not the name of a bucket"),
        ({"endpoint": "ftp://store.test"}, "endpoint: must be an http or https URL"),
        ({"endpoint": "https://user:pass@store.test"}, "endpoint: must be"),
        ({"access_key_id": "AKID"}, "secret_access_key: is required"),
        ({"secret_access_key": SECRET}, "access_key_id: is required"),
    ],
)
async def test_a_source_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        await open_folder(S3FolderSource(**{"bucket": "films", **wrong}))
    assert "pass" not in str(refused.value)
    assert SECRET not in str(refused.value)


URLS = [
    ({}, "https://s3.us-east-1.amazonaws.com/films?a=b%20%2F"),
    ({"region": "eu-west-1", "force_path_style": False}, "https://films.s3.eu-west-1.amazonaws.com/?a=b%20%2F"),
    ({"region": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn/films?a=b%20%2F"),
    ({"endpoint": "http://127.0.0.1:9000/at/"}, "http://127.0.0.1:9000/at/films?a=b%20%2F"),
]


@pytest.mark.parametrize(("where", "url"), URLS)
async def test_the_bucket_is_in_the_path_unless_that_is_switched_off(where: dict[str, Any], url: str) -> None:
    folder = await open_folder(S3FolderSource(bucket="films", **where))
    assert folder.url({"a": "b /"}) == url


async def test_credentials_and_region_come_from_the_standard_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    folder = await open_folder("s3://films")
    made = folder.source("a.mp4")
    assert (made.bucket, made.key, made.region, made.force_path_style) == ("films", "a.mp4", "eu-north-1", True)
    assert (made.access_key_id, made.secret_access_key) == ("AKID", SECRET)
    assert SECRET not in f"{folder!r}{made!r}"
    assert (await open_folder("s3://films", anonymous=True)).source("a.mp4").access_key_id is None


async def test_another_store_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://all.test")
    assert (await open_folder("s3://films")).source("a.mp4").endpoint == "https://all.test"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.test")
    assert (await open_folder("s3://films")).url({"a": "b"}) == "https://s3.test/films?a=b"
    named = S3FolderSource(bucket="films", endpoint="https://named.test")
    assert (await open_folder(named)).source("a.mp4").endpoint == "https://named.test"


async def test_temporary_credentials_list_and_are_not_sent_on(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    store = Store(monkeypatch, [(200, LISTING)])
    folder = await open_folder("s3://films")
    assert [each.key for each in await listed(client, folder)] == ["a b.mp4"]
    assert store.requests[0].headers["x-amz-security-token"] == "a-session-token"
    with pytest.raises(ConfigurationError, match="temporary") as refused:
        folder.source("a.mp4")
    assert "a-session-token" not in str(refused.value)


async def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    with pytest.raises(ConfigurationError, match=r'pip install "convertrilo\[s3\]"'):
        await open_folder("s3://films")


# ---- what the store answers

LISTING = (
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
    "<IsTruncated>false</IsTruncated><Contents><Key>a+b.mp4</Key><Size>7</Size><ETag>&quot;e-2&quot;</ETag>"
    "<LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents></ListBucketResult>"
)
LISTED = S3Object("a b.mp4", 7, "e-2", None, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


Given = tuple[int, str] | tuple[int, str, dict[str, str]] | Exception
"""Status, body and headers of an answer, or the error that is raised instead."""


class Store:
    """A transport that gives scripted answers in place of a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Given]) -> None:
        self.requests: list[httpx.Request] = []
        self.closed = False
        self._answers = iter(answers)
        monkeypatch.setattr(s3_requests, "make_transport", lambda **_: self)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        self.requests.append(request)
        given = next(self._answers)
        if isinstance(given, Exception):
            raise given
        status, text, *headers = given
        return httpx.Response(status, stream=httpx.ByteStream(text.encode()), headers=headers[0] if headers else None)

    async def aclose(self) -> None:
        self.closed = True


BUSY = (503, "<Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>")


@pytest.mark.parametrize(
    "trouble",
    [BUSY, (500, ""), (429, "", {"retry-after": "3"}), httpx.ReadError("cut"), OSError()],
    ids=["503", "500", "429", "cut", "OSError"],
)
async def test_what_may_pass_is_tried_again(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, trouble: Given
) -> None:
    store = Store(monkeypatch, [trouble, (200, LISTING)])
    assert await listed(client, await open_folder("s3://films")) == [LISTED]
    assert len(store.requests) == 2
    assert store.closed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((403, "<Error><Code>AccessDenied</Code><Message>No.</Message></Error>"), "AccessDenied"),
        ((200, "<html>hello</html>"), "the answer is not a listing; is the endpoint right"),
        ((200, "hello"), "the answer is not a listing; is the endpoint right"),
        ((200, " " * (16 * 1024**2 + 1)), "not a page of a listing"),
        ((200, LISTING.replace("false", "true")), "has no continuation token"),
    ],
    ids=["403", "web page", "text", "endless", "cut off"],
)
async def test_what_stays_is_said_without_secrets(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, given: Given, said: str
) -> None:
    store = Store(monkeypatch, [given])
    folder = await open_folder(S3FolderSource(bucket="films", access_key_id="AKID", secret_access_key=SECRET))
    with pytest.raises(TransferError, match=said) as refused:
        await listed(client, folder)
    assert len(store.requests) == 1
    assert store.closed
    assert "AKID" in store.requests[0].headers["authorization"]
    assert not [secret for secret in ("AKID", SECRET, "Signature=") if secret in f"{refused.value}{folder!r}"]


async def test_a_store_that_goes_round_in_circles_ends_the_listing(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = LISTING.replace("false</IsTruncated>", "true</IsTruncated><NextContinuationToken>t</NextContinuationToken>")
    store = Store(monkeypatch, [(200, more)] * 3)
    with pytest.raises(TransferError, match="again and again"):
        await listed(client, await open_folder("s3://films"))
    assert len(store.requests) == 2


def page_of(key: str | None, token: str) -> tuple[int, str]:
    """A page of one object or of none, followed by another page."""
    contents = "" if key is None else f"<Contents><Key>{key}</Key></Contents>"
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    return 200, f"<ListBucketResult>{more}{contents}</ListBucketResult>"


@pytest.mark.parametrize(
    "pages",
    [
        [page_of("a", "1"), page_of("b", "2"), page_of("a", "1"), page_of("b", "2")],
        [page_of("b", "1"), page_of("a", "2"), page_of("b", "1"), page_of("a", "2")],
        [page_of("a", "1"), page_of("b", "2"), page_of("a", "3"), page_of("b", "4")],
        [page_of(None, "1"), page_of(None, "2"), page_of(None, "1"), page_of(None, "2")],
    ],
    ids=["in order", "in no order", "with fresh tokens", "of nothing"],
)
async def test_a_store_that_goes_round_in_a_wider_circle_ends_the_listing(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, pages: list[Given]
) -> None:
    store = Store(monkeypatch, pages * 10)
    with pytest.raises(TransferError, match="again and again"):
        await listed(client, await open_folder("s3://films"))
    assert len(store.requests) == 3


async def test_a_store_that_stays_busy_ends_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch, [BUSY] * 3)
    retry = RetryPolicy(max_attempts=3)
    async with AsyncClient("key", base_url="https://api.test", clock=FakeClock(), retry=retry) as client:
        with pytest.raises(TransferError, match=r"503 \(SlowDown"):
            await listed(client, await open_folder("s3://films"))
    assert len(store.requests) == 3


async def test_a_bucket_in_another_region_is_found_there(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = (301, "", {"x-amz-bucket-region": "eu-west-3"})
    store = Store(monkeypatch, [elsewhere, (200, LISTING)])
    folder = await open_folder(S3FolderSource(bucket="films", access_key_id="AKID", secret_access_key=SECRET))
    assert await listed(client, folder) == [LISTED]
    assert [each.url.host for each in store.requests] == ["s3.us-east-1.amazonaws.com", "s3.eu-west-3.amazonaws.com"]
    assert "/eu-west-3/s3/" in store.requests[1].headers["authorization"]
    assert folder.source("a.mp4").region == "eu-west-3"


async def test_a_bucket_that_is_always_elsewhere_is_not_looked_for_for_ever(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = itertools.cycle(["eu-west-3", "us-east-1"])
    store = Store(monkeypatch, [(301, "", {"x-amz-bucket-region": next(regions)}) for _ in range(50)])
    with pytest.raises(TransferError, match="from region to region"):
        await listed(client, await open_folder("s3://films"))
    assert len(store.requests) == 5


def in_minutes(minutes: float) -> datetime:
    return datetime.now(UTC) + timedelta(minutes=minutes)


def renewed(key: str, minutes: float) -> dict[str, str | None]:
    """Credentials as a provider returns them: without a session token, as a `credential_process` may."""
    expiry = in_minutes(minutes).isoformat()
    return {"access_key": key, "secret_key": SECRET, "token": None, "expiry_time": expiry}


async def test_credentials_that_run_out_are_renewed_in_a_thread_before_they_do(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def renew() -> dict[str, str | None]:
        threads.append(threading.get_ident())
        return renewed("AKID1", 60)

    folder = await open_folder("s3://films", anonymous=True)
    folder.keys = RefreshableCredentials("AKID0", SECRET, "", in_minutes(12), renew, "test")
    store = Store(monkeypatch, [(200, LISTING), (200, LISTING)])
    for _ in range(2):
        assert await listed(client, folder) == [LISTED]
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    assert {"Credential=AKID1/" in each.headers["authorization"] for each in store.requests} == {True}
    assert folder.source("a.mp4").access_key_id == "AKID1"


def failing() -> dict[str, str | None]:
    raise ConnectionError("no route to 169.254.169.254")


@pytest.mark.parametrize(
    ("renew", "why"),
    [(failing, "no route"), (dict, "did not contain: access_key"), (partial(renewed, "AKID1", -1), "still expired")],
    ids=["failing", "nothing", "expired"],
)
async def test_credentials_that_cannot_be_renewed_end_the_listing(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, renew: Any, why: str
) -> None:
    folder = await open_folder("s3://films", anonymous=True)
    folder.keys = RefreshableCredentials("AKID0", SECRET, "", in_minutes(-1), renew, "test")
    store = Store(monkeypatch, [])
    with pytest.raises(ConfigurationError, match=f"the AWS credentials cannot be loaded: .*{why}"):
        await listed(client, folder)
    assert (store.requests, store.closed) == ([], True)
    with pytest.raises(ConfigurationError, match="the AWS credentials cannot be loaded"):
        folder.source("a.mp4")


@pytest.mark.parametrize("process", ["/no/such/program", "false", "echo hello"])
async def test_credentials_that_cannot_be_had_are_said_so(tmp_path: Path, process: str) -> None:
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {process}\n")
    with pytest.raises(ConfigurationError, match="AWS's configuration cannot be used"):
        await open_folder("s3://films")


async def test_a_cancelled_listing_leaves_no_connection(client: AsyncClient) -> None:
    arrived = anyio.Event()

    async def never(_: Received) -> bytes:
        arrived.set()
        await anyio.sleep_forever()
        return answer()

    async with loopback(never) as server:
        folder = await open_folder(S3FolderSource(bucket="films", endpoint=server.url), anonymous=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listed, client, folder)
            with anyio.fail_after(60):
                await arrived.wait()
            assert len(sockets_to(server)) == 1
            tasks.cancel_scope.cancel()
        assert sockets_to(server) == []


# ---- ranges


class Shelf:
    """Objects in memory, listed in pages as S3 does."""

    def __init__(self, keys: Sequence[str], page_size: int) -> None:
        self.keys = sorted(keys)
        self.page_size = page_size
        self.asked = 0

    async def page(self, after: str | None, token: str | None) -> Any:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        behind = [key for key in self.keys if key > (token or after or "")]
        page = behind[: self.page_size]
        return ListedPage([S3Object(key) for key in page], page[-1] if len(behind) > len(page) else None)


async def collect(shelf: Shelf, concurrency: int = 4) -> list[str]:
    keys: list[str] = []

    async def take(page: Page) -> None:
        await anyio.lowlevel.checkpoint()
        keys.extend(each.key for each in page)

    await listing._KeyRanges(shelf.page, "", take, concurrency).list()
    return keys


texts = st.text(st.sampled_from("/019az~\u00e9\U0001f600"), min_size=1, max_size=6)


@given(st.sets(texts, max_size=120), st.integers(1, 5))
def test_however_a_folder_is_divided_every_object_comes_once(keys: set[str], page_size: int) -> None:
    shelf = Shelf(list(keys), page_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_UNDIVIDED_PAGES", 1)
        assert sorted(anyio.run(collect, shelf)) == shelf.keys


@pytest.mark.parametrize(
    "keys",
    [
        [f"films/{number:05}.mp4" for number in range(10_000)],
        [f"{folder:02}/{number:03}.mp4" for folder in range(50) for number in range(200)],
        [f"{number * 7919 % 1_000_003:x}" for number in range(10_000)],
    ],
    ids=["flat", "folders", "spread"],
)
async def test_a_big_folder_is_divided_at_little_cost(keys: list[str]) -> None:
    shelf = Shelf(keys, 50)
    at_once = most = 0
    page = shelf.page

    async def counted(*where: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await page(*where)
        finally:
            at_once -= 1

    shelf.page = counted  # type: ignore[method-assign,assignment]
    assert sorted(await collect(shelf)) == sorted(keys)
    assert most == 4
    assert shelf.asked < 200 * 1.5


async def test_a_store_that_lists_in_no_order_is_not_divided() -> None:
    shelf = Shelf([f"{number:03}" for number in range(500)], 10)
    shelf.keys.reverse()
    behind: dict[str | None, int] = {None: 0}

    async def page(after: str | None, token: str | None) -> Any:
        assert after is None
        start = behind[token]
        behind[str(start)] = start + 10
        objects = [S3Object(key) for key in shelf.keys[start : start + 10]]
        return ListedPage(objects, str(start) if start + 10 < 500 else None)

    shelf.page = page  # type: ignore[method-assign]
    assert await collect(shelf) == shelf.keys


@pytest.mark.parametrize("page_size", [1, 10])
async def test_a_store_that_turns_out_to_have_no_order_says_so_and_cancels_no_taker(page_size: int) -> None:
    keys = [f"{number:04}" for number in range(40 * page_size)]
    keys[len(keys) // 2 :] = reversed(keys[len(keys) // 2 :])
    taken: list[str] = []
    taking = 0

    async def page(_: str | None, token: str | None) -> Any:  # ignores the key to begin after
        await anyio.lowlevel.checkpoint()
        end = int(token or 0) + page_size
        objects = [S3Object(key) for key in keys[end - page_size : end]]
        return ListedPage(objects, str(end) if end < len(keys) else None)

    async def take(page: Page) -> None:
        nonlocal taking
        taking += 1
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        taking -= 1
        taken.extend(each.key for each in page)

    with anyio.fail_after(60), pytest.raises(listing.UnorderedError, match="not list in the order of the keys"):
        await listing._KeyRanges(page, "", take, 4).list()
    assert taking == 0
    taken.clear()
    await listing._KeyRanges(page, "", take, 1).list()
    assert taken == keys


async def test_a_slow_taker_slows_the_listing_down() -> None:
    shelf = Shelf([f"{number:05}" for number in range(5_000)], 10)
    taken = 0

    async def take(page: Page) -> None:
        nonlocal taken
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        taken += 1
        assert shelf.asked - taken <= 8  # each range has one page in `take` and one requested

    await listing._KeyRanges(shelf.page, "", take, 4).list()


async def test_an_error_of_the_taker_ends_the_listing() -> None:
    async def take(_: Page) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await listing._KeyRanges(Shelf(["a"], 1).page, "", take, 4).list()
