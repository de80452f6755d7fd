"""The first step of a run: find the objects, record the wanted objects, and pass the new ones to the submission."""

import os
from collections.abc import Callable
from functools import partial

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from convertrilo._base_client import BaseClient
from convertrilo.ingest.listing import UnorderedError, list_objects
from convertrilo.ingest.manifest import read_manifest
from convertrilo.ingest.objects import Page, S3Object, TakePage, external_id, is_text
from convertrilo.ingest.progress import IF_NOT_RECORDED, ProgressTracker
from convertrilo.ingest.remote import RemoteRunner
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.journal import Journal, folders


class ObjectFinder:
    """Lists a folder, or reads its manifest, and records the wanted objects: those that pass the filters."""

    def __init__(
        self,
        client: BaseClient,
        folder: S3Folder,
        journal: Journal,
        tracker: ProgressTracker,
        runner: RemoteRunner | None,
        *,
        is_wanted: Callable[[S3Object], bool],
        max_files: int | None,
    ) -> None:
        self._client = client
        self._folder = folder
        self._journal = journal
        self._tracker = tracker
        self._runner = runner
        self._is_wanted = is_wanted
        self._max_files = max_files
        self.region_is_known: anyio.Event = anyio.Event()
        """Set once the first page is read: before that, the bucket's region is not certain."""

    async def find(
        self, manifest: str | os.PathLike[str] | None, new_rows: MemoryObjectSendStream[list[folders.Row]]
    ) -> None:
        """Record all wanted objects, send the new ones to the stream page by page, and close the stream."""
        take = partial(self._take, new_rows=new_rows)
        with new_rows:
            try:
                if manifest is None:
                    await self._list(take)
                else:
                    await read_manifest(manifest, self._folder.bucket, take)
            except _EnoughFilesError:
                pass
            self._tracker.is_listed = True
            self.region_is_known.set()
            self._tracker.notify()

    async def _list(self, take: TakePage) -> None:
        list_page = None if self._runner is None else self._runner.list_page
        listing = partial(list_objects, self._client, self._folder, take, list_page=list_page)
        try:
            await listing()
        except UnorderedError:
            self._tracker.passed_over = 0  # every object is listed again, and recorded objects are not new
            await listing(concurrency=1)

    async def _take(self, page: Page, *, new_rows: MemoryObjectSendStream[list[folders.Row]]) -> None:
        wanted = [self._new_object(each) for each in page if self._is_wanted(each)]
        totals = self._tracker.totals
        self._tracker.passed_over += len(page) - len(wanted)
        rows: list[folders.Row] = []
        if wanted:
            add = partial(folders.add, objects=wanted, most=self._max_files)
            rows = await self._journal.do(add, IF_NOT_RECORDED)
        totals.listed += len(rows)
        self.region_is_known.set()
        await new_rows.send(rows)
        self._tracker.notify()
        if self._max_files is not None and totals.listed >= self._max_files:
            raise _EnoughFilesError

    def _new_object(self, each: S3Object) -> folders.New:
        name = external_id(self._folder.bucket, each)
        if is_text(each.key):
            return folders.New(each.key, each.size, name, None)
        readable = each.key.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return folders.New(readable, each.size, name, "the key is not valid UTF-8, which the API requires")


class _EnoughFilesError(Exception):
    """The journal holds `max_files` objects."""
