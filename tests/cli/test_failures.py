"""What a failure looks like: one line that says what to do next, and an exit code for its kind."""

from typing import Any

import pytest

from convertrilo import errors
from convertrilo.cli.failures import error_line, exit_code

API = {"status": 400, "code": "c"}
CODES: list[tuple[errors.ConvertriloError, int]] = [
    (errors.JobFailedError("m", job_id="j"), 1),
    (errors.JobCanceledError("m", job_id="j"), 1),
    (errors.InvalidRequestError("m", status=400, code="probe_failed"), 1),
    (errors.ValidationError("s", []), 2),
    (errors.ConfigurationError("m"), 2),
    (errors.JournalError("m"), 2),
    (errors.InvalidRequestError("m", status=400, code="invalid_body"), 3),
    (errors.NotFoundError("m", status=404, code="not_found"), 3),
    (errors.RateLimitError("m", status=429, code="rate_limit_exceeded"), 3),
    (errors.ServerError("m", status=502, code="http_502"), 4),
    (errors.TransportError("m"), 4),
    (errors.TransferError("m"), 4),
    (errors.WaitTimeoutError("m", job_id="j"), 4),
    (errors.DecodeError("m"), 4),
    (errors.AuthenticationError("m", status=401, code="invalid_api_key"), 5),
    (errors.PermissionDeniedError("m", status=403, code="missing_required_scope"), 5),
    (errors.InsufficientTokensError("m", status=402, code="insufficient_tokens"), 6),
    (errors.OutcomeUnknownError("m", find_out="f"), 7),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_the_exit_code_tells_the_kind_of_failure(error: errors.ConvertriloError, code: int) -> None:
    assert exit_code(error) == code


def of(kind: type[errors.APIError], status: int, code: str, operation: str = "createJob", **facts: Any) -> str:
    return error_line(kind("No.", status=status, code=code, operation=operation, **facts))


NEXT = [
    (of(errors.AuthenticationError, 401, "c"), "No (401 c); log in with convertrilo login, or set CONVERTRILO_API_KEY"),
    (of(errors.AuthenticationError, 401, "c", "getApiKeys"), "No (401 c); log in with convertrilo login --email "),
    (of(errors.AuthenticationError, 401, "c", "login"), "No (401 c)"),
    (
        of(errors.InsufficientTokensError, 402, "c", required=120.0, available=7.5),
        "No (402 c); 120 tokens are required, 7.5 are available",
    ),
    (
        of(errors.PermissionDeniedError, 403, "c", required_scope="jobs:read"),
        "No (403 c); use a key with the scope jobs:read",
    ),
    (
        of(errors.IdempotencyConflictError, 409, "c"),
        "No (409 c); this idempotency key or external id was used for a different request",
    ),
    (of(errors.IdempotencyInProgressError, 409, "c"), "No (409 c); the first request with this key is still running"),
    (of(errors.RateLimitError, 429, "c", retry_after=30.0), "No (429 c); try again in 30 s"),
    (of(errors.InvalidRequestError, 400, "c", issues=[{"path": "fps", "message": "too much"}]), "fps too much (400 c)"),
    (of(errors.InvalidRequestError, 400, "c", issues=["odd"]), "No (400 c)"),
    (
        of(errors.InsufficientTokensError, 402, "c", required=1234567.25, available=1e6),
        "No (402 c); 1,234,567.25 tokens are required, 1,000,000 are available",
    ),
    (error_line(errors.ValidationError("shard", [errors.Issue("", "must be i/n")])), "shard: must be i/n"),
    (error_line(errors.ValidationError("Job", [errors.Issue("fps", "is required")])), "fps: is required"),
    (
        error_line(errors.NotSentError("nothing was sent")),
        "nothing was sent; run convertrilo doctor to find the reason",
    ),
]


@pytest.mark.parametrize(("said", "begins"), NEXT)
def test_an_error_says_what_to_do_next(said: str, begins: str) -> None:
    assert said.startswith(begins)
    assert "\n" not in said
