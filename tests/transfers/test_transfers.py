"""Uploads and downloads: every byte arrives, whatever breaks, and no API credential is sent along."""

import asyncio
import base64
import errno
import gc
import hashlib
import io
import itertools
import json
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import psutil
import pytest
from fake_clock import FakeClock
from loopback import Received, loopback
from loopback import answer as on_the_wire
from support import API_KEY, TOKEN, Answer, Script, Sent, Step, client_of, names_in, ok, problem, raised_by

from convertrilo import (
    AsyncClient,
    AttemptEvent,
    ConfigurationError,
    JobCreateResponse,
    JobOutput,
    JobUpload,
    OnDemandStatusResponse,
    OutcomeUnknownError,
    PermissionDeniedError,
    RetryPolicy,
    ServerError,
    StatusResponse,
    TransferError,
    TransportError,
    ValidationError,
)
from convertrilo.sandbox import Rules, Sandbox, VirtualClock
from convertrilo.transfers import Progress, download, multipart, part_file
from convertrilo.transfers.source import Content

DATA = bytes(range(256)) * 3000  # 768,000 bytes
SEND_SIZE, READ_SIZE = 256 * 1024, 300_000
UPLOAD_URL = "https://storage.test/in/j-1?X-Amz-Signature=upload-secret"
DOWNLOAD_URL = "https://storage.test/out/j-1?X-Amz-Signature=download-secret"
JOB = JobCreateResponse(job_id="j-1", upload=JobUpload(url=UPLOAD_URL), output=JobOutput())
DONE = {"id": "j-1", "status": "success", "downloadUrl": DOWNLOAD_URL}
STATUS = StatusResponse(id="j-1", status="success", download_url=DOWNLOAD_URL)
RESET = httpx.ReadError("connection reset")
STORED = Answer(200)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the small files of these tests in several pieces."""
    monkeypatch.setattr(Content.next, "__defaults__", (READ_SIZE,))


# ---- upload: from what


async def stream_of(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def file_at(data: bytes, position: int) -> io.BytesIO:
    file = io.BytesIO(b"-" * position + data)
    file.seek(position)
    return file


def path_to(tmp_path: Path, data: bytes = DATA) -> Path:
    path = tmp_path / "in.mp4"
    path.write_bytes(data)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": path_to,
    "path as text": lambda folder: str(path_to(folder)),
    "open file": lambda _: file_at(DATA, 0),
    "open file, not at its start": lambda _: file_at(DATA, 17),
    "bytes": lambda _: DATA,
    "bytearray": lambda _: bytearray(DATA),
    "memoryview": lambda _: memoryview(DATA),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_upload_sends_the_source_and_its_length(kind: str, tmp_path: Path) -> None:
    script = Script(STORED)
    async with client_of(script) as client:
        await client.upload(JOB, SOURCES[kind](tmp_path))
    (sent,) = script.sent
    assert (sent.method, sent.target) == ("PUT", "/in/j-1?X-Amz-Signature=upload-secret")
    assert sent.body == DATA
    assert sent.headers["content-length"] == str(len(DATA))
    assert "transfer-encoding" not in sent.headers
    assert script.open == 0


@pytest.mark.parametrize("size", [None, len(DATA)])
async def test_a_stream_is_sent_with_its_length_if_that_is_known(size: int | None) -> None:
    script = Script(STORED)
    async with client_of(script) as client:
        await client.upload(UPLOAD_URL, stream_of(DATA), size=size)
    (sent,) = script.sent
    assert sent.body == DATA
    assert sent.headers.get("content-length") == (None if size is None else str(size))
    assert ("transfer-encoding" in sent.headers) is (size is None)


@pytest.mark.parametrize("kind", ["path", "stream"])
async def test_an_upload_crosses_a_real_socket(kind: str, tmp_path: Path) -> None:
    async def store(received: Received) -> bytes:
        return on_the_wire()

    async with loopback(store) as server, AsyncClient("key") as client:
        await client.upload(f"{server.url}/in", path_to(tmp_path) if kind == "path" else stream_of(DATA))
    (received,) = server.requests
    assert received.body == DATA


async def test_an_empty_file_is_uploaded_as_one(tmp_path: Path) -> None:
    script, seen = Script(STORED), list[Progress]()
    async with client_of(script) as client:
        await client.upload(JOB, path_to(tmp_path, b""), on_progress=seen.append)
    assert script.sent[0].headers["content-length"] == "0"
    assert seen == [Progress("upload", 0, 0, "j-1")]


async def test_upload_progress_ends_at_the_total_and_begins_anew_with_an_attempt(tmp_path: Path) -> None:
    seen: list[Progress] = []
    async with client_of(Script(problem(500), STORED)) as client:
        await client.upload(JOB, path_to(tmp_path), on_progress=seen.append)
    once = [each.done for each in seen[: len(seen) // 2]]
    assert [each.done for each in seen] == once + once
    assert (once[0], once[-1]) == (0, len(DATA))
    assert all(0 < after - before <= SEND_SIZE for before, after in itertools.pairwise(once))
    assert {(each.stage, each.total, each.job_id) for each in seen} == {("upload", len(DATA), "j-1")}


WRONG_SOURCES: list[tuple[Callable[[Path], Any], type[Exception], str]] = [
    (lambda folder: folder / "none.mp4", TransferError, "No such file"),
    (lambda folder: folder, TransferError, "directory"),
    (lambda _: io.StringIO("text"), ValidationError, "bytes, not text"),
    (lambda _: 12, ValidationError, "must be a path"),
    (lambda _: [b"a", b"b"], ValidationError, "must be a path"),
]


@pytest.mark.parametrize(("make", "kind", "says"), WRONG_SOURCES)
async def test_a_source_that_is_none_says_so(make: Any, kind: type[Exception], says: str, tmp_path: Path) -> None:
    async with client_of(Script(STORED)) as client:
        error = await raised_by(client.upload(JOB, make(tmp_path)))
    assert type(error) is kind
    assert says in str(error)


@pytest.mark.parametrize(
    "job",
    ["in.mp4", "ftp://storage.test/x", JobUpload(), JobCreateResponse(job_id="j", upload=None, output=JobOutput())],
    ids=repr,
)
async def test_a_job_without_a_place_for_the_file_is_refused_before_anything_is_sent(job: Any) -> None:
    script = Script(STORED)
    async with client_of(script) as client:
        assert isinstance(await raised_by(client.upload(job, DATA)), ValidationError)
    assert script.attempts == 0


# ---- upload: what breaks

PASSING: dict[str, Step] = {
    "connect": httpx.ConnectError("refused"),
    "reset": RESET,
    "write timeout": httpx.WriteTimeout("slow"),
    "500": problem(500),
    "503 with Retry-After": problem(503, headers={"Retry-After": "7"}),
    "429": problem(429, headers={"Retry-After": "3"}),
    "S3's RequestTimeout": Answer(400, b"<Error><Code>RequestTimeout</Code><Message>slow</Message></Error>"),
}


@pytest.mark.parametrize("kind", ["path", "open file, not at its start", "bytes"])
@pytest.mark.parametrize("failure", PASSING)
async def test_what_can_be_read_again_is_sent_again_from_its_start(failure: str, kind: str, tmp_path: Path) -> None:
    script = Script(PASSING[failure], PASSING[failure], STORED)
    async with client_of(script) as client:
        await client.upload(JOB, SOURCES[kind](tmp_path))
    assert [sent.body for sent in script.sent] == [DATA] * 3
    if "Retry-After" in failure or failure == "429":
        assert script.clock.sleeps == [7.0 if failure.startswith("503") else 3.0] * 2


async def test_a_stream_that_was_begun_is_not_sent_again() -> None:
    script = Script(RESET, STORED)
    async with client_of(script) as client:
        error = await raised_by(client.upload(JOB, stream_of(DATA), size=len(DATA)))
    assert isinstance(error, TransferError)
    assert "cannot be read a second time" in str(error)
    assert script.attempts == 1


async def test_a_stream_of_which_nothing_was_read_is_sent_when_a_connection_is_there() -> None:
    class Unconnected(Script):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.refused = getattr(self, "refused", 0) + 1
            if self.refused < 3:
                raise httpx.ConnectError("refused")
            return await super().handle_async_request(request)

    script = Unconnected(STORED)
    async with client_of(script) as client:
        await client.upload(JOB, stream_of(DATA))
    assert script.sent[0].body == DATA


@pytest.mark.parametrize(("size", "says"), [(len(DATA) + 1, "ends after"), (len(DATA) - 1, "is longer than")])
async def test_a_stream_that_is_not_as_long_as_was_said_does_not_pass(size: int, says: str) -> None:
    async with client_of(Script(STORED)) as client:
        error = await raised_by(client.upload(JOB, stream_of(DATA), size=size))
    assert isinstance(error, TransferError)
    assert says in str(error)


async def test_a_file_that_shrinks_does_not_pass_and_one_that_grows_is_sent_as_it_was() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() == 0 else b""

    async with client_of(Script(STORED)) as client:
        error = await raised_by(client.upload(JOB, Shrinking(DATA)))
    assert isinstance(error, TransferError)
    assert f"ends after {READ_SIZE} of the {len(DATA)} bytes" in str(error)

    class Growing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            at = self.tell()
            self.seek(0, os.SEEK_END)
            self.write(b"more")
            self.seek(at)
            return super().read(size)

    script = Script(STORED)
    async with client_of(script) as client:
        await client.upload(JOB, Growing(DATA))
    assert script.sent[0].body == DATA


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), httpx.ReadError("upstream broke")])
async def test_a_source_that_breaks_is_not_mistaken_for_the_storage(error: Exception) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise error

    script = Script(STORED)
    async with client_of(script) as client:
        raised = await raised_by(client.upload(JOB, broken()))
    assert isinstance(raised, TransferError)
    assert "the stream cannot be read after 1 bytes" in str(raised)
    assert raised.__cause__ is error


async def test_an_upload_gives_up_after_as_many_attempts_as_the_policy_allows() -> None:
    script, events = Script(RESET), list[AttemptEvent]()
    async with client_of(script, retry=RetryPolicy(max_attempts=3), on_event=events.append) as client:
        error = await raised_by(client.upload(JOB, DATA))
    assert script.attempts == 3
    assert str(error) == "the data is not uploaded: no answer from storage.test: connection reset"
    assert isinstance(error.__cause__.__cause__, httpx.ReadError)
    assert [(e.operation, e.attempt, e.outcome, e.wait) for e in events] == [
        ("upload", 1, "unclear", 0.5),
        ("upload", 2, "unclear", 1.0),
        ("upload", 3, "unclear", None),
    ]


async def test_an_upload_url_that_has_expired_says_so() -> None:
    clock = VirtualClock()
    async with Sandbox(clock=clock, rules=Rules(upload_seconds=60)) as sandbox, sandbox.client() as client:
        job = await client.create_job({"codec": "h264", "resolution": "480p", "fps": 30})
        clock.advance(61)
        error = await raised_by(client.upload(job, DATA))
    assert isinstance(error, TransferError)
    assert "403" in str(error)
    assert "may have expired" in str(error)
    assert "signature=" not in str(error)


async def test_cancelling_an_upload_leaves_nothing_open(tmp_path: Path) -> None:
    begun = anyio.Event()

    async def hang(sent: Sent) -> Answer:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    path = path_to(tmp_path)
    async with client_of(Script(hang)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.upload, JOB, path)
        await begun.wait()
        assert str(path) in {each.path for each in psutil.Process().open_files()}
        tasks.cancel_scope.cancel()
    assert str(path) not in {each.path for each in psutil.Process().open_files()}


# ---- upload in parts


class PartStore:
    """Receives files in parts, as the service does. `failures` are answered first, by the last word of the path."""

    def __init__(self, **failures: list[Any]) -> None:
        self.failures = failures
        self.parts: dict[int, bytes] = {}
        self.file: bytes | None = None
        self.aborted = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        """Awaited with every part."""
        self.gives_etags = True

    async def __call__(self, sent: Sent) -> Answer:
        *_, word, last = sent.target.split("/")
        word = word if word == "chunk" else last.replace("-duration", "")
        if word == "chunk":
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await self.gate()
            finally:
                self.at_once -= 1
        failure = self.failures[word].pop(0) if self.failures.get(word) else None
        if isinstance(failure, Answer):
            return failure
        answer: Answer = getattr(self, word)(sent, last)
        if isinstance(failure, Exception):  # the request has been processed by now
            raise failure
        return answer

    def init(self, *_: Any) -> Answer:
        return ok({"ok": True, "uploadId": "u-1"})

    def chunk(self, sent: Sent, last: str) -> Answer:
        self.parts[int(last)] = sent.body
        return ok(etag=f'"{last}-{len(sent.body)}"') if self.gives_etags else ok()

    def finalize(self, sent: Sent, _: str) -> Answer:
        if self.file is not None:
            return problem(400, "invalid_request")
        if self.gives_etags:
            numbers = [part["PartNumber"] for part in sent.json["parts"]]
            assert numbers == list(range(1, len(self.parts) + 1))
            assert [part["ETag"] for part in sent.json["parts"]] == [f'"{n}-{len(self.parts[n])}"' for n in numbers]
        else:
            assert sent.body == b""
        self.file = b"".join(self.parts[number] for number in sorted(self.parts))
        return ok()

    def abort(self, *_: Any) -> Answer:
        self.aborted += 1
        return ok()

    def probe(self, *_: Any) -> Answer:
        return problem(400, "invalid_request") if self.file is None else ok({"durationSec": 5})


@pytest.mark.parametrize("part_size", [1000, READ_SIZE, 300_000, len(DATA), 10**7])
@pytest.mark.parametrize("kind", [*SOURCES, "stream", "stream of known size"])
async def test_a_file_goes_up_in_parts_and_is_whole(kind: str, part_size: int, tmp_path: Path) -> None:
    store = PartStore()
    seen: list[Progress] = []
    source = stream_of(DATA) if "stream" in kind else SOURCES[kind](tmp_path)
    size = len(DATA) if kind == "stream of known size" else None
    async with client_of(Script(store)) as client:
        await client.upload_chunked("j-1", source, part_size=part_size, size=size, on_progress=seen.append)
    assert store.file == DATA
    assert {len(part) for number, part in store.parts.items() if number < len(store.parts)} <= {part_size}
    assert (seen[0].done, seen[-1].done) == (0, len(DATA))
    assert {each.total for each in seen} == {None if kind == "stream" else len(DATA)}
    assert store.aborted == 0


async def test_an_empty_file_is_one_empty_part(tmp_path: Path) -> None:
    store = PartStore()
    async with client_of(Script(store)) as client:
        await client.upload_chunked("j-1", b"")
    assert (store.parts, store.file) == ({1: b""}, b"")


async def test_without_etags_the_service_takes_all_parts_that_it_has() -> None:
    store = PartStore()
    store.gives_etags = False
    async with client_of(Script(store)) as client:
        await client.upload_chunked("j-1", DATA, part_size=200_000)
    assert store.file == DATA


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_as_many_parts_are_under_way_as_was_said(concurrency: int) -> None:
    store = PartStore()
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        async for piece in stream_of(DATA, 10_000):
            read += len(piece)
            assert read - sum(map(len, store.parts.values())) <= concurrency * 50_000
            yield piece

    full = anyio.Event()

    async def meet() -> None:
        if store.at_once == concurrency:
            full.set()
        await full.wait()

    store.gate = meet
    async with client_of(Script(store)) as client:
        with anyio.fail_after(60):
            await client.upload_chunked("j-1", counted(), part_size=50_000, concurrency=concurrency)
    assert store.most_at_once == concurrency


async def test_a_part_that_comes_in_pieces_is_in_memory_once() -> None:
    size = 4 * 1024 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3 * 8):
            yield bytes(size // 8)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"uploadId": "u-1"}, headers={"ETag": "e"}))
    async with AsyncClient(API_KEY, base_url="https://api.test", transport=transport) as client:
        tracemalloc.start()
        try:
            await client.upload_chunked("j-1", pieces(), part_size=size, concurrency=1)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 1.5 * size


async def test_a_buffer_that_is_filled_anew_for_each_piece_is_not_mistaken_for_what_it_was() -> None:
    buffer = bytearray(100_000)

    async def pieces() -> AsyncIterator[Any]:
        async for piece in stream_of(DATA, len(buffer)):
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    store = PartStore()
    async with client_of(Script(store)) as client:
        await client.upload_chunked("j-1", pieces(), part_size=300_000)
    assert store.file == DATA


@pytest.mark.parametrize("word", ["init", "chunk", "finalize"])
@pytest.mark.parametrize("failure", [RESET, problem(500), problem(503, headers={"Retry-After": "1"}), problem(429)])
async def test_what_breaks_is_done_again_alone(word: str, failure: Any) -> None:
    store = PartStore(**{word: [failure, failure]})
    script = Script(store)
    async with client_of(script) as client:
        await client.upload_chunked("j-1", stream_of(DATA), part_size=200_000)
    assert store.file == DATA
    assert sum("/chunk/" in sent.target for sent in script.sent) == 4 + (2 if word == "chunk" else 0)
    assert store.aborted == 0


@pytest.mark.parametrize("word", ["chunk", "finalize"])
async def test_an_upload_in_parts_that_fails_is_given_up_on_the_server(word: str) -> None:
    store = PartStore(**{word: [problem(403)]})
    async with client_of(Script(store)) as client:
        error = await raised_by(client.upload_chunked("j-1", DATA, part_size=200_000))
    assert isinstance(error, PermissionDeniedError)
    assert (store.aborted, store.at_once) == (1, 0)


async def test_an_upload_in_parts_of_a_source_that_breaks_is_given_up() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise OSError(errno.EIO, "input/output error")

    store = PartStore()
    async with client_of(Script(store)) as client:
        error = await raised_by(client.upload_chunked("j-1", broken(), part_size=200_000))
    assert isinstance(error, TransferError)
    assert store.aborted == 1


async def test_an_upload_in_parts_that_is_cancelled_is_given_up_on_the_server() -> None:
    store, begun = PartStore(), anyio.Event()

    async def hang() -> None:
        if store.at_once == 4:
            begun.set()
        await anyio.sleep_forever()

    async with client_of(Script(store)) as client, anyio.create_task_group() as tasks:
        store.gate = hang
        tasks.start_soon(partial(client.upload_chunked, "j-1", DATA, part_size=100_000))
        with anyio.fail_after(60):
            await begun.wait()
        tasks.cancel_scope.cancel()
    assert (store.aborted, store.at_once, store.file) == (1, 0, None)


async def test_an_upload_of_which_nobody_knows_whether_it_is_whole_is_not_given_up() -> None:
    store = PartStore(finalize=[problem(500)] * 3)
    async with client_of(Script(store), retry=RetryPolicy(max_attempts=3)) as client:
        error = await raised_by(client.upload_chunked("j-1", DATA))
    assert isinstance(error, OutcomeUnknownError)
    assert store.aborted == 0


async def test_an_upload_that_may_be_whole_is_not_given_up_because_nobody_can_say_so() -> None:
    store = PartStore(finalize=[httpx.ReadError("reset")], probe=[problem(500)])
    async with client_of(Script(store), retry=RetryPolicy.none()) as client:
        error = await raised_by(client.upload_chunked("j-1", DATA))
    assert isinstance(error, OutcomeUnknownError | TransportError | ServerError)
    assert (store.file, store.aborted) == (DATA, 0)


@pytest.mark.parametrize("is_done", [True, False])
async def test_an_upload_whose_last_step_is_cancelled_is_given_up_unless_it_is_whole(is_done: bool) -> None:
    class Hanging(PartStore):
        async def __call__(self, sent: Sent) -> Answer:
            if "finalize" not in sent.target:
                return await super().__call__(sent)
            if is_done:
                await super().__call__(sent)
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()
            raise AssertionError

    store = Hanging()
    async with client_of(Script(store)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.upload_chunked, "j-1", DATA)
    assert (store.file, store.aborted) == ((DATA, 0) if is_done else (None, 1))


async def test_parts_grow_with_a_file_that_would_have_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multipart.MOST_PARTS == 10_000
    monkeypatch.setattr(multipart, "MOST_PARTS", 100)
    store = PartStore()
    async with client_of(Script(store)) as client:
        await client.upload_chunked("j-1", DATA, part_size=10)
        assert len(store.parts) == 100
        error = await raised_by(client.upload_chunked("j-1", stream_of(DATA), part_size=10))
    assert store.file == DATA
    assert isinstance(error, TransferError)
    assert "more than 100 parts of 10 bytes" in str(error)


@pytest.mark.parametrize("wrong", [{"part_size": 0}, {"concurrency": 0}])
async def test_parts_of_no_size_are_refused(wrong: dict[str, Any]) -> None:
    script = Script(PartStore())
    async with client_of(script) as client:
        assert isinstance(await raised_by(client.upload_chunked("j-1", DATA, **wrong)), ValidationError)
    assert script.attempts == 0


# ---- what is nobody else's


@pytest.mark.parametrize("error", [LookupError("its own"), BrokenPipeError("stdout"), httpx.ReadError("its own")])
@pytest.mark.parametrize("flow", ["upload", "download"])
async def test_an_error_of_the_callback_is_not_taken_for_the_networks_or_the_disks(
    flow: str, error: Exception, tmp_path: Path
) -> None:
    def fail(progress: Progress) -> None:
        if progress.done:
            raise error

    script = Script(STORED if flow == "upload" else Storage())
    async with client_of(script) as client:
        if flow == "upload":
            raised = await raised_by(client.upload(JOB, DATA, on_progress=fail))
        else:
            raised = await raised_by(client.download(STATUS, tmp_path / "out", on_progress=fail))
    assert raised is error
    assert script.clock.sleeps == []
    assert script.open == 0
    assert not (tmp_path / "out").exists()


async def test_an_error_of_the_callers_token_source_is_not_taken_for_the_disks(tmp_path: Path) -> None:
    def get_token() -> str:
        raise ConnectionRefusedError("no vault")

    async with client_of(Script(ok(DONE)), api_key=None, get_token=get_token) as client:
        assert isinstance(await raised_by(client.download("j-1", tmp_path / "out")), ConnectionRefusedError)


async def test_who_waits_for_no_retry_after_tries_again_all_the_same() -> None:
    script = Script(RESET, STORED)
    async with client_of(script, retry=RetryPolicy(max_retry_after=0)) as client:
        await client.upload(JOB, DATA)
        assert script.attempts == 2
    script = Script(problem(503, headers={"Retry-After": "1"}), STORED)
    async with client_of(script, retry=RetryPolicy(max_retry_after=0)) as client:
        assert isinstance(await raised_by(client.upload(JOB, DATA)), TransferError)


@pytest.mark.parametrize("flow", ["upload", "download"])
async def test_an_attempt_that_is_cancelled_is_told_too(flow: str, tmp_path: Path) -> None:
    async def hang(_: Sent) -> Answer:
        scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    events, scope = list[AttemptEvent](), anyio.CancelScope()
    async with client_of(Script(problem(500), hang), on_event=events.append) as client:
        with scope:
            await (client.upload(JOB, DATA) if flow == "upload" else client.download(STATUS, tmp_path / "out"))
    assert [(each.operation, each.attempt, each.outcome) for each in events] == [
        (flow, 1, "unclear"),
        (flow, 2, "interrupted"),
    ]


async def test_a_client_that_is_closed_moves_no_file(tmp_path: Path) -> None:
    script = Script(RESET)
    async with client_of(script) as client:
        pass
    for flow in (client.upload(JOB, DATA), client.download(STATUS, tmp_path / "out")):
        assert isinstance(await raised_by(flow), ConfigurationError)
    assert script.attempts == 0


# ---- credentials and redirects


async def test_no_storage_host_gets_the_credentials_of_the_api(tmp_path: Path) -> None:
    script = Script(
        Answer(307, headers={"Location": "https://other.test/in?X-Amz-Signature=2"}),
        STORED,
        Answer(302, headers={"Location": "https://mirror.test/out"}),
        Answer(body=DATA, headers={"Content-Length": str(len(DATA))}),
    )
    async with client_of(script) as client:
        await client.upload(JOB, DATA)
        await client.download(STATUS, tmp_path / "out.mp4")
    assert [sent.headers["host"] for sent in script.sent] == [
        "storage.test",
        "other.test",
        "storage.test",
        "mirror.test",
    ]
    assert script.sent[1].body == DATA
    for sent in script.sent:
        assert not {"x-api-key", "authorization", "cookie", "idempotency-key"} & set(sent.headers)
        assert not {API_KEY, TOKEN} & set(sent.headers.values())


BAD_REDIRECTS = [
    ("PUT", 302, "https://other.test/in", "does not resend the file"),
    ("PUT", 307, "http://storage.test/in", "without encryption"),
    ("GET", 302, "http://storage.test/out", "without encryption"),
    ("GET", 302, "https://storage.test/again", "more than 5 redirects"),
]


@pytest.mark.parametrize(("method", "status", "location", "says"), BAD_REDIRECTS)
async def test_a_redirect_that_cannot_be_followed_is_an_error(
    method: str, status: int, location: str, says: str, tmp_path: Path
) -> None:
    script = Script(Answer(status, headers={"Location": location}))
    async with client_of(script) as client:
        flow = client.upload(JOB, DATA) if method == "PUT" else client.download(STATUS, tmp_path / "out")
        error = await raised_by(flow)
    assert isinstance(error, TransferError)
    assert says in str(error).replace("redirects more than 5 times", "more than 5 redirects")
    assert script.attempts <= 6


@pytest.mark.parametrize(
    "failure", [RESET, problem(500), problem(403), Answer(302, headers={"Location": DOWNLOAD_URL})]
)
async def test_no_error_shows_a_signature(failure: Step, tmp_path: Path) -> None:
    async with client_of(Script(failure), retry=RetryPolicy.none()) as client:
        for flow in (client.upload(JOB, DATA), client.download(DOWNLOAD_URL, tmp_path / "out")):
            error = await raised_by(flow)
            cause = error.__cause__.__cause__
            shown = f"{error} {error!r} {cause} {cause!r} {getattr(cause, '_request', None) and cause.request.url}"
            assert "secret" not in shown


async def test_of_an_error_answer_only_code_and_message_are_shown() -> None:
    body = (
        b"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>it does not match</Message>"
        b"<AWSAccessKeyId>AKIA-secret</AWSAccessKeyId><SignatureProvided>secret</SignatureProvided></Error>"
    )
    async with client_of(Script(Answer(403, body))) as client:
        error = await raised_by(client.upload(JOB, DATA))
    assert str(error) == (
        "the data is not uploaded: the storage answers 403 (SignatureDoesNotMatch: it does not match); "
        "the upload URL may have expired"
    )


# ---- download: of what


class Storage:
    """A server with one object, which supports ranges. `failures` come first, one per request; `None` is no failure."""

    def __init__(self, data: bytes = DATA, etag: str | None = '"v1"', failures: list[Any] | None = None) -> None:
        self.data = data
        self.etag = etag
        self.failures = failures or []
        self.knows_if_range = True
        self.most_of_a_range = len(data)
        self.last_modified = "Mon, 01 Jan 2029 00:00:00 GMT"
        self.headers: dict[str, str] = {}

    async def __call__(self, sent: Sent) -> Answer:
        if sent.headers["host"] != "storage.test":
            return ok(DONE)
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Answer):
            return failure
        headers = {"Last-Modified": self.last_modified, **self.headers} | ({"ETag": self.etag} if self.etag else {})
        body, status = self.data, 200
        wanted, condition = sent.headers.get("range"), sent.headers.get("if-range")
        if wanted and (condition in (self.etag, self.last_modified) or not self.knows_if_range):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.data):
                return Answer(416, headers={"Content-Range": f"bytes */{len(self.data)}"})
            body, status = self.data[start : start + self.most_of_a_range], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(self.data)}"
        headers["Content-Length"] = str(len(body))
        return Answer(status, body, headers, cut=failure)


TARGETS: dict[str, Any] = {
    "status": STATUS,
    "on-demand status": OnDemandStatusResponse(job_id="j-1", status="success", download_url=DOWNLOAD_URL),
    "job": JOB,
    "job id": "j-1",
    "URL": DOWNLOAD_URL,
}


@pytest.mark.parametrize("kind", TARGETS)
async def test_download_makes_a_file_of_whatever_names_an_output(kind: str, tmp_path: Path) -> None:
    script = Script(Storage())
    async with client_of(script) as client:
        path = await client.download(TARGETS[kind], str(tmp_path / "out.mp4"))
    assert path == tmp_path / "out.mp4"
    assert path.read_bytes() == DATA
    assert names_in(tmp_path) == ["out.mp4"]
    assert script.open == 0


async def test_the_id_of_an_on_demand_job_will_do(tmp_path: Path) -> None:
    async with Sandbox() as sandbox, sandbox.client() as client:
        job = await client.on_demand_encode({"sourceUrl": "https://example.com/in.mp4"})
        await sandbox.wait_until_idle()
        await client.download(job.job_id, tmp_path / "0")
        await client.download(job, tmp_path / "1")
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() != b""


async def test_download_replaces_what_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    script = Script(Storage(failures=[RESET]))
    async with client_of(script, retry=RetryPolicy.none()) as client:
        await raised_by(client.download(STATUS, out))
        assert out.read_bytes() == b"old"
        await client.download(STATUS, out)
    assert out.read_bytes() == DATA


async def test_download_progress_counts_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.__globals__, "WRITE_SIZE", 1)
    seen: list[Progress] = []
    async with client_of(Script(Storage())) as client:
        await client.download(STATUS, tmp_path / "out", on_progress=seen.append)
    half = len(DATA) // 2
    assert seen == [Progress("download", done, len(DATA), "j-1") for done in (0, half, len(DATA))]


@pytest.mark.parametrize("data", [b"", b"1"])
async def test_tiny_files_come_down_too(data: bytes, tmp_path: Path) -> None:
    async with client_of(Script(Storage(data))) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == data


# ---- download: what breaks


@pytest.mark.parametrize("failure", PASSING)
async def test_a_download_outlasts_what_passes(failure: str, tmp_path: Path) -> None:
    step = PASSING[failure]
    script = Script(step, step, Storage())
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.attempts == 3


async def test_after_a_break_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    script = Script(Storage(failures=[RESET, RESET]))
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    half, more = len(DATA) // 2, len(DATA) // 2 + len(DATA) // 4
    assert [(sent.headers.get("range"), sent.headers.get("if-range")) for sent in script.sent] == [
        (None, None),
        (f"bytes={half}-", '"v1"'),
        (f"bytes={more}-", '"v1"'),
    ]


async def test_breaks_that_each_bring_something_are_not_counted(tmp_path: Path) -> None:
    script = Script(Storage(failures=[RESET] * 10))
    async with client_of(script, retry=RetryPolicy(max_attempts=2)) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.attempts == 11


async def test_another_process_goes_on_where_one_stopped(tmp_path: Path) -> None:
    storage = Storage(failures=[RESET])
    first, second = Script(storage), Script(storage)
    async with client_of(first, retry=RetryPolicy.none()) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out"))
    assert isinstance(error, TransferError)
    assert str(tmp_path / "out.part") in str(error)
    assert (tmp_path / "out.part").read_bytes() == DATA[: len(DATA) // 2]
    async with client_of(second) as client:
        path = await client.download("j-1", tmp_path / "out")
    assert path.read_bytes() == DATA
    assert second.sent[-1].headers["range"] == f"bytes={len(DATA) // 2}-"
    assert names_in(tmp_path) == ["out"]


async def test_a_process_that_died_before_the_last_step_only_has_that_to_do(tmp_path: Path) -> None:
    (tmp_path / "out.part").write_bytes(DATA)
    note = {"source": "j-1", "etag": '"v1"', "lastModified": None, "total": len(DATA), "digest": None}
    (tmp_path / "out.part.json").write_text(json.dumps(note))
    script = Script(Storage())
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.sent[0].headers["range"] == f"bytes={len(DATA) - 1}-"


NEW = bytes(reversed(DATA))
OTHERS: dict[str, Callable[[], Storage]] = {
    "another ETag": lambda: Storage(NEW, '"v2"'),
    "shorter": lambda: Storage(NEW[:100], '"v2"'),
    "another ETag, and If-Range is not known": lambda: _ignorant(Storage(NEW, '"v2"')),
    "another length, and If-Range is not known": lambda: _ignorant(Storage(NEW + NEW, '"v1"')),
    "shorter, and If-Range is not known": lambda: _ignorant(Storage(NEW[:100], '"v2"')),
    "no ETag any more": lambda: Storage(NEW, None),
    "a weak ETag": lambda: Storage(NEW, 'W/"v1"'),
}


def _ignorant(storage: Storage) -> Storage:
    storage.knows_if_range = False
    return storage


@pytest.mark.parametrize("kind", OTHERS)
async def test_a_file_that_has_changed_on_the_server_is_fetched_from_its_start(kind: str, tmp_path: Path) -> None:
    async with client_of(Script(Storage(failures=[RESET])), retry=RetryPolicy.none()) as client:
        await raised_by(client.download(STATUS, tmp_path / "out"))
    storage = OTHERS[kind]()
    async with client_of(Script(storage)) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == storage.data


async def test_a_weak_etag_tells_another_version_of_the_same_second(tmp_path: Path) -> None:
    async with client_of(Script(Storage(etag='W/"v1"', failures=[RESET])), retry=RetryPolicy.none()) as client:
        await raised_by(client.download(STATUS, tmp_path / "out"))
    script = Script(Storage(NEW, 'W/"v2"'))
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == NEW
    assert script.sent[0].headers["if-range"] == "Mon, 01 Jan 2029 00:00:00 GMT"


URL_OF_ANOTHER = "https://storage.test/out/j-2?X-Amz-Signature=download-secret"
ANOTHER: dict[str, tuple[Any, Any]] = {
    "job": (STATUS, StatusResponse(id="j-2", status="success", download_url=URL_OF_ANOTHER)),
    "URL": (DOWNLOAD_URL, URL_OF_ANOTHER),
}


@pytest.mark.parametrize("kind", ANOTHER)
async def test_a_part_of_another_output_is_not_continued(kind: str, tmp_path: Path) -> None:
    """Not even with the same ETag, which is unique only among the versions of one file."""
    one, another = ANOTHER[kind]
    async with client_of(Script(Storage(failures=[RESET])), retry=RetryPolicy.none()) as client:
        await raised_by(client.download(one, tmp_path / "out"))
    async with client_of(Script(Storage(NEW))) as client:
        path = await client.download(another, tmp_path / "out")
    assert path.read_bytes() == NEW


async def test_a_range_that_is_shorter_than_what_is_missing_is_not_the_end(tmp_path: Path) -> None:
    storage = Storage(failures=[Answer(200, DATA, {"Transfer-Encoding": "chunked", "ETag": '"v1"'}, RESET)])
    storage.most_of_a_range = 100_000
    async with client_of(Script(storage)) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"etag": 1}', b"\xff"])
async def test_a_part_that_nobody_can_place_is_not_continued(note: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_bytes(b"something else")
    (tmp_path / "out.part.json").write_bytes(note)
    async with client_of(Script(Storage())) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA


async def test_without_an_etag_the_date_tells(tmp_path: Path) -> None:
    script = Script(Storage(etag=None, failures=[RESET]))
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.sent[1].headers["if-range"] == "Mon, 01 Jan 2029 00:00:00 GMT"


async def test_an_answer_that_is_too_short_is_not_the_file(tmp_path: Path) -> None:
    short = Answer(200, DATA[:-1], {"Content-Length": str(len(DATA)), "ETag": '"v1"'})
    async with client_of(Script(Storage(failures=[short]))) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(200, DATA), "does not say how long"),
        (Answer(200, DATA, {"Content-Length": str(len(DATA)), "Content-Encoding": "gzip"}), "encoded as gzip"),
        (Answer(204, headers={"Content-Length": "0"}), "answers 204"),
    ],
)
async def test_an_answer_that_may_not_be_the_file_is_refused(answer: Answer, says: str, tmp_path: Path) -> None:
    async with client_of(Script(answer)) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out"))
    assert isinstance(error, TransferError)
    assert says in str(error)
    assert names_in(tmp_path) == []


def base64_of(algorithm: str, data: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


DIGESTS: dict[str, Callable[[bytes], dict[str, str]]] = {
    "RFC 9530": lambda data: {"Repr-Digest": f"md5=:xx:, sha-256=:{base64_of('sha256', data)}:"},
    "RFC 9530, SHA-512": lambda data: {"Repr-Digest": f"sha-512=:{base64_of('sha512', data)}:"},
    "RFC 3230": lambda data: {"Digest": f"SHA-256={base64_of('sha256', data)}"},
    "S3": lambda data: {"x-amz-checksum-sha256": base64_of("sha256", data)},
    "Google": lambda data: {"x-goog-hash": f"crc32c=n03x6A==,md5={base64_of('md5', data)}"},
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", DIGESTS)
async def test_a_file_that_is_not_what_its_digest_says_is_fetched_again(kind: str, cut: bool, tmp_path: Path) -> None:
    storage = Storage()
    storage.headers = DIGESTS[kind](DATA)
    wrong = Answer(
        200, NEW, {"Content-Length": str(len(NEW)), "ETag": '"v1"', **storage.headers}, RESET if cut else None
    )
    storage.failures = [wrong]
    script = Script(storage)
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.attempts == (3 if cut else 2)


S3_SAYS = {"Server": "AmazonS3", "x-amz-server-side-encryption": "AES256"}


async def test_an_etag_that_is_the_md5_is_held_to(tmp_path: Path) -> None:
    etag = f'"{hashlib.md5(DATA).hexdigest()}"'
    storage = Storage(etag=etag)
    storage.headers = S3_SAYS
    storage.failures = [Answer(200, NEW, {"Content-Length": str(len(NEW)), "ETag": etag, **S3_SAYS})]
    script = Script(storage)
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.attempts == 2


@pytest.mark.parametrize(
    ("etag", "headers"),
    [
        ("d" * 32 + "-3", {}),
        ("v1", {}),
        ("d" * 32, {"Server": "another"}),
        ("d" * 32, {"x-amz-server-side-encryption": "aws:kms"}),
        ("d" * 32, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}),
        ("d" * 32, {"x-amz-storage-class": "EXPRESS_ONEZONE"}),
    ],
)
async def test_an_etag_that_may_be_something_else_is_no_digest(
    etag: str, headers: dict[str, str], tmp_path: Path
) -> None:
    storage = Storage(etag=f'"{etag}"')
    storage.headers = {**S3_SAYS, **headers}
    script = Script(storage)
    async with client_of(script) as client:
        assert (await client.download(STATUS, tmp_path / "out")).read_bytes() == DATA
    assert script.attempts == 1


@pytest.mark.parametrize(
    "headers",
    [{"Repr-Digest": "sha-256=:no base64:"}, {"x-amz-checksum-sha256": "AAAA-3"}, {"Digest": "unixsum=30637"}],
)
async def test_a_digest_that_cannot_be_read_is_none(headers: dict[str, str], tmp_path: Path) -> None:
    storage = Storage()
    storage.headers = headers
    async with client_of(Script(storage)) as client:
        assert (await client.download(STATUS, tmp_path / "out")).read_bytes() == DATA


# ---- download: URLs that expire


async def test_an_expired_url_is_asked_for_anew_once(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with Sandbox(clock=clock, rules=Rules(download_seconds=60)) as sandbox, sandbox.client() as client:
        job = await client.create_job({"codec": "h264", "resolution": "480p", "fps": 30})
        await client.upload(job, DATA)
        await client.confirm_job(job.job_id)
        await sandbox.wait_until_idle()
        status = await client.job_status(job.job_id)
        clock.advance(61)
        path = await client.download(status, tmp_path / "out")
        assert path.stat().st_size > 0
        assert [each.operation for each in sandbox.requests][-3:] == ["getObject", "jobStatus", "getObject"]
        url_alone = await raised_by(client.download(status.download_url or "", tmp_path / "out2"))
    assert isinstance(url_alone, TransferError)
    assert "may have expired" in str(url_alone)


async def test_a_url_that_never_works_is_asked_for_anew_only_once(tmp_path: Path) -> None:
    async def answer(sent: Sent) -> Answer:
        return problem(403) if sent.headers["host"] == "storage.test" else ok(DONE)

    script = Script(answer)
    async with client_of(script) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out"))
    assert isinstance(error, TransferError)
    assert [sent.headers["host"] for sent in script.sent] == ["storage.test", "api.test", "storage.test"]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"status": "success", "downloadUrl": None}, "its output is not available"),
        ({"status": "running"}, "it is running"),
    ],
)
async def test_a_job_without_an_output_says_so(status: dict[str, Any], says: str, tmp_path: Path) -> None:
    async with client_of(Script(ok({"id": "j-1", **status}))) as client:
        error = await raised_by(client.download("j-1", tmp_path / "out"))
    assert isinstance(error, TransferError)
    assert str(error) == f"job j-1 has nothing to download: {says}"


# ---- download: the disk


async def test_a_full_disk_ends_a_download_on_a_real_socket_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def serve(received: Received) -> bytes:
        return on_the_wire(DATA * 10)[:-1]  # a complete response would return its connection to the pool

    monkeypatch.setattr(part_file, "write_pieces", full)
    async with loopback(serve) as server, AsyncClient("key") as client:
        error = await raised_by(client.download(server.url, tmp_path / "out"))
        assert isinstance(error, TransferError)
        assert "No space left on device" in str(error)
        with anyio.fail_after(60):
            while server.streams:
                await anyio.lowlevel.checkpoint()
    gc.collect()


async def test_a_full_disk_is_said_and_the_part_is_kept_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = part_file.write_pieces
    written = 0

    def full(file: Any, chunks: list[bytes]) -> None:
        nonlocal written
        if written:
            file.write(chunks[0][:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += 1
        write(file, chunks)

    monkeypatch.setitem(download.__globals__, "WRITE_SIZE", 1)
    monkeypatch.setattr(part_file, "write_pieces", full)
    script = Script(Storage())
    async with client_of(script) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out"))
        assert isinstance(error, TransferError)
        assert "No space left on device" in str(error)
        assert "is kept in" in str(error)
        assert (tmp_path / "out.part").stat().st_size == len(DATA) // 2 + 10
        assert script.open == 0
        monkeypatch.setattr(part_file, "write_pieces", write)
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert script.sent[-1].headers["range"] == f"bytes={len(DATA) // 2 + 10}-"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "Is a directory"),
        (".", "Is a directory"),
        ("/", "Is a directory"),
        ("none/out", "No such file"),
        ("pipe", "it is not a regular file"),
    ],
)
async def test_a_path_that_cannot_be_written_says_so(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    script = Script(Storage())
    async with client_of(script) as client:
        error = await raised_by(client.download(STATUS, name))
    assert isinstance(error, TransferError)
    assert says in str(error)
    assert (script.attempts, names_in(tmp_path)) == (0, ["pipe"])
    assert Path("pipe").is_fifo()


# ---- download: others who have to do with the file


async def test_two_downloads_to_one_path_do_not_write_into_each_others_file(tmp_path: Path) -> None:
    storage, asked, go_on = Storage(), anyio.Event(), anyio.Event()

    async def serve(sent: Sent) -> Answer:
        if not asked.is_set():
            asked.set()
            await go_on.wait()
        return await storage(sent)

    async with client_of(Script(serve)) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.download, STATUS, tmp_path / "out")
                await asked.wait()
                error = await raised_by(client.download(STATUS, tmp_path / "out"))
                go_on.set()
    assert isinstance(error, TransferError)
    assert "out is being downloaded already" in str(error)
    assert (tmp_path / "out").read_bytes() == DATA
    assert names_in(tmp_path) == ["out"]


async def test_a_part_that_gets_its_name_just_then_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, done = part_file._lock, tmp_path / "done"
    (tmp_path / "out.part").write_bytes(b"another download")

    def too_late(file: Any) -> bool:
        if not done.exists():
            (tmp_path / "out.part").rename(done)
        return lock(file)

    monkeypatch.setattr(part_file, "_lock", too_late)
    async with client_of(Script(Storage())) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA
    assert done.read_bytes() == b"another download"


async def test_a_part_that_is_removed_meanwhile_is_said_and_nothing_takes_its_place(tmp_path: Path) -> None:
    def remove(_: Progress) -> None:
        (tmp_path / "out.part").unlink(missing_ok=True)

    async with client_of(Script(Storage(failures=[RESET]))) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out", on_progress=remove))
    assert isinstance(error, TransferError)
    assert "out.part was removed meanwhile" in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [problem(500), problem(403), Answer(200, b"", {"Content-Length": "9"}, RESET)])
async def test_of_a_download_that_brings_nothing_nothing_is_left(answer: Answer, tmp_path: Path) -> None:
    async with client_of(Script(answer), retry=RetryPolicy.none()) as client:
        assert isinstance(await raised_by(client.download(DOWNLOAD_URL, tmp_path / "out")), TransferError)
    assert names_in(tmp_path) == []


async def test_a_part_of_something_else_is_kept_until_there_is_something_to_write(tmp_path: Path) -> None:
    note = {"source": "j-2", "etag": '"v1"', "lastModified": None, "total": 9, "digest": None}
    there = {"out.part": b"another", "out.part.json": json.dumps(note).encode()}
    for name, content in there.items():
        (tmp_path / name).write_bytes(content)
    async with client_of(Script(problem(404)), retry=RetryPolicy.none()) as client:
        assert isinstance(await raised_by(client.download(DOWNLOAD_URL, tmp_path / "out")), TransferError)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == there


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_asyncio_itself_cancels_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened, go_on = part_file._lock, threading.Event(), threading.Event()

    def slowly(file: Any) -> bool:
        opened.set()
        return go_on.wait(60) and lock(file)

    monkeypatch.setattr(part_file, "_lock", slowly)
    async with client_of(Script(Storage())) as client:
        task = asyncio.create_task(client.download(STATUS, tmp_path / "out"))
        assert await anyio.to_thread.run_sync(opened.wait, 60)
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names_in(tmp_path) == []
        await client.download(STATUS, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


async def test_who_has_the_file_open_by_a_fork_does_not_keep_it_from_others(tmp_path: Path) -> None:
    copies: list[int] = []

    def fork(progress: Progress) -> None:
        if progress.done and not copies:
            [path] = [each for each in psutil.Process().open_files() if each.path == str(tmp_path / "out.part")]
            copies.append(os.dup(path.fd))

    script = Script(Storage(failures=[RESET]))
    async with client_of(script, retry=RetryPolicy.none()) as client:
        assert isinstance(await raised_by(client.download(STATUS, tmp_path / "out", on_progress=fork)), TransferError)
        [copy] = copies
        try:
            assert (await client.download(STATUS, tmp_path / "out")).read_bytes() == DATA
        finally:
            os.close(copy)


async def test_a_file_that_is_another_each_time_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_file.PartFile, "_is_in_place", lambda _: False)
    async with client_of(Script(Storage())) as client:
        error = await raised_by(client.download(STATUS, tmp_path / "out"))
    assert isinstance(error, TransferError)
    assert "out.part was replaced each time it was opened" in str(error)


async def test_a_disk_that_is_full_only_at_the_close_gives_no_file_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    async with client_of(Script(Storage())) as client:
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", full)
            error = await raised_by(client.download(STATUS, tmp_path / "out"))
        assert isinstance(error, TransferError)
        assert "quota" in str(error)
        assert names_in(tmp_path) == ["out.part", "out.part.json"]
        assert (await client.download(STATUS, tmp_path / "out")).read_bytes() == DATA


async def test_a_folder_that_goes_meanwhile_does_not_hide_what_was_wrong(tmp_path: Path) -> None:
    async def serve(_: Sent) -> Answer:
        (tmp_path / "folder").rename(tmp_path / "away")
        (tmp_path / "folder").write_bytes(b"")
        return problem(404)

    (tmp_path / "folder").mkdir()
    async with client_of(Script(serve), retry=RetryPolicy.none()) as client:
        error = await raised_by(client.download(DOWNLOAD_URL, tmp_path / "folder" / "out"))
    assert isinstance(error, TransferError)
    assert "404" in str(error)


async def test_cancelling_a_download_keeps_its_part_and_nothing_open(tmp_path: Path) -> None:
    script = Script(Storage())
    async with client_of(script) as client:
        with anyio.CancelScope() as scope:

            def cancel(progress: Progress) -> None:
                if progress.done:
                    scope.cancel()

            await client.download(STATUS, tmp_path / "out", on_progress=cancel)
    assert script.open == 0
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_bytes() == DATA
    async with client_of(script) as client:
        path = await client.download(STATUS, tmp_path / "out")
    assert path.read_bytes() == DATA


async def test_answers_that_a_transport_has_read_already_will_do(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=DATA) if request.method == "GET" else httpx.Response(403, text="no")

    async with AsyncClient(API_KEY, base_url="https://api.test", transport=httpx.MockTransport(answer)) as client:
        path = await client.download(DOWNLOAD_URL, tmp_path / "out")
        error = await raised_by(client.upload(UPLOAD_URL, DATA))
    assert path.read_bytes() == DATA
    assert isinstance(error, TransferError)
    assert "the storage answers 403" in str(error)


class Endless(httpx.AsyncByteStream):
    """The body of a transport that does not end it when the response is closed."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await anyio.lowlevel.checkpoint()
            yield b"film"


async def test_cancelling_a_download_ends_whatever_the_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convertrilo.transfers.storage._SECONDS_TO_CLOSE", 0.01)
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"Content-Length": "9" * 15}, stream=Endless())
    )
    async with AsyncClient(API_KEY, base_url="https://api.test", transport=transport) as client:
        with anyio.CancelScope() as scope:
            await client.download("https://store.test/out", tmp_path / "out", on_progress=lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert not (tmp_path / "out").exists()


# ---- against the sandbox, with its faults


@pytest.mark.parametrize("fault", ["refuse", "reset", "lose_response", "cut_response", "stall"])
@pytest.mark.parametrize("step", ["putObject", "getObject"])
async def test_the_sandboxs_faults_cost_nothing_but_time(fault: str, step: str, tmp_path: Path) -> None:
    patience = 0.2 if fault == "stall" else 60
    retry = RetryPolicy(max_attempts=10)  # what is not stalled may be slow, too
    async with Sandbox(seed=1) as sandbox, sandbox.client(clock=FakeClock(), timeout=patience, retry=retry) as client:
        getattr(sandbox.faults, fault)(step, times=2)
        job = await client.create_job({"codec": "h264", "resolution": "480p", "fps": 30})
        await client.upload(job, path_to(tmp_path))
        await client.approve_unified(job.job_id)
        await client.confirm_job(job.job_id)
        await sandbox.wait_until_idle()
        path = await client.download(job, tmp_path / "out")
        struck = [each.fault for each in sandbox.requests if each.operation == step]
        whole = await client.download(job, tmp_path / "again")
    assert struck[:2] == [fault, fault]
    assert set(struck[2:]) == {None}
    assert path.read_bytes() == whole.read_bytes() != b""
