"""The folder of the sandbox's files: sources, outputs and upload parts, each named after its job's id only."""

import shutil
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread

_WRITE_BYTES = 1 << 20


class Files:
    """Paths in the folder, and the file operations that must be atomic.

    Args:
        folder: the folder; None creates a temporary one, which `close` removes.
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
        """Return a new path for an upload that is being received; `moving` takes the file from there."""
        return self.folder / "arrived" / uuid.uuid4().hex

    @contextmanager
    def moving(self, arrived: Path, target: Path) -> Generator[None]:
        """Move a received upload to `target` when the block succeeds; remove the upload when it raises."""
        try:
            yield
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(target)
        finally:
            arrived.unlink(missing_ok=True)

    def source(self, job_id: str) -> Path:
        """Return the path of a job's source."""
        return self.folder / "in" / job_id

    def output(self, job_id: str) -> Path:
        """Return the path of a job's output."""
        return self.folder / "out" / job_id

    def sources(self) -> list[Path]:
        """Return the paths of all sources."""
        return list(self.folder.glob("in/*"))

    def jobs_with_parts(self) -> list[str]:
        """Return the ids of the jobs that have upload parts."""
        return [path.name for path in self.folder.glob("parts/*")]

    def outputs(self) -> list[Path]:
        """Return the paths of all outputs."""
        return list(self.folder.glob("out/*"))

    def part(self, job_id: str, number: int) -> Path:
        """Return the path of a part of a chunked upload."""
        return self.folder / "parts" / job_id / f"{number:05d}"

    def drive(self, file_id: str) -> Path:
        """Return the path of a file of the Google Drive stand-in."""
        return self.folder / "drive" / file_id

    async def join_parts(self, job_id: str, numbers: Sequence[int], target: Path) -> None:
        """Concatenate upload parts into one file, which appears only when complete."""
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
        """Remove all parts of a chunked upload."""
        shutil.rmtree(self.folder / "parts" / job_id, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder if it is a temporary one."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
