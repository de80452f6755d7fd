"""What can be uploaded: paths, open files, bytes and streams, as one thing that is read piece by piece."""

import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import httpx

from convertrilo.errors import Issue, TransferError, ValidationError

READ_SIZE = 1024 * 1024
"""Bytes of a file that are read at a time: a worker thread for every 64 KiB would cost more than the reading."""

Source = str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | AsyncIterable[bytes]
"""What can be uploaded: a path, a file opened in binary mode, bytes, or what yields bytes."""


@asynccontextmanager
async def opened(opener: Callable[[], IO[bytes]]) -> AsyncGenerator[IO[bytes]]:
    """Open a file in a worker thread, and close it whatever happens, cancellation included."""
    file = await anyio.to_thread.run_sync(opener)
    try:
        yield file
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(file.close)


class Content:
    """What is to be uploaded: exactly as long as was said, or an error.

    Args:
        name: What an error calls it.
        size: How many bytes it has, if that is known.
        begin: Goes to its beginning; `None` if it can be read only once.
        read: Returns what comes next, about as much as is asked for; `None` at its end.
    """

    def __init__(
        self,
        name: str,
        size: int | None,
        begin: Callable[[], Awaitable[object]] | None,
        read: Callable[[int], Awaitable[bytes | None]],
    ) -> None:
        self.name = name
        self.size = size
        self.done = 0
        """Bytes that were read so far."""
        self._begin = begin
        self._read = read
        self._begun = False

    @property
    def is_rewindable(self) -> bool:
        """Whether it can be read more than once."""
        return self._begin is not None

    @property
    def is_spent(self) -> bool:
        """Whether it was begun, and cannot be read a second time."""
        return self._begun and not self.is_rewindable

    async def begin(self) -> None:
        """Go to its beginning."""
        self._begun = True
        self.done = 0
        if self._begin is not None:
            await self._begin()

    async def next(self, size: int = READ_SIZE) -> bytes | None:
        """Return what comes next; `None` at its end.

        Args:
            size: How many bytes of a file to read; a stream yields what it yields.

        Raises:
            TransferError: It cannot be read, or is not as long as was said.
        """
        piece: bytes | None = b""
        try:
            while piece == b"":
                piece = await self._read(size)
        except (OSError, httpx.HTTPError) as error:
            raise TransferError(f"{self.name} cannot be read after {self.done} bytes: {error}") from error
        if isinstance(piece, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # from a file opened in text mode
            raise ValidationError("source", [Issue("", "must hold bytes, not text")])
        if piece is not None and not isinstance(piece, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            piece = bytes(memoryview(piece))  # a buffer, which its owner may fill anew for the next piece
        return self._measured(piece)

    def _measured(self, piece: bytes | None) -> bytes | None:
        if self.size is None:
            self.done += len(piece or b"")
            return piece
        if piece is not None and self._begin is not None:
            piece = piece[: self.size - self.done] or None  # a file may have grown since it was measured
        if piece is None and self.done < self.size:
            raise TransferError(f"{self.name} ends after {self.done} of the {self.size} bytes that it should have")
        self.done += len(piece or b"")
        if self.done > self.size:
            raise TransferError(f"{self.name} goes on after the {self.size} bytes that it should have")
        return piece


@asynccontextmanager
async def content_of(source: Source, size: int | None) -> AsyncGenerator[Content]:
    """Open a source, and yield what is in it.

    Args:
        source: What the caller wants to upload.
        size: How many bytes an async iterable has.

    Raises:
        ValidationError: It is nothing that can be uploaded.
        TransferError: It cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield await _file_content(io.BytesIO(source), "the data")
    elif isinstance(source, str | os.PathLike):
        async with opened(lambda: _open(Path(source))) as file:
            yield await _file_content(file, str(source))
    elif isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            yield _stream_content(iterator, size)
        finally:
            if isinstance(iterator, AsyncGenerator):
                with anyio.CancelScope(shield=True):
                    await iterator.aclose()
    elif callable(getattr(source, "read", None)):
        yield await _file_content(source, str(getattr(source, "name", "the file")))
    else:
        allowed = "a path, a file opened in binary mode, bytes, or an async iterable of bytes"
        raise ValidationError("source", [Issue("", f"must be {allowed}, not {type(source).__name__}")])


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise TransferError(f"{path} cannot be read: {error.strerror or error}") from error


async def _file_content(file: IO[bytes], name: str) -> Content:
    """Return what is in an open file, from where it stands to its end."""

    def measure() -> tuple[int, int]:
        start = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        return start, max(0, end - start)

    async def read(size: int) -> bytes | None:
        return await anyio.to_thread.run_sync(file.read, size) or None

    if not file.seekable():
        return Content(name, None, None, read)
    start, size = await anyio.to_thread.run_sync(measure)
    return Content(name, size, lambda: anyio.to_thread.run_sync(file.seek, start), read)


def _stream_content(iterator: AsyncIterator[bytes], size: int | None) -> Content:
    async def read(_: int) -> bytes | None:
        return await anext(iterator, None)

    return Content("the stream", size, None, read)
