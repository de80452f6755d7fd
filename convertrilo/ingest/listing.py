"""List all objects of a folder in S3; a big folder is listed in several ranges of keys at a time.

tests/bench/bench_listing.py measures the listing: it needs a quarter of boto3's CPU time, on any event loop.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

from convertrilo._base_client import BaseClient
from convertrilo._tasks import TaskFunction, running_all
from convertrilo.errors import TransferError
from convertrilo.ingest.objects import Page, TakePage, is_text
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.ingest.s3_requests import ListedPage, ListPage, open_lister

CONCURRENCY = 8
"""The maximum number of ranges of keys that are listed at once."""

_UNDIVIDED_PAGES = 10
"""Pages that are listed one after the other before a folder counts as big."""
_PAGES_AHEAD = 16
"""Pages that a range keeps for itself when it is divided, estimated from the distance of its keys so far."""
_REQUESTS_PER_EMPTY_RANGE = 8
"""Ranges are no longer divided once more than one request in this number has found an empty range."""
_DIGITS = 32
"""How many characters of a key count when ranges are divided."""


class UnorderedError(TransferError):
    """The store does not list keys in order, but the listing noticed this only after it had begun several ranges."""


async def list_objects(
    client: BaseClient,
    folder: S3Folder,
    take: TakePage,
    *,
    concurrency: int = CONCURRENCY,
    list_page: ListPage | None = None,
) -> None:
    """List a folder, and pass on every object once, a page at a time.

    The first ten pages come in the order of their keys. In a bigger folder, several ranges are listed at once from then
    on, and pages come in any order. The next page of a range is requested after `take` has returned, so a slow `take`
    slows the listing down, and at most `concurrency` pages are in memory.

    Args:
        client: Provides the retry policy, the clock and the listener. Its credentials and connections are not used.
        folder: The folder.
        take: Awaited with each page. Several calls run at once when several ranges are listed.
        concurrency: The maximum number of ranges that are listed at once; 1 keeps the pages in order.
        list_page: Lists one page; by default, over connections that this function opens.

    Raises:
        UnorderedError: Some objects may be missing; list the folder again with a concurrency of 1.
        ConfigurationError: Expired credentials cannot be renewed.
        TransferError: The store does not answer, refuses, or answers with something other than a listing.
    """
    if list_page is not None:
        await _KeyRanges(list_page, folder.prefix, take, concurrency).list()
        return
    async with open_lister(client, folder, concurrency) as lister:
        await _KeyRanges(lister.page, folder.prefix, take, concurrency).list()


class _KeyRanges:
    """The ranges of keys that are listed at once. The listing divides ranges as it goes on."""

    def __init__(self, list_page: ListPage, prefix: str, take: TakePage, concurrency: int) -> None:
        self._list_page = list_page
        self._prefix = prefix
        self._take = take
        self._concurrency = concurrency
        self._running = 0
        self._pages = 0
        self._empty = 0
        self._in_order = True
        self._is_divided = False

    async def list(self) -> None:
        """List all ranges. The first error ends the listing.

        Raises:
            UnorderedError: The folder was divided, but the store does not list keys in order.
        """
        async with running_all() as start:
            self._begin(start, None, None)
        if self._is_futile:
            raise UnorderedError("the store does not list in the order of the keys, so only one range can be listed")

    def _begin(self, start: Callable[[TaskFunction], None], after: str | None, until: str | None) -> None:
        self._running += 1
        start(partial(self._list, start, after, until))

    @property
    def _is_futile(self) -> bool:
        """Whether the folder was divided although the store does not list keys in order, such as a directory bucket."""
        return self._is_divided and not self._in_order

    async def _list(self, start: Callable[[TaskFunction], None], after: str | None, until: str | None) -> None:
        try:
            await self._list_range(start, after, until)
        finally:
            self._running -= 1

    async def _list_range(self, start: Callable[[TaskFunction], None], after: str | None, until: str | None) -> None:
        """List the keys after `after` up to `until`; when the range is divided, `until` becomes smaller."""
        token: str | None = None
        is_first = True
        last = b"" if after is None else _sort_key(after)
        seen = set[int]()
        while not self._is_futile:
            listed = await self._list_page(after, token)
            marks = _marks(listed)
            if not seen.isdisjoint(marks):
                raise TransferError("the store returns the same page again and again")
            seen.update(marks)
            page, token = listed.objects, listed.token
            self._pages += 1
            keys = [last, *(_sort_key(each.key) for each in page)]
            last = keys[-1]
            self._in_order = self._in_order and keys == sorted(keys)
            if page and until is not None and _sort_key(page[-1].key) > _sort_key(until):
                page, token = [each for each in page if _sort_key(each.key) <= _sort_key(until)], None
            if is_first and not page:
                self._empty += 1
            is_first = False
            if token is not None and (middle := self._divide(page, until)) is not None:
                self._is_divided = True
                self._begin(start, middle, until)
                until = middle
            if page:
                await self._take(page)
            if token is None:
                return

    def _divide(self, page: Page, until: str | None) -> str | None:
        """Return the key at which to divide the rest of a range after a page; `None` if dividing is not worthwhile."""
        is_big = self._pages >= _UNDIVIDED_PAGES and self._in_order
        is_wasteful = self._empty * _REQUESTS_PER_EMPTY_RANGE > self._pages
        if not (is_big and page) or self._running >= self._concurrency or is_wasteful:
            return None
        return key_ahead([each.key for each in page], until, self._prefix)


def _marks(listed: ListedPage) -> list[int]:
    """Return the hashes of a page's first key and continuation token, which identify a repeated page.

    Hashes save memory: a folder of ten million objects has ten thousand pages.
    """
    marks = [hash(("key", each.key)) for each in listed.objects[:1]]
    return marks if listed.token is None else [*marks, hash(("token", listed.token))]


def _sort_key(key: str) -> bytes:
    """Return the bytes by which S3 orders a key: its UTF-8 bytes."""
    return key.encode(errors="surrogateescape")


def key_ahead(keys: Sequence[str], until: str | None, prefix: str) -> str | None:
    """Estimate the key that is 16 pages behind a page; return it if it comes before `until`.

    Keys are read as numbers whose digits are the characters that occur in the page. A bad estimate costs a request
    but loses no object, because the ranges before and after the key are both listed.
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

    value = number(keys[-1]) + _PAGES_AHEAD * (number(keys[-1]) - number(keys[0]))
    digits: list[int] = []
    for _ in range(_DIGITS):
        value, digit = divmod(value, base)
        digits.append(digit)
    middle = prefix + "".join(alphabet[max(digit, 1) - 1] for digit in reversed(digits))
    if value or middle <= keys[-1] or (until is not None and middle >= until):
        return None
    return middle
