"""Progress of a transfer: what a progress callback receives, and how an error of the callback ends the transfer."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

import anyio
import attrs

Stage = Literal["upload", "encode", "download"]


@attrs.frozen
class Progress:
    """How far a flow is: `done` of `total`, in bytes for `upload` and `download`, in percent for `encode`."""

    stage: Stage
    done: float
    total: float | None
    """`None` if the size is not known."""
    job_id: str | None = None
    """The job that the file belongs to, if it is known."""


OnProgress = Callable[[Progress], object]

ReportBytes = Callable[[int, int | None], None]
"""Reports how many bytes were transferred, and how many there are in total (`None` if the size is not known)."""


@contextmanager
def reporting(on_progress: OnProgress | None, stage: Stage, job_id: str | None) -> Generator[ReportBytes]:
    """Yield a function that calls a progress callback.

    An error of the callback cancels the transfer and is raised when the context ends. It does not pass through the
    transfer itself, whose code would take it for an error of the network or the disk.
    """
    failures: list[Exception] = []

    def report(done: int, total: int | None) -> None:
        if on_progress is None or failures:
            return
        try:
            on_progress(Progress(stage, done, total, job_id))
        except Exception as error:  # noqa: BLE001  # raised below, past the handlers of the transfer
            failures.append(error)
            scope.cancel()

    with anyio.CancelScope() as scope:
        yield report
    if failures:
        raise failures[0]
