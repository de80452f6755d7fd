"""The last step of a run: wait for the submitted jobs, and record how each one ended."""

from collections.abc import Callable
from functools import partial

import anyio

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._model import fit_to_show
from convertrilo._tasks import run_all
from convertrilo.errors import WaitTimeoutError
from convertrilo.ingest.progress import IF_NOT_RECORDED, ProgressTracker, SubmittedSignal
from convertrilo.journal import Journal, folders
from convertrilo.models import TERMINAL_STATUSES, StatusResponse
from convertrilo.waiting import JobResult, wait_for_jobs

ROUNDS = 3
"""The maximum number of rounds of waiting; another round begins if the status of some jobs could not be read."""
_FOLLOWERS = 10
_WINDOW = 100
"""Jobs that each follower waits for at a time; the poller asks for the jobs of all followers together."""


async def follow_jobs(
    client: BaseClient,
    journal: Journal,
    tracker: ProgressTracker,
    submitted: SubmittedSignal,
    hide: Callable[[str], str],
    timeout: float,
) -> None:
    """Wait for the jobs of a folder, for at most `timeout` seconds, and record how each job ended."""
    deadline = engine_of(client)[0].clock.monotonic() + timeout
    recorder = _EndRecorder(journal, tracker, hide)
    for _ in range(ROUNDS):
        recorder.unread = 0
        windows = _JobWindows(journal, submitted)
        await run_all([partial(_follow, client, windows, recorder, deadline)] * _FOLLOWERS)
        if not recorder.unread:
            break


async def _follow(client: BaseClient, windows: "_JobWindows", recorder: "_EndRecorder", deadline: float) -> None:
    clock = engine_of(client)[0].clock
    while job_ids := await windows.next():
        left = deadline - clock.monotonic()
        if left <= 0:
            return
        async for result in wait_for_jobs(client, job_ids, timeout=left):
            if not isinstance(result.error, WaitTimeoutError):
                await recorder.record(result)


class _JobWindows:
    """Hands out the jobs that have not ended to the followers, a window at a time, in the order of submission."""

    def __init__(self, journal: Journal, submitted: SubmittedSignal) -> None:
        self._journal = journal
        self._submitted = submitted
        self._lock = anyio.Lock()
        self._after = 0

    async def next(self) -> list[str]:
        """Return the next job ids once a window is full or every job was submitted; an empty list means the end."""
        async with self._lock:
            while True:
                is_last, event = self._submitted.is_complete, self._submitted.event
                jobs = await self._journal.do(partial(folders.unended, after=self._after, count=_WINDOW))
                if is_last or len(jobs) == _WINDOW:
                    self._after = jobs[-1][0] if jobs else self._after
                    return [job_id for _, job_id in jobs]
                await event.wait()


class _EndRecorder:
    """Records how jobs ended, several in one transaction, and counts them."""

    def __init__(self, journal: Journal, tracker: ProgressTracker, hide: Callable[[str], str]) -> None:
        self._journal = journal
        self._tracker = tracker
        self._hide = hide
        self._waiting: list[JobResult] = []
        self._is_writing = False
        self.unread = 0
        """Jobs whose status could not be read in this round."""

    async def record(self, result: JobResult) -> None:
        """Record a job's end. If another task is writing, that task records this end as well."""
        self._waiting.append(result)
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self._waiting:
                results, self._waiting = self._waiting, []
                ends = [self._ended(each) for each in results]
                await self._journal.do(partial(folders.ended, results=ends), IF_NOT_RECORDED)
                totals = self._tracker.totals
                for each in results:
                    status = None if each.status is None else each.status.status
                    if status in TERMINAL_STATUSES:
                        totals.count(status)
                self._tracker.notify()
        finally:
            self._is_writing = False

    def _ended(self, result: JobResult) -> folders.Ended:
        status = result.status
        if status is None or status.status not in TERMINAL_STATUSES:
            self.unread += 1
            error = None if result.error is None else self._hide(str(result.error))
            return folders.Ended(result.job_id, None, None, error)
        message = None if status.failure_message is None else self._hide(status.failure_message)
        return folders.Ended(result.job_id, status.status, _output(status), message)


def _output(status: StatusResponse) -> str | None:
    """Return where a job's output is: its key or public URL, but not its download URL, which grants access."""
    if status.output is None:
        return None
    return status.output.key or (None if status.output.public_url is None else fit_to_show(status.output.public_url))
