"""The file that a download grows in: of what it is a part, who may write to it, and when it is whole."""

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TypeVarTuple

import anyio
import anyio.to_thread
import attrs
import httpx

from convertrilo._output_file import check_replaceable, part_path
from convertrilo.errors import TransferError
from convertrilo.retry import FailureKind
from convertrilo.transfers.storage import BrokenAttempt, digest_in

if sys.platform != "win32":
    import fcntl

Ts = TypeVarTuple("Ts")

_TRIES = 100
"""How often another download may take the file away just as it is opened."""


@asynccontextmanager
async def held(final: Path, source: str) -> AsyncGenerator["Partial"]:
    """Hold the file that is to become `final`, so that no other download writes to it; if it is empty, it goes.

    Args:
        final: Where the download is to be once it is whole.
        source: What is downloaded; what is there of anything else is not gone on with.

    Raises:
        TransferError: Another download has it, or it cannot be written.
    """
    path = part_path(final)
    part = Partial(final, source, path, path.with_name(f"{path.name}.json"))
    try:
        await part.on_disk(part.take)
        yield part
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(part.let_go)


@attrs.define(eq=False)
class Partial:
    """The file that a download grows in, and a note beside it that says of what it is a part."""

    final: Path
    source: str
    path: Path
    note: Path
    file: FileIO = attrs.field(init=False)
    _held: ExitStack = attrs.field(init=False, factory=ExitStack)
    _turn: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    _is_over: bool = attrs.field(init=False, default=False)
    size: int = 0
    """Bytes that are there."""
    total: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    digest: tuple[str, str] | None = None

    async def on_disk(self, step: Callable[[*Ts], object], *args: *Ts) -> None:
        """Do something to the file in a worker thread.

        Raises:
            TransferError: The disk does not let it be done.
        """
        try:
            await anyio.to_thread.run_sync(self._do, step, *args)
        except OSError as error:
            raise TransferError(f"{self.final} cannot be written: {error.strerror or error}{self.kept()}") from error

    def _do(self, step: Callable[[*Ts], object], *args: *Ts) -> None:
        with self._turn:
            if not self._is_over:  # a task that asyncio itself cancels does not wait for its threads
                step(*args)

    def take(self) -> None:
        """Open it to read and write, for this download alone, as an earlier one has left it or new.

        Raises:
            TransferError: Another download has it.
        """
        check_replaceable(self.final)
        for _ in range(_TRIES):
            with ExitStack() as stack:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
                self.file = stack.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
                if not _lock(self.file):
                    raise TransferError(f"{self.final} is being downloaded already: {self.path} is in use")
                stack.callback(_unlock, self.file)
                if self._is_in_place():  # or who had it has given it its name in the meantime
                    self._recall()
                    stack.callback(self._remove_if_empty)
                    self._held = stack.pop_all()
                    return
        raise TransferError(f"{self.final} cannot be written: {self.path} is another file each time")

    def let_go(self) -> None:
        """Close it; it goes if there is nothing in it."""
        with self._turn, suppress(OSError):  # what went wrong before is said
            self._is_over = True
            self._held.close()

    def _remove_if_empty(self) -> None:
        if self.file.closed or os.fstat(self.file.fileno()).st_size or not self._is_in_place():
            return
        if sys.platform == "win32":
            self.file.close()  # no open file is removed there
        self.note.unlink(missing_ok=True)
        self.path.unlink()

    def _is_in_place(self) -> bool:
        """Whether the open file is the one that has the path."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _recall(self) -> None:
        """Read what an earlier download has left."""
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            known = json.loads(self.note.read_bytes())
            if known["source"] == self.source:
                self.etag, self.last_modified, self.total = known["etag"], known["lastModified"], known["total"]
                self.digest = known["digest"] and tuple(known["digest"])
                self.size = os.fstat(self.file.fileno()).st_size

    @property
    def validator(self) -> str | None:
        """What tells the server which version of the file is here."""
        return self.last_modified if self.etag is None or self.etag.startswith("W/") else self.etag

    def begin(self, response: httpx.Response) -> None:
        """Start from nothing, and note what an answer says of the whole."""
        self.file.seek(0)
        self.file.truncate()
        headers = response.headers
        length = headers.get("content-length", "")
        self.size = 0
        self.etag = headers.get("etag")
        self.last_modified = headers.get("last-modified")
        self.total = int(length) if length.isdecimal() else None
        self.digest = digest_in(headers)
        known = {
            "source": self.source,
            "etag": self.etag,
            "lastModified": self.last_modified,
            "total": self.total,
            "digest": self.digest,
        }
        self.note.write_text(json.dumps(known))

    def go_on(self, response: httpx.Response) -> None:
        """Stand where an answer continues.

        Raises:
            BrokenAttempt: It does not continue what is here, or does not say when that is whole.
        """
        headers = response.headers
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", "").strip())
        total = self.total if found is None or found[2] == "*" else int(found[2])
        same = (
            found is not None
            and int(found[1]) == self.size <= os.fstat(self.file.fileno()).st_size
            and total is not None
            and self.total in (None, total)
            and (self.etag is None or headers.get("etag", self.etag) == self.etag)
            and (self.validator == self.etag or headers.get("last-modified") == self.last_modified)
        )
        if not same:
            self.size = 0
            raise BrokenAttempt("the file has changed on the server", FailureKind.UNCLEAR)
        self.total = total
        self.file.seek(self.size)
        self.file.truncate()

    def write(self, chunks: list[bytes]) -> None:
        """Write what has arrived, through to the system."""
        try:
            write_pieces(self.file, chunks)
        finally:
            self.size = self.file.tell()

    def check(self) -> None:
        """See that the file is whole.

        Raises:
            BrokenAttempt: It is not.
        """
        if self.total is not None and self.size != self.total:
            raise BrokenAttempt(f"it ended after {self.size} of {self.total} bytes", FailureKind.UNCLEAR)
        if self.digest is not None:
            algorithm, expected = self.digest
            self.file.seek(0)
            found = hashlib.file_digest(self.file, lambda: hashlib.new(algorithm, usedforsecurity=False))
            if found.hexdigest() != expected:
                self.size = 0
                raise BrokenAttempt(f"it does not have the {algorithm} that the storage says", FailureKind.UNCLEAR)

    def finish(self) -> None:
        """Give the whole file its name."""
        if not self._is_in_place():
            raise TransferError(f"{self.final} is not downloaded: {self.path} was removed meanwhile")
        os.close(os.dup(self.file.fileno()))  # a file system of the network may say only at a close that it is full
        if sys.platform == "win32":
            self.file.close()  # no open file is renamed there
        self.path.replace(self.final)
        self.note.unlink(missing_ok=True)

    def kept(self) -> str:
        """Say where the part is, if there is any of it."""
        return f"; what has arrived is kept in {self.path}" if self.size else ""


def write_pieces(file: FileIO, chunks: list[bytes]) -> None:
    """Write all of the chunks, even if the system takes only a part at a time."""
    for chunk in chunks:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]


def _lock(file: FileIO) -> bool:
    """Keep others from writing to a file until it is closed; return whether that could be."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the file system knows no locks
    return True


def _unlock(file: FileIO) -> None:
    """Let others have it; closing it is not enough while a process that was forked meanwhile has it, too."""
    if sys.platform != "win32" and not file.closed:
        fcntl.flock(file, fcntl.LOCK_UN)
