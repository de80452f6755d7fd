"""Files of the sandbox: sources, outputs and parts, each named by its job's id alone, in one folder."""

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import attrs

from convertrilo.sandbox.state.problem import Problem

_WRITE_BYTES = 1 << 20


@attrs.frozen
class Written:
    """What was written to a file: its size in bytes, and the MD5 that S3 calls ETag."""

    size: int
    etag: str


async def write_stream(chunks: AsyncGenerator[bytes], target: Path, *, limit: int) -> Written:
    """Write a stream to a file, which appears complete or not at all.

    Raises:
        Problem: 400 `file_too_large`.
    """
    await anyio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    digest, size, waiting = hashlib.md5(usedforsecurity=False), 0, bytearray()
    try:
        async with aclosing(chunks), await anyio.open_file(partial, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise Problem(400, "file_too_large", f"The file has more than {limit} bytes.")
                digest.update(chunk)
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:  # a worker thread for every 64 KB would cost more than the writing
                    await file.write(waiting)
                    waiting = bytearray()
            await file.write(waiting)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Written(size, digest.hexdigest())


class Files:
    """The folder of files.

    Args:
        folder: where they are kept; None makes a temporary one, which `close` removes.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = folder is None
        self.folder: Path = Path(tempfile.mkdtemp(prefix="convertrilo-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob("*/.*.part"), *self.folder.glob("*/*/.*.part")):
            leftover.unlink()
        for leftover in (*self.folder.glob("out/.*.encoding"), self.folder / "arrived"):
            shutil.rmtree(leftover, ignore_errors=True)

    def arrival(self) -> Path:
        """Return where an upload may lie until `moving` takes it from there."""
        return self.folder / "arrived" / uuid.uuid4().hex

    @contextmanager
    def moving(self, arrived: Path, target: Path) -> Generator[None]:
        """Move an upload to its place if the block finds that it is still wanted, and remove it if not."""
        try:
            yield
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(target)
        finally:
            arrived.unlink(missing_ok=True)

    def source(self, job_id: str) -> Path:
        """Return where a job's source lies."""
        return self.folder / "in" / job_id

    def output(self, job_id: str) -> Path:
        """Return where a job's output lies."""
        return self.folder / "out" / job_id

    def sources(self) -> list[Path]:
        """Return all sources."""
        return list(self.folder.glob("in/*"))

    def parted(self) -> list[str]:
        """Return the ids of the jobs that have parts."""
        return [path.name for path in self.folder.glob("parts/*")]

    def outputs(self) -> list[Path]:
        """Return all outputs."""
        return list(self.folder.glob("out/*"))

    def part(self, job_id: str, number: int) -> Path:
        """Return where a part of a chunked upload lies."""
        return self.folder / "parts" / job_id / f"{number:05d}"

    def drive(self, file_id: str) -> Path:
        """Return where a file of the Google Drive stand-in lies."""
        return self.folder / "drive" / file_id

    async def join_parts(self, job_id: str, numbers: Sequence[int], target: Path) -> None:
        """Put parts together as one file, all of it or nothing."""
        await anyio.to_thread.run_sync(self._join, job_id, numbers, target)

    def _join(self, job_id: str, numbers: Sequence[int], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as joined:
                for number in numbers:
                    with self.part(job_id, number).open("rb") as part:
                        shutil.copyfileobj(part, joined, _WRITE_BYTES)
        except OSError:
            target.unlink()
            raise

    def drop_parts(self, job_id: str) -> None:
        """Remove the parts of a chunked upload."""
        shutil.rmtree(self.folder / "parts" / job_id, ignore_errors=True)

    def close(self) -> None:
        """Remove a temporary folder and what is in it."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
