"""Streams of bytes, received within a size limit: into memory or into a file."""

import hashlib
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from convertrilo.sandbox.state.problem import Problem, invalid_request

_WRITE_BYTES = 1 << 20


@attrs.frozen
class Written:
    """A file that was written: its size in bytes, and its MD5, which S3 calls the ETag."""

    size: int
    etag: str


async def read_stream(chunks: AsyncGenerator[bytes], limit: int) -> bytes:
    """Return everything that a stream yields.

    Raises:
        Problem: 400 `invalid_request` after more than `limit` bytes.
    """
    read: list[bytes] = []
    size = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise invalid_request(f"The body has more than {limit} bytes.")
            read.append(chunk)
    return b"".join(read)


async def write_stream(chunks: AsyncGenerator[bytes], target: Path, *, limit: int) -> Written:
    """Write a stream to a file, which appears only when complete.

    Raises:
        Problem: 400 `file_too_large` after more than `limit` bytes.
    """
    await anyio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    part_file = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, size, buffer = hashlib.md5(usedforsecurity=False), 0, bytearray()
    try:
        async with aclosing(chunks), await anyio.open_file(part_file, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise Problem(400, "file_too_large", f"The file has more than {limit} bytes.")
                digest.update(chunk)
                buffer += chunk
                if len(buffer) >= _WRITE_BYTES:  # handing every 64 KB to a worker thread costs more than writing
                    await file.write(buffer)
                    buffer = bytearray()
            await file.write(buffer)
        part_file.replace(target)
    finally:
        part_file.unlink(missing_ok=True)
    return Written(size, digest.hexdigest())
