"""What the steps of one run share: the counts, the caller's progress callback, and the signal of submitted jobs."""

from collections.abc import Callable

import anyio
import attrs

from convertrilo.journal.folders import Totals

IF_NOT_RECORDED = "Run it again: the run resumes, and creates no job twice."
"""The consequence that a `JournalError` names when something could not be recorded."""


@attrs.frozen(kw_only=True)
class IngestProgress:
    """How far a folder is, in objects, counted over all runs on its journal."""

    listed: int
    """Objects that were listed and passed the filters."""
    submitted: int
    """Objects that have a job; in a dry run, objects that have an estimate."""
    succeeded: int
    """Jobs that succeeded; the number grows only if the run waits for jobs."""
    failed: int
    """Objects that were refused, whose job failed or was canceled, or that may or may not have a job."""
    is_listed: bool
    """Whether the listing is complete, so that `listed` is final."""


OnIngest = Callable[[IngestProgress], object]


def progress_of(totals: Totals, *, is_listed: bool) -> IngestProgress:
    """Return the totals of a folder as its progress."""
    return IngestProgress(
        listed=totals.listed,
        submitted=totals.submitted,
        succeeded=totals.succeeded,
        failed=totals.refused + totals.unknown + totals.failed + totals.canceled,
        is_listed=is_listed,
    )


class ProgressTracker:
    """Holds the counts of a run and reports them to the caller."""

    def __init__(self, totals: Totals, on_progress: OnIngest | None) -> None:
        self.totals = totals
        self.passed_over = 0
        """Objects that this run found and that did not pass the filters."""
        self.is_listed = False
        self._on_progress = on_progress

    def notify(self) -> None:
        """Call the caller's progress callback with the current counts."""
        if self._on_progress is not None:
            self._on_progress(progress_of(self.totals, is_listed=self.is_listed))


class SubmittedSignal:
    """Wakes up the tasks that follow jobs when more jobs, or all jobs, were submitted."""

    def __init__(self) -> None:
        self.is_complete: bool = False
        """Whether every job of the run was submitted."""
        self.event: anyio.Event = anyio.Event()
        """Set at the next submission, and then replaced. Read it before the journal, or else a submission is missed."""

    def notify(self) -> None:
        """Signal that jobs were submitted and recorded."""
        self.event.set()
        self.event = anyio.Event()

    def complete(self) -> None:
        """Signal that every job was submitted and recorded."""
        self.is_complete = True
        self.event.set()
