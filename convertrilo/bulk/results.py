"""What `submit_jobs` gives back: a result for each job, and how many there were of each kind."""

import attrs

from convertrilo._http.redaction import hider, secrets_in
from convertrilo.bulk.batches import Batch, Item, Outcome, Request, code_and_message
from convertrilo.errors import ConvertriloError, DecodeError, JobRefusedError

_OPERATION = "createJobsBulk"


@attrs.frozen
class SubmittedJob:
    """What became of one job of `submit_jobs`: it has a `job_id`, or an `error`."""

    request: Request
    """The job as it was given."""
    external_id: str | None
    job_id: str | None
    status: str | None
    error: ConvertriloError | None
    """`JobRefusedError` with the service's code; `ValidationError` where the job was not even sent;
    `IdempotencyConflictError` where its `external_id` is that of another job."""
    estimate: float | None
    """What it is expected to cost, in tokens (neu)."""
    batch: str | None
    """The idempotency key of the batch that it went out in."""


@attrs.frozen
class SubmitProgress:
    """How far `submit_jobs` is, in jobs."""

    taken: int
    """How many were taken from the input."""
    submitted: int
    """How many exist now, or did before."""
    failed: int
    """How many have an error for a result."""


class Results:
    """The results that are there and not yet read.

    Args:
        api_key: What must not be shown.
        dry_run: Whether there are to be no jobs, but estimates.
    """

    def __init__(self, api_key: str | None, *, dry_run: bool) -> None:
        self.waiting: list[SubmittedJob] = []
        self.submitted = 0
        self.failed = 0
        self._api_key = api_key
        self._dry_run = dry_run

    def give(self, item: Item, outcome: Outcome | None, key: str | None) -> None:
        """Add what the service said of a job."""
        if outcome is None:
            self.refuse(item, _nothing_said(key), key)
            return
        error: ConvertriloError | None = None
        if outcome.error is not None:
            error = self._refusal(item, outcome.error, key)
        elif outcome.job_id is None and not self._dry_run:
            error = _nothing_said(key)
        for request in item.requests:
            self.put(request, item.external_id, key, error, outcome)

    def refuse_all(self, batch: Batch, error: ConvertriloError) -> None:
        """Add an error for every job of a batch."""
        for item in batch.items:
            self.refuse(item, error, batch.identity.key)

    def refuse(self, item: Item, error: ConvertriloError, key: str | None) -> None:
        """Add an error for a job."""
        for request in item.requests:
            self.put(request, item.external_id, key, error, None)

    def put(
        self,
        request: Request,
        external_id: str | None,
        key: str | None,
        error: ConvertriloError | None,
        outcome: Outcome | None,
    ) -> None:
        """Add a result."""
        if error is None:
            self.submitted += 1
        else:
            self.failed += 1
        job_id, status, _, estimate, _ = outcome or _NO_OUTCOME
        self.waiting.append(SubmittedJob(request, external_id, job_id, status, error, estimate, key))

    def _refusal(self, item: Item, text: str, key: str | None) -> JobRefusedError:
        code, message = code_and_message(text)
        hide = hider(text, [self._api_key or "", *secrets_in(item.wire)])
        return JobRefusedError(hide(message), code=hide(code), operation=_OPERATION, idempotency_key=key)


_NO_OUTCOME = Outcome(None, None, None, None)


def _nothing_said(key: str | None) -> DecodeError:
    return DecodeError("the answer does not say what became of this job", operation=_OPERATION, idempotency_key=key)
