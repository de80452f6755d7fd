"""Resumed multipart uploads: with a journal, only the missing parts are sent, whatever interrupted the upload."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_clock import FakeClock
from support import raised_by

from convertrilo import (
    AsyncClient,
    InvalidRequestError,
    Journal,
    JournalError,
    OutcomeUnknownError,
    RetryPolicy,
    TransferError,
    TransportError,
)
from convertrilo.sandbox import Sandbox
from convertrilo.transfers import Progress

PART = 1000
PARTS = 8
DATA = b"".join(b"%250d" % line for line in range(PART * PARTS // 250))
NEW = bytes(reversed(DATA))
BODY = {"codec": "h264", "resolution": "480p", "fps": 30, "externalId": "holiday"}


class Uploads:
    """The uploads of one job, by clients that share only the journal's file."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.path = folder / "in.mp4"
        self.path.write_bytes(DATA)
        self.job_id = ""

    @asynccontextmanager
    async def client(self, journal: str | None = "journal.db", **options: Any) -> AsyncIterator[AsyncClient]:
        opened = None if journal is None else Journal(self.folder / journal)
        async with self.sandbox.client(journal=opened, clock=FakeClock(), **options) as client:
            yield client

    async def run(self, source: Any = None, *, part_size: int = PART, **options: Any) -> list[int]:
        """Upload, and return the numbers of the parts that were sent."""
        before = len(self.sandbox.requests)
        async with self.client(**options) as client:
            source = self.path if source is None else source
            await client.upload_chunked(self.job_id, source, part_size=part_size, concurrency=1)
        return self.sent(before)

    async def interrupt(self, after: int = 3, how: str = "cancelled", **options: Any) -> None:
        """Upload until so many parts are uploaded."""
        scope = anyio.CancelScope()

        def stop(progress: Progress) -> None:
            if progress.done == after * PART:
                if how == "cancelled":
                    scope.cancel()
                elif how == "connection lost":
                    self.sandbox.faults.reset("uploadChunk", times=None)
                else:
                    raise LookupError("the callback's own")

        async with self.client(retry=RetryPolicy(max_attempts=2), **options) as client:
            with scope:
                upload = client.upload_chunked(self.job_id, self.path, part_size=PART, concurrency=1, on_progress=stop)
                error = await raised_by(upload)
                assert isinstance(error, TransportError if how == "connection lost" else LookupError)
        self.sandbox.faults.clear()

    def sent(self, before: int = 0) -> list[int]:
        chunks = [each for each in self.sandbox.requests[before:] if each.operation == "uploadChunk"]
        return [int(each.path.rpartition("/")[2]) for each in chunks if each.fault is None]

    def asked(self, before: int = 0) -> list[str]:
        return [each.operation for each in self.sandbox.requests[before:]]

    @property
    def uploaded(self) -> bytes:
        return (self.sandbox.folder / "in" / self.job_id).read_bytes()

    @property
    def is_open(self) -> bool:
        return self.sandbox._read(lambda tx: tx.row("SELECT 1 FROM uploads WHERE job = ?", self.job_id)) is not None

    async def known(self) -> list[int]:
        """Return the numbers of the parts in the journal."""
        async with Journal(self.folder / "journal.db") as journal:
            return sorted((await journal.sent_parts(self.job_id, service="localhost")).parts)


@pytest.fixture
async def uploads(tmp_path: Path) -> AsyncIterator[Uploads]:
    async with Sandbox(seed=1) as sandbox:
        uploads = Uploads(sandbox, tmp_path)
        async with sandbox.client() as client:
            uploads.job_id = (await client.create_job(BODY)).job_id
        yield uploads


@pytest.mark.parametrize("how", ["cancelled", "connection lost", "callback"])
async def test_only_what_is_missing_is_sent(how: str, uploads: Uploads) -> None:
    await uploads.interrupt(3, how)
    assert await uploads.known() == [1, 2, 3]
    assert await uploads.run() == [4, 5, 6, 7, 8]
    assert uploads.uploaded == DATA
    assert "abortStream" not in uploads.asked()
    assert not uploads.is_open
    assert await uploads.known() == []


async def test_it_can_be_interrupted_again_and_again(uploads: Uploads) -> None:
    for after in range(PARTS):
        await uploads.interrupt(after)
    assert await uploads.run() == [PARTS]
    assert uploads.sent() == list(range(1, PARTS + 1))
    assert uploads.uploaded == DATA


async def test_progress_counts_what_has_arrived_before(uploads: Uploads) -> None:
    seen: list[Progress] = []
    await uploads.interrupt(3)
    async with uploads.client() as client:
        await client.upload_chunked(
            uploads.job_id, uploads.path, part_size=PART, concurrency=1, on_progress=seen.append
        )
    assert [each.done for each in seen] == [PART * number for number in range(PARTS + 1)]


async def stream() -> AsyncIterator[bytes]:
    for start in range(0, len(DATA), 700):
        yield DATA[start : start + 700]


SOURCES: dict[str, Callable[[Path], Any]] = {
    "another path": lambda path: path.rename(path.with_name("moved.mp4")),
    "bytes": lambda _: DATA,
    "a stream": lambda _: stream(),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_the_same_bytes_are_the_same_file_wherever_they_come_from(kind: str, uploads: Uploads) -> None:
    await uploads.interrupt(5)
    assert await uploads.run(SOURCES[kind](uploads.path)) == [6, 7, 8]
    assert uploads.uploaded == DATA


@pytest.mark.parametrize(
    ("new", "sent"),
    [
        (NEW, [1, 2, 3, 4, 5, 6, 7, 8]),
        (DATA[: 2 * PART] + NEW[2 * PART :], [3, 4, 5, 6, 7, 8]),
        (DATA[: 2 * PART], []),
        (DATA[: 2 * PART + 1], [3]),
        (DATA + NEW, list(range(6, 17))),
    ],
    ids=["all of it", "its end", "shorter", "a little shorter", "longer"],
)
async def test_a_file_that_has_changed_is_never_mixed_with_what_it_was(
    new: bytes, sent: list[int], uploads: Uploads
) -> None:
    await uploads.interrupt(5)
    times = uploads.path.stat()
    uploads.path.write_bytes(new)
    os.utime(uploads.path, ns=(times.st_atime_ns, times.st_mtime_ns))  # some copy tools keep the times
    assert await uploads.run() == sent
    assert uploads.uploaded == new


async def test_parts_of_another_size_are_sent_anew(uploads: Uploads) -> None:
    await uploads.interrupt(5)
    assert await uploads.run(part_size=PART * 2) == [1, 2, 3, 4]
    assert uploads.uploaded == DATA


async def test_what_the_service_has_forgotten_is_sent_again(uploads: Uploads) -> None:
    await uploads.interrupt(5)
    async with uploads.client(None) as client:
        await client.abort_stream(uploads.job_id)
    await uploads.interrupt(2)
    assert await uploads.known() == [1, 2]
    assert await uploads.run() == [3, 4, 5, 6, 7, 8]
    assert uploads.uploaded == DATA


@pytest.mark.parametrize("seen", ["put together", "not put together"])
async def test_who_died_while_the_parts_were_put_together_has_them_put_together_once(
    seen: str, uploads: Uploads
) -> None:
    fault = uploads.sandbox.faults.lose_response if seen == "put together" else uploads.sandbox.faults.reset
    fault("finalizeStream", times=None)
    uploads.sandbox.faults.reset("probeDuration", times=None)
    async with uploads.client(retry=RetryPolicy.none()) as client:
        error = await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
    assert isinstance(error, OutcomeUnknownError | TransportError)
    uploads.sandbox.faults.clear()
    before = len(uploads.sandbox.requests)
    assert await uploads.run() == []
    expected = ["probeDuration", "abortStream"] if seen == "put together" else ["finalizeStream"]
    assert uploads.asked(before) == ["initStream", *expected]
    assert uploads.uploaded == DATA
    assert not uploads.is_open
    assert await uploads.known() == []


async def test_a_job_that_has_gone_on_meanwhile_needs_nothing_more(uploads: Uploads) -> None:
    uploads.sandbox.faults.lose_response("finalizeStream", times=None)
    uploads.sandbox.faults.reset("probeDuration", times=None)
    async with uploads.client(retry=RetryPolicy.none()) as client:
        await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
        uploads.sandbox.faults.clear()
        uploads.sandbox.faults.status("initStream", 400, body={"code": "invalid_request", "message": "it is queued"})
    assert await uploads.run() == []
    assert "abortStream" not in uploads.asked()


@pytest.mark.parametrize("source", ["changed file", "stream"])
async def test_what_was_put_together_is_not_taken_for_another_file(source: str, uploads: Uploads) -> None:
    uploads.sandbox.faults.lose_response("finalizeStream", times=None)
    uploads.sandbox.faults.reset("probeDuration", times=None)
    async with uploads.client(retry=RetryPolicy.none()) as client:
        await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
    uploads.sandbox.faults.clear()
    uploads.path.write_bytes(NEW)
    assert await uploads.run(stream() if source == "stream" else None) == list(range(1, PARTS + 1))
    assert uploads.uploaded == (DATA if source == "stream" else NEW)


@pytest.mark.parametrize("journal", ["journal.db", None])
@pytest.mark.parametrize("fault", ["reset", "lose_response"])
async def test_the_file_of_an_earlier_upload_is_not_taken_for_this_one(
    fault: str, journal: str | None, uploads: Uploads
) -> None:
    await uploads.run(journal=journal)
    uploads.path.write_bytes(NEW)
    getattr(uploads.sandbox.faults, fault)("finalizeStream")
    await uploads.run(journal=journal)
    assert uploads.uploaded == NEW
    assert not uploads.is_open


async def test_without_retries_it_is_still_found_out_that_the_parts_are_put_together(uploads: Uploads) -> None:
    uploads.sandbox.faults.lose_response("finalizeStream")
    await uploads.run(retry=RetryPolicy.none())
    assert uploads.uploaded == DATA


@pytest.mark.parametrize("step", ["uploadChunk", "finalizeStream"])
async def test_an_upload_that_is_refused_is_given_up_and_forgotten(step: str, uploads: Uploads) -> None:
    await uploads.interrupt(3)
    uploads.sandbox.faults.status(step, 400, body={"code": "invalid_request", "message": "no"})
    async with uploads.client() as client:
        error = await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
    assert isinstance(error, InvalidRequestError)
    assert uploads.asked()[-1] == "abortStream"
    assert not uploads.is_open
    assert await uploads.known() == []


async def test_a_source_that_breaks_is_no_reason_to_give_up(uploads: Uploads) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA[: 4 * PART]
        raise OSError("the cable is out")

    async with uploads.client() as client:
        upload = client.upload_chunked(uploads.job_id, broken(), part_size=PART, concurrency=1)
        assert isinstance(await raised_by(upload), TransferError)
    assert await uploads.run() == [5, 6, 7, 8]
    assert uploads.uploaded == DATA


async def test_cancelled_before_anything_has_arrived_it_leaves_nothing(uploads: Uploads) -> None:
    scope = anyio.CancelScope()
    async with uploads.client(on_event=lambda _: scope.cancel()) as client:
        with scope:
            await client.upload_chunked(uploads.job_id, uploads.path, part_size=PART)
    assert uploads.asked()[-1] == "abortStream"
    assert await uploads.known() == []


async def test_another_services_journal_is_refused_before_anything_is_sent(uploads: Uploads) -> None:
    async with uploads.client(base_url="https://api.test") as client:
        await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
    before = len(uploads.sandbox.requests)
    async with uploads.client() as client:
        error = await raised_by(client.upload_chunked(uploads.job_id, uploads.path, part_size=PART))
    assert isinstance(error, JournalError)
    assert uploads.asked(before) == []


async def test_a_journal_that_cannot_be_written_does_not_keep_a_file_from_arriving(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def full(*_: Any) -> None:
        raise JournalError("the disk is full")

    monkeypatch.setattr(Journal, "add_part", full)
    monkeypatch.setattr(Journal, "forget_parts", full)
    await uploads.run()
    assert uploads.uploaded == DATA
    assert {str(record.exc_info and record.exc_info[1]) for record in caplog.records} == {"the disk is full"}


async def test_two_jobs_do_not_share_their_parts(uploads: Uploads) -> None:
    await uploads.interrupt(3)
    first = uploads.job_id
    async with uploads.client() as client:
        uploads.job_id = (await client.create_job({**BODY, "externalId": "another"})).job_id
    assert await uploads.run() == list(range(1, PARTS + 1))
    uploads.job_id = first
    assert await uploads.run() == [4, 5, 6, 7, 8]
