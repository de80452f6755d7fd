"""The results of `submit_jobs`, one per job, and its progress in numbers."""

import attrs

from convertrilo._http.redaction import hider, secrets_in
from convertrilo.bulk.batches import Batch, Item, JobRequest
from convertrilo.bulk.outcomes import JobOutcome, code_and_message
from convertrilo.errors import ConvertriloError, DecodeError, JobRefusedError
from convertrilo.operations import CREATE_JOBS_BULK


@attrs.frozen
class SubmittedJob:
    """The result of `submit_jobs` for one job: it has a `job_id` or an `error`."""

    request: JobRequest
    """The job as it was given."""
    external_id: str | None
    job_id: str | None
    status: str | None
    error: ConvertriloError | None
    """`JobRefusedError` with the service's code; `ValidationError` if the job is invalid and was not sent;
    `IdempotencyConflictError` if its `external_id` belongs to a different job."""
    estimate: float | None
    """The expected cost, in tokens (neu)."""
    batch: str | None
    """The idempotency key of the batch in which the job was sent."""


@attrs.frozen
class SubmitProgress:
    """How far `submit_jobs` is, in jobs."""

    taken: int
    """How many jobs were read from the input."""
    submitted: int
    """How many jobs now exist, including those that existed before."""
    failed: int
    """How many results are errors."""


class Results:
    """The results that the caller has not read yet, and the number of all results so far.

    Args:
        api_key: The API key, which no error message may show.
        dry_run: Whether the jobs are only estimated, not created.
    """

    def __init__(self, api_key: str | None, *, dry_run: bool) -> None:
        self.ready: list[SubmittedJob] = []
        self.submitted: int = 0
        self.failed: int = 0
        self._api_key = api_key
        self._dry_run = dry_run

    def add_outcome(self, item: Item, outcome: JobOutcome | None, key: str | None) -> None:
        """Add the result of a job from its outcome in the batch with this key; `None` if the answer has no outcome."""
        if outcome is None:
            self.add_error(item, _missing_outcome(key), key)
            return
        error: ConvertriloError | None = None
        if outcome.error is not None:
            error = self._refusal(item, outcome.error, key)
        elif outcome.job_id is None and not self._dry_run:
            error = _missing_outcome(key)
        for request in item.requests:
            self.add(request, item.external_id, key, error, outcome)

    def add_error_for_all(self, batch: Batch, error: ConvertriloError) -> None:
        """Add the same error for every job of a batch."""
        for item in batch.items:
            self.add_error(item, error, batch.identity.key)

    def add_error(self, item: Item, error: ConvertriloError, key: str | None) -> None:
        """Add an error for a job."""
        for request in item.requests:
            self.add(request, item.external_id, key, error, None)

    def add(
        self,
        request: JobRequest,
        external_id: str | None,
        key: str | None,
        error: ConvertriloError | None,
        outcome: JobOutcome | None,
    ) -> None:
        """Add a result."""
        if error is None:
            self.submitted += 1
        else:
            self.failed += 1
        job_id, status, _, estimate, _ = outcome or _NO_OUTCOME
        self.ready.append(SubmittedJob(request, external_id, job_id, status, error, estimate, key))

    def _refusal(self, item: Item, text: str, key: str | None) -> JobRefusedError:
        code, message = code_and_message(text)
        hide = hider(text, [self._api_key or "", *secrets_in(item.wire)])
        return JobRefusedError(hide(message), code=hide(code), operation=CREATE_JOBS_BULK.id, idempotency_key=key)


_NO_OUTCOME = JobOutcome(None, None, None, None)


def _missing_outcome(key: str | None) -> DecodeError:
    return DecodeError("the answer has no outcome for this job", operation=CREATE_JOBS_BULK.id, idempotency_key=key)
