"""Errors form the tree that is drawn, carry what a support ticket needs, survive pickling, and hold no secret."""

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import convertrilo
from convertrilo import errors
from convertrilo.errors import APIError, ConvertriloError, Issue, api_error_class
from convertrilo.models import StatusResponse

CLASSES: dict[str, type[ConvertriloError]] = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, ConvertriloError)
}
CALL: dict[str, Any] = {"operation": "createJob", "idempotency_key": "cvr1-abc", "attempts": 3}
API: dict[str, Any] = {
    "status": 402,
    "code": "insufficient_tokens",
    "issues": [{"path": ["fps"], "message": "too many"}],
    "required_scope": "jobs:create",
    "required": 30,
    "available": 0,
    "request_id": "req-1",
    "retry_after": 0.5,
}
STATUS = StatusResponse(id="a", status="failed", failure_message="no video stream", extra={"new": 1})


def made(cls: type[ConvertriloError]) -> ConvertriloError:
    """Return an error of a class with everything set."""
    if issubclass(cls, errors.ValidationError):
        return cls(
            "JobCreateRequest", [Issue("fps", "must be an integer from 1 to 240, not 0"), Issue("", "no")], **CALL
        )
    more: dict[str, Any] = {}
    if issubclass(cls, APIError):
        more = API
    elif issubclass(cls, errors.DecodeError):
        more = {"status": 502, "start": b"<html>", "request_id": "req-1"}
    elif issubclass(cls, errors.OutcomeUnknownError):
        more = {"find_out": "Read the balance."}
    elif issubclass(cls, errors.JobError):
        more = {"job_id": "a", "status": STATUS}
    elif issubclass(cls, errors.JobRefusedError):
        more = {"code": "probe_failed"}
    return cls("what went wrong", **more, **CALL)


by_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)

# ---- the tree


def drawn() -> dict[str, tuple[str, list[str]]]:
    """Read the tree in the docstring: for each class its parent, and what else it is."""
    tree: dict[str, tuple[str, list[str]]] = {}
    above: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        found = re.match(r" {4}([ │├└─]*)(\w+)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            tree[found[2]] = (above[depth - 1] if depth else "Exception", re.findall(r"\(also (\w+)\)", line))
    return tree


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    real = {
        name: (cls.__bases__[0].__name__, [base.__name__ for base in cls.__bases__[1:]])
        for name, cls in CLASSES.items()
    }
    assert drawn() == real


def test_siblings_are_drawn_in_the_order_of_the_code() -> None:
    assert list(drawn()) == list(CLASSES)


@by_class
def test_every_error_can_be_caught_by_its_name_at_the_top(cls: type[ConvertriloError]) -> None:
    assert getattr(convertrilo, cls.__name__) is cls
    assert cls.__name__ in convertrilo.__all__
    assert inspect.getdoc(cls)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ValidationError, ValueError),
        (errors.DeadlineExceededError, TimeoutError),
        (errors.WaitTimeoutError, TimeoutError),
    ],
)
def test_errors_with_a_builtin_meaning_are_caught_by_it(cls: type[ConvertriloError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match=r"went wrong|fps"):
        raise made(cls)


# ---- which class an answer gets

ANSWERS = [
    (400, "invalid_body", "InvalidRequestError"),
    (401, "invalid_api_key", "AuthenticationError"),
    (402, "insufficient_tokens", "InsufficientTokensError"),
    (403, "missing_required_scope", "PermissionDeniedError"),
    (404, "not_found", "NotFoundError"),
    (404, "http_404", "NotFoundError"),
    (405, "http_405", "InvalidRequestError"),
    (408, "http_408", "InvalidRequestError"),
    (409, "idempotency_conflict", "IdempotencyConflictError"),
    (409, "idempotency_in_progress", "IdempotencyInProgressError"),
    (409, "webhook_limit_exceeded", "ConflictError"),
    (409, "a_new_code", "ConflictError"),
    (400, "idempotency_conflict", "InvalidRequestError"),
    (503, "idempotency_in_progress", "ServerError"),
    (410, "deprecated_dropbox", "GoneError"),
    (418, "a_new_code", "InvalidRequestError"),
    (422, "a_new_code", "InvalidRequestError"),
    (429, "rate_limit_exceeded", "RateLimitError"),
    (500, "http_500", "ServerError"),
    (503, "rate_limit_exceeded", "ServerError"),
    (599, "", "ServerError"),
]


@pytest.mark.parametrize(("status", "code", "name"), ANSWERS)
def test_an_error_answer_gets_the_class_of_its_meaning(status: int, code: str, name: str) -> None:
    assert api_error_class(status, code).__name__ == name


def test_every_class_of_an_answer_is_given_to_some_answer() -> None:
    given = {name for _, _, name in ANSWERS}
    assert given == {name for name, cls in CLASSES.items() if issubclass(cls, APIError)} - {"APIError"}


# ---- what an error carries


@by_class
def test_an_error_survives_pickling_and_copying_whole(cls: type[ConvertriloError]) -> None:
    error = made(cls)
    error.add_note("while ingesting")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        same = pickle.loads(pickle.dumps(error, protocol))
        assert type(same) is cls
        assert vars(same) == vars(error)
        assert (str(same), repr(same), same.args) == (str(error), repr(error), error.args)
    assert vars(copy.copy(error)) == vars(error)
    assert vars(copy.deepcopy(error)) == vars(error)


@by_class
def test_an_error_says_which_call_it_ended(cls: type[ConvertriloError]) -> None:
    error = made(cls)
    for part in ("operation createJob", "idempotency key cvr1-abc", "attempts 3"):
        assert part in str(error)
    assert error.message in str(error)
    assert error.with_call(operation="jobStatus", idempotency_key=None, attempts=1) is error
    assert (error.operation, error.idempotency_key, error.attempts) == ("jobStatus", None, 1)
    assert "operation jobStatus, attempts 1" in str(error)


def test_an_api_error_says_all_that_the_service_said() -> None:
    assert str(made(errors.InsufficientTokensError)) == (
        "402 insufficient_tokens: what went wrong (operation createJob, idempotency key cvr1-abc, attempts 3, "
        "issues [{'path': ['fps'], 'message': 'too many'}], required scope jobs:create, required 30, available 0, "
        "request id req-1, retry after 0.5)"
    )


SHORT: list[tuple[ConvertriloError, str]] = [
    (ConvertriloError("no"), "no"),
    (APIError("no", status=404, code="not_found"), "404 not_found: no"),
    (APIError("no", status=402, code="x", required=0.0, available=0), "402 x: no (required 0.0, available 0)"),
    (APIError("no", status=400, code="x", issues=[]), "400 x: no"),
    (APIError("no", status=429, code="x", retry_after=0), "429 x: no (retry after 0)"),
    (errors.DecodeError("no"), "no"),
    (errors.DecodeError("no", status=200, start=b"\xff<"), "no (status 200, begins with b'\\xff<')"),
    (errors.OutcomeUnknownError("no.", find_out="Look."), "no. Look."),
    (errors.ValidationError("A", [Issue("b[1].c", "is d"), Issue("", "is e")]), "A: b[1].c: is d; is e"),
]


@pytest.mark.parametrize(("error", "text"), SHORT, ids=lambda given: str(given)[:30])
def test_what_is_not_known_is_not_said(error: ConvertriloError, text: str) -> None:
    assert str(error) == text


def test_a_thousand_issues_make_a_short_message_and_are_all_kept() -> None:
    error = errors.ValidationError("BulkCreateRequest", [Issue(f"jobs[{i}].fps", "is required") for i in range(1000)])
    assert str(error).endswith("jobs[9].fps: is required; and 990 more")
    assert len(error.issues) == 1000
    assert "more" not in str(errors.ValidationError("A", error.issues[:10]))


def test_a_failed_job_says_why() -> None:
    assert errors.JobFailedError("the job failed", job_id="a", status=STATUS).failure_message == "no video stream"
    assert errors.JobFailedError("the job failed", job_id="a").failure_message is None


def test_what_is_attached_to_an_error_is_shown_without_its_secrets() -> None:
    status = StatusResponse(id="a", download_url="https://host/a?X-Amz-Signature=hunter2", extra={"token": "hunter2"})
    error = errors.JobCanceledError("canceled", job_id="a", status=status)
    assert "hunter2" not in str(error) + repr(error) + repr(vars(error))
