"""Upload sources: paths, open files, bytes and streams behind one interface that is read piece by piece."""

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
"""Bytes of a file to read at a time: with 64 KiB, the switch to a worker thread would cost more than the read."""

Source = str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | AsyncIterable[bytes]
"""What can be uploaded: a path, a file opened in binary mode, bytes, or an async iterable of bytes."""


@asynccontextmanager
async def _open_in_thread(opener: Callable[[], IO[bytes]]) -> AsyncGenerator[IO[bytes]]:
    """Open a file in a worker thread, and close it in every case, also after a cancellation."""
    file = await anyio.to_thread.run_sync(opener)
    try:
        yield file
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(file.close)


class Content:
    """The bytes to upload. A source that is shorter or longer than its size raises an error.

    Args:
        name: The name of the source in errors.
        size: Its length in bytes; `None` if it is not known.
        begin: Seeks to the start of the source; `None` if it can be read only once.
        read: Returns the next piece, of about as many bytes as requested; `None` at the end.
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
        self.done: int = 0
        """Bytes read so far."""
        self._begin = begin
        self._read = read
        self._begun = False

    @property
    def is_rewindable(self) -> bool:
        """Whether the source can be read more than once."""
        return self._begin is not None

    @property
    def is_spent(self) -> bool:
        """Whether the source was read already, at least in part, and cannot be read again."""
        return self._begun and not self.is_rewindable

    async def begin(self) -> None:
        """Go to the start of the source."""
        self._begun = True
        self.done = 0
        if self._begin is not None:
            await self._begin()

    async def next(self, size: int = READ_SIZE) -> bytes | None:
        """Return the next piece; `None` at the end.

        Args:
            size: How many bytes of a file to read. A stream ignores it and yields pieces of any size.

        Raises:
            TransferError: The source cannot be read, or its length is not `size`.
        """
        piece: bytes | None = b""
        try:
            while piece == b"":
                piece = await self._read(size)
        except (OSError, httpx.HTTPError) as error:
            raise TransferError(f"{self.name} cannot be read after {self.done} bytes: {error}") from error
        if isinstance(piece, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # a file opened in text mode yields text
            raise ValidationError("source", [Issue("", "must hold bytes, not text")])
        if piece is not None and not isinstance(piece, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # any buffer
            piece = bytes(memoryview(piece))  # copied: the owner may reuse a buffer for the next piece
        return self._checked(piece)

    def _checked(self, piece: bytes | None) -> bytes | None:
        if self.size is None:
            self.done += len(piece or b"")
            return piece
        if piece is not None and self._begin is not None:
            piece = piece[: self.size - self.done] or None  # the file may have grown since it was opened
        if piece is None and self.done < self.size:
            raise TransferError(f"{self.name} ends after {self.done} of the {self.size} bytes expected")
        self.done += len(piece or b"")
        if self.done > self.size:
            raise TransferError(f"{self.name} is longer than the {self.size} bytes expected")
        return piece


@asynccontextmanager
async def content_of(source: Source, size: int | None) -> AsyncGenerator[Content]:
    """Open a source, and yield its content.

    Args:
        source: The source as the caller passed it.
        size: The length of an async iterable in bytes, if it is known.

    Raises:
        ValidationError: The source is of a type that cannot be uploaded.
        TransferError: The source cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield await _content_of_file(io.BytesIO(source), "the data")
    elif isinstance(source, str | os.PathLike):
        async with _open_in_thread(lambda: _open_path(Path(source))) as file:
            yield await _content_of_file(file, str(source))
    elif isinstance(source, AsyncIterable):
        iterator = aiter(source)
        try:
            yield _content_of_stream(iterator, size)
        finally:
            if isinstance(iterator, AsyncGenerator):
                with anyio.CancelScope(shield=True):
                    await iterator.aclose()
    elif callable(getattr(source, "read", None)):
        yield await _content_of_file(source, str(getattr(source, "name", "the file")))
    else:
        allowed = "a path, a file opened in binary mode, bytes, or an async iterable of bytes"
        raise ValidationError("source", [Issue("", f"must be {allowed}, not {type(source).__name__}")])


def _open_path(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise TransferError(f"{path} cannot be read: {error.strerror or error}") from error


async def _content_of_file(file: IO[bytes], name: str) -> Content:
    """Return the content of an open file, from its current position to its end."""

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


def _content_of_stream(iterator: AsyncIterator[bytes], size: int | None) -> Content:
    async def read(_: int) -> bytes | None:
        return await anext(iterator, None)

    return Content("the stream", size, None, read)
