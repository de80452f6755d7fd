"""The input of a bulk submission, read batch by batch: a batch is one request, unless the request is too large."""

import time
from collections.abc import AsyncIterable, Callable, Iterable

import anyio.lowlevel

from convertrilo.bulk.batches import Item, JobRequest, make_item
from convertrilo.errors import ConvertriloError, IdempotencyConflictError, ValidationError
from convertrilo.operations import CREATE_JOBS_BULK

Jobs = Iterable[JobRequest] | AsyncIterable[JobRequest]

_SLICE = 0.01
"""Seconds for which a plain iterable is read before other tasks get a turn."""


class BatchReader:
    """Reads the input batch by batch.

    Jobs without an `external_id` go into separate batches, because such a job gives its batch no identity.

    Args:
        jobs: The input.
        size: Jobs per batch.
        now: Returns the time in seconds, to measure how long a plain iterable keeps other tasks from running.
    """

    def __init__(self, jobs: Jobs, size: int, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.size = size
        """Jobs per batch."""
        self.taken: int = 0
        """How many jobs were read from the input."""
        self._refused: list[tuple[JobRequest, ConvertriloError]] = []
        self._is_at_end = False
        self._advance: Callable[[], JobRequest] | None = None
        if isinstance(jobs, AsyncIterable):
            self._source = aiter(jobs)
        else:
            self._advance = iter(jobs).__next__
        self._named: dict[str, Item] = {}
        self._nameless: list[Item] = []

    async def next(self, is_time_to_stop: Callable[[], bool]) -> list[Item] | None:
        """Return the jobs of the next batch: fewer at the end of the input, and an empty list after it.

        Args:
            is_time_to_stop: Called while jobs are read. Once it returns True, the jobs read so far are kept for the
                next call, and this call returns None.
        """
        named, nameless, size = self._named, self._nameless, self.size
        advance, due = self._advance, self._now() + _SLICE
        is_stopped = False
        while not (self._is_at_end or is_stopped) and len(named) < size and len(nameless) < size:
            try:
                if advance is not None:
                    request = advance()
                    if self._now() > due:
                        await anyio.lowlevel.checkpoint()  # other tasks get a turn, however slow the iterable is
                        due = self._now() + _SLICE
                        is_stopped = is_time_to_stop()
                else:
                    request = await anext(self._source)
                    is_stopped = is_time_to_stop()
            except (StopIteration, StopAsyncIteration):
                self._is_at_end = True
                break
            self.taken += 1
            try:
                item = make_item(request)
            except ValidationError as error:
                self._refused.append((request, error))
                continue
            if not item.external_id:
                nameless.append(item)
                continue
            first = named.setdefault(item.external_id, item)
            if first is not item:
                self._merge(first, item)
        if is_stopped and len(named) < size and len(nameless) < size:
            return None
        if len(named) >= size or (named and len(nameless) < size):
            batch = list(named.values())
            self._named = {item.external_id or "": item for item in batch[size:]}
            return batch[:size]
        self._nameless = []
        return nameless

    def take_refused(self) -> list[tuple[JobRequest, ConvertriloError]]:
        """Return the jobs that were refused since the last call, without being sent, and the error of each."""
        refused, self._refused = self._refused, []
        return refused

    def requeue(self, items: Iterable[Item]) -> None:
        """Put jobs into the next batch: the other jobs of their batch are already in the journal."""
        for item in items:
            assert item.external_id is not None
            first = self._named.setdefault(item.external_id, item)
            if first is not item:
                self._merge(first, item)

    def _merge(self, first: Item, item: Item) -> None:
        """Merge a repeated job into its first occurrence, or refuse the repeated job if it differs."""
        if first.body_without_credentials == item.body_without_credentials:
            first.requests += item.requests
        else:
            self._refused += [(request, conflict()) for request in item.requests]


def conflict() -> IdempotencyConflictError:
    """Return the error of a job whose `external_id` belongs to a different job."""
    return IdempotencyConflictError(
        "another job has this external_id, but its body or settings differ. This job was not sent",
        status=409,
        code="idempotency_conflict",
        operation=CREATE_JOBS_BULK.id,
    )
