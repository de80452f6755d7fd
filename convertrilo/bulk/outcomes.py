"""What the service says about each job of a batch, read from an answer of `createJobsBulk`."""

import re
from typing import NamedTuple

from convertrilo._json import loads
from convertrilo.codec import read_answer
from convertrilo.models import BulkCreateResponse

TRANSIENT = frozenset({"rate_limit_exceeded", "idempotency_in_progress", "host_not_resolvable", "probe_failed"})
"""Error codes of jobs that the service may accept a moment later: the same run sends these jobs again."""

RETRIED_IN_NEXT_RUN = TRANSIENT | {"insufficient_tokens"}
"""Error codes of jobs that a later run sends again."""


class JobOutcome(NamedTuple):
    """What the service says about one job."""

    job_id: str | None
    status: str | None
    error: str | None
    estimate: float | None
    external_id: str | None = None
    """The answer's `externalId`; set only if the answer gives the job no index."""

    def has_error_of(self, codes: frozenset[str]) -> bool:
        """Whether no job was created and the error's code is one of these."""
        return self.error is not None and self.job_id is None and code_and_message(self.error)[0] in codes


def outcome_of(external_id: str | None, outcome: JobOutcome | None) -> JobOutcome | None:
    """Return an outcome, or None if its `externalId` is the id of another job."""
    return None if outcome is not None and outcome.external_id not in (None, external_id) else outcome


def read_outcomes(answer: bytes) -> dict[int, JobOutcome]:
    """Return the outcome of each job by its position in the batch.

    Raises:
        DecodeError: The answer does not follow the contract.
    """
    outcomes: dict[int, JobOutcome] = {}
    try:
        for position, each in enumerate(loads(answer)["jobs"]):  # models would take three times as long
            get = each.get
            job_id, error, estimate, index = get("jobId"), get("error"), get("estimate"), get("index")
            if (job_id is not None and job_id.__class__ is not str) or (
                error is not None and error.__class__ is not str
            ):
                return _read_with_models(answer)
            place = position if index is None else index
            if job_id is not None or place not in outcomes:  # if a job occurs twice, the entry with an id counts
                neu = None if estimate is None else estimate.get("neu")
                name = get("externalId") if index is None else None
                outcomes[place] = JobOutcome(job_id, get("status"), error, neu, name)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return _read_with_models(answer)
    return outcomes


def _read_with_models(answer: bytes) -> dict[int, JobOutcome]:
    """Do the same as `read_outcomes`, slowly, with the checks and errors of the models."""
    outcomes: dict[int, JobOutcome] = {}
    for position, each in enumerate(read_answer(BulkCreateResponse, answer).jobs or ()):
        estimate = None if each.estimate is None else each.estimate.neu
        index = position if each.index is None else each.index
        if each.job_id is not None or index not in outcomes:
            name = each.external_id if each.index is None else None
            outcomes[index] = JobOutcome(each.job_id, each.status, each.error, estimate, name)
    return outcomes


_CODED = re.compile(r"([a-z][a-z0-9_]*)(?:: *(.*))?", re.DOTALL)


def code_and_message(error: str) -> tuple[str, str]:
    """Split a job's error such as `probe_failed: no video stream`; the code is empty if the error has none."""
    found = _CODED.fullmatch(error)
    return ("", error) if found is None else (found[1], found[2] or found[1])
