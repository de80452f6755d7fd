"""The input of a bulk submission, cut into frames: the jobs that go into a batch together, at least at first."""

import time
from collections.abc import AsyncIterable, Callable, Iterable

import anyio.lowlevel

from convertrilo.bulk.batches import Item, Request, make_item
from convertrilo.errors import ConvertriloError, IdempotencyConflictError, ValidationError

Jobs = Iterable[Request] | AsyncIterable[Request]

_SLICE = 0.01
"""Seconds for which a plain iterable is read before other tasks have a turn."""


class Frames:
    """Reads the input, frame by frame.

    Jobs without an `external_id` have frames of their own: they have no identity, and their batch has none.
    """

    def __init__(self, jobs: Jobs, size: int) -> None:
        self.size = size
        """Jobs of a frame."""
        self.taken = 0
        """How many jobs were read."""
        self._refused: list[tuple[Request, ConvertriloError]] = []
        self._is_at_end = False
        self._advance: Callable[[], Request] | None = None
        if isinstance(jobs, AsyncIterable):
            self._source = aiter(jobs)
        else:
            self._advance = iter(jobs).__next__
        self._named: dict[str, Item] = {}
        self._nameless: list[Item] = []

    async def next(self, is_time_to_stop: Callable[[], bool]) -> list[Item] | None:
        """Return the members of the next frame; the last ones are smaller, and after those it is empty.

        Args:
            is_time_to_stop: Asked as jobs come in; when it is, what was read stays for the next time, and there is no
                frame.
        """
        named, nameless, size = self._named, self._nameless, self.size
        advance, due = self._advance, time.perf_counter() + _SLICE
        is_stopped = False
        while not (self._is_at_end or is_stopped) and len(named) < size and len(nameless) < size:
            try:
                if advance is not None:
                    request = advance()
                    if time.perf_counter() > due:
                        await anyio.lowlevel.checkpoint()  # however slow it is, others have a turn
                        due = time.perf_counter() + _SLICE
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
                self._repeat(first, item)
        if is_stopped and len(named) < size and len(nameless) < size:
            return None
        if len(named) >= size or (named and len(nameless) < size):
            frame = list(named.values())
            self._named = {item.external_id or "": item for item in frame[size:]}
            return frame[:size]
        self._nameless = []
        return nameless

    def take_refused(self) -> list[tuple[Request, ConvertriloError]]:
        """Return the jobs that were met since the last time and are not to be sent, and why."""
        refused, self._refused = self._refused, []
        return refused

    def put_back(self, items: Iterable[Item]) -> None:
        """Let jobs go into the next frame: what they were to go with is known already."""
        for item in items:
            assert item.external_id is not None
            first = self._named.setdefault(item.external_id, item)
            if first is not item:
                self._repeat(first, item)

    def _repeat(self, first: Item, item: Item) -> None:
        if first.bare == item.bare:
            first.requests += item.requests
        else:
            self._refused += [(request, conflict()) for request in item.requests]


def conflict() -> IdempotencyConflictError:
    """Make the error of a job whose `external_id` is that of another one."""
    return IdempotencyConflictError(
        "another job has this external_id, and its body or settings are others. This one was not sent",
        status=409,
        code="idempotency_conflict",
        operation="createJobsBulk",
    )
