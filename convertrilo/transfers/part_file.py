"""The part file of a download (`path.part`): its lock, the note that identifies its content, and its completion."""

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

_MAX_OPENS = 100
"""How often another download may rename or remove the part file between its opening and its locking."""


@asynccontextmanager
async def open_part_file(final: Path, source: str) -> AsyncGenerator["PartFile"]:
    """Open and lock the part file of `final`, and remove it at the end if it is empty.

    Args:
        final: The path of the complete download.
        source: Identifies what is downloaded. A part of another source is not resumed.

    Raises:
        TransferError: Another download holds the lock, or the file cannot be written.
    """
    path = part_path(final)
    part = PartFile(final, source, path, path.with_name(f"{path.name}.json"))
    try:
        await part.on_disk(part.acquire)
        yield part
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(part.release)


@attrs.define(eq=False)
class PartFile:
    """An incomplete download, and beside it a note that identifies the file and the file's version."""

    final: Path
    """The path of the complete download."""
    source: str
    """Identifies the downloaded file, independently of its URL."""
    path: Path
    note: Path
    file: FileIO = attrs.field(init=False)
    _resources: ExitStack = attrs.field(init=False, factory=ExitStack)
    _access: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    _is_released: bool = attrs.field(init=False, default=False)
    size: int = 0
    """Bytes in the file."""
    total: int | None = None
    """Bytes of the whole file; `None` if the size is not known."""
    etag: str | None = None
    last_modified: str | None = None
    digest: tuple[str, str] | None = None
    """Algorithm and hexadecimal value of the digest of the whole file, if the storage gives one."""

    async def on_disk(self, step: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run a step that touches the file in a worker thread.

        Raises:
            TransferError: The operating system refuses the step.
        """
        try:
            await anyio.to_thread.run_sync(self._do, step, *args)
        except OSError as error:
            raise TransferError(f"{self.final} cannot be written: {error.strerror or error}{self.kept()}") from error

    def _do(self, step: Callable[[*Ts], object], *args: *Ts) -> None:
        with self._access:
            if not self._is_released:  # a task cancelled by asyncio itself does not wait for its threads
                step(*args)

    def acquire(self) -> None:
        """Open and lock the file that an earlier download left, or create it.

        Raises:
            TransferError: Another download holds the lock.
        """
        check_replaceable(self.final)
        for _ in range(_MAX_OPENS):
            with ExitStack() as stack:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
                self.file = stack.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
                if not _lock(self.file):
                    raise TransferError(f"{self.final} is being downloaded already: {self.path} is in use")
                stack.callback(_unlock, self.file)
                if self._is_in_place():  # or else its previous owner has renamed or removed it
                    self._read_note()
                    stack.callback(self._remove_if_empty)
                    self._resources = stack.pop_all()
                    return
        raise TransferError(f"{self.final} cannot be written: {self.path} was replaced each time it was opened")

    def release(self) -> None:
        """Close and unlock the file, and remove it if it is empty."""
        with self._access, suppress(OSError):  # an earlier error is the one to raise
            self._is_released = True
            self._resources.close()

    def _remove_if_empty(self) -> None:
        if self.file.closed or os.fstat(self.file.fileno()).st_size or not self._is_in_place():
            return
        if sys.platform == "win32":
            self.file.close()  # Windows cannot remove an open file
        self.note.unlink(missing_ok=True)
        self.path.unlink()

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _read_note(self) -> None:
        """Read the note of an earlier download, if it is about the same source."""
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            known = json.loads(self.note.read_bytes())
            if known["source"] == self.source:
                self.etag, self.last_modified, self.total = known["etag"], known["lastModified"], known["total"]
                self.digest = known["digest"] and tuple(known["digest"])
                self.size = os.fstat(self.file.fileno()).st_size

    @property
    def validator(self) -> str | None:
        """The `If-Range` value: tells the server which version of the file the part belongs to."""
        return self.last_modified if self.etag is None or self.etag.startswith("W/") else self.etag

    def restart(self, response: httpx.Response) -> None:
        """Empty the file, and note what a response says about the whole file."""
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

    def resume(self, response: httpx.Response) -> None:
        """Seek to where a partial response continues the file.

        Raises:
            BrokenAttempt: The response does not continue this part, or the total size is not known.
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
        """Write chunks to the file, unbuffered."""
        try:
            write_pieces(self.file, chunks)
        finally:
            self.size = self.file.tell()

    def check(self) -> None:
        """Check the length and the digest of the whole file.

        Raises:
            BrokenAttempt: The length or the digest is wrong.
        """
        if self.total is not None and self.size != self.total:
            raise BrokenAttempt(f"the file ended after {self.size} of {self.total} bytes", FailureKind.UNCLEAR)
        if self.digest is not None:
            algorithm, expected = self.digest
            self.file.seek(0)
            found = hashlib.file_digest(self.file, lambda: hashlib.new(algorithm, usedforsecurity=False))
            if found.hexdigest() != expected:
                self.size = 0
                raise BrokenAttempt(f"its {algorithm} differs from the one of the storage", FailureKind.UNCLEAR)

    def finish(self) -> None:
        """Rename the complete file to its final path."""
        if not self._is_in_place():
            raise TransferError(f"{self.final} is not downloaded: {self.path} was removed meanwhile")
        os.close(os.dup(self.file.fileno()))  # a network file system may report a full disk only at close
        if sys.platform == "win32":
            self.file.close()  # Windows cannot rename an open file
        self.path.replace(self.final)
        self.note.unlink(missing_ok=True)

    def kept(self) -> str:
        """Return where the received part is, as the end of an error message; empty if nothing was received."""
        return f"; what has arrived is kept in {self.path}" if self.size else ""


def write_pieces(file: FileIO, chunks: list[bytes]) -> None:
    """Write all chunks completely: one system call may write only a part of a chunk."""
    for chunk in chunks:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]


def _lock(file: FileIO) -> bool:
    """Lock a file against other downloads; return False if another one holds the lock."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the file system does not support locks
    return True


def _unlock(file: FileIO) -> None:
    """Unlock a file. Closing it is not enough: a process that was forked since then holds the same lock."""
    if sys.platform != "win32" and not file.closed:
        fcntl.flock(file, fcntl.LOCK_UN)
