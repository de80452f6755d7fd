"""Every error this SDK raises, in one tree.

    ConvertriloError
    ├── ValidationError               a value that the contract does not allow; nothing was sent  (also ValueError)
    ├── ConfigurationError            a missing or unusable setting, or a missing extra
    ├── APIError                      the service answered with an error
    │   ├── InvalidRequestError       400 and any other 4xx without a class of its own
    │   ├── AuthenticationError       401
    │   ├── InsufficientTokensError   402: `required`, `available`
    │   ├── PermissionDeniedError     403: `required_scope`
    │   ├── NotFoundError             404
    │   ├── ConflictError             409
    │   │   ├── IdempotencyConflictError     the key was used with another body
    │   │   └── IdempotencyInProgressError   the first request with this key still runs
    │   ├── GoneError                 410
    │   ├── RateLimitError            429: `retry_after`
    │   └── ServerError               5xx
    ├── TransportError                no answer: the connection failed or broke
    │   ├── NotSentError              nothing reached the service
    │   └── DeadlineExceededError     the call's own deadline passed  (also TimeoutError)
    ├── DecodeError                   an answer that is not what the contract says
    ├── SignatureError                a webhook that is not proven to be the service's, or to be recent
    ├── OutcomeUnknownError           it may or may not have happened, and asking again could do it twice
    ├── JournalError                  the journal cannot be read or written
    ├── TransferError                 a file did not arrive whole
    ├── JobRefusedError               one job of many was refused by the service: `code`
    └── JobError                      the request was fine, the job was not
        ├── JobFailedError
        ├── JobCanceledError
        └── WaitTimeoutError          the job is not finished yet  (also TimeoutError)

Every error carries the `operation`, the `idempotency_key` and the number of `attempts` where there was a call. All of
them survive pickling, and none of them holds a credential.
"""

import builtins
from collections.abc import Sequence
from typing import Any, Self

import attrs

_SHOWN = 10


@attrs.frozen
class Issue:
    """One thing that is wrong with a value: `path` (`jobs[3].fps`) says where, `message` what is allowed."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConvertriloError(Exception):
    """The root of the tree.

    Attributes:
        message: What went wrong, without the context that `str()` adds.
        operation: The contract's operation id, such as `createJob`.
        idempotency_key: The key that was sent, for keyed operations.
        attempts: How many times the request was tried.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        idempotency_key: str | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.operation = operation
        self.idempotency_key = idempotency_key
        self.attempts: int = attempts

    def _context(self) -> list[tuple[str, object]]:
        return [
            ("operation", self.operation),
            ("idempotency key", self.idempotency_key),
            ("attempts", self.attempts or None),
        ]

    def __str__(self) -> str:
        context = ", ".join(f"{name} {value}" for name, value in self._context() if value is not None)
        return f"{self.message} ({context})" if context else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, self.__dict__)

    def with_call(self, *, operation: str, idempotency_key: str | None, attempts: int) -> Self:
        """Set which call this error ended, and return the error."""
        self.operation = operation
        self.idempotency_key = idempotency_key
        self.attempts = attempts
        return self


def _revive(cls: type[ConvertriloError], args: tuple[Any, ...], state: dict[str, Any]) -> ConvertriloError:
    error = cls.__new__(cls)
    error.args = args  # by hand, because TimeoutError's __new__ does not keep them
    error.__dict__.update(state)
    return error


class ValidationError(ConvertriloError, ValueError):
    """A value that the contract does not allow. Nothing was sent.

    Attributes:
        issues: Every thing that is wrong, each with the field's path.
    """

    def __init__(self, subject: str, issues: Sequence[Issue], **call: Any) -> None:
        self.issues: tuple[Issue, ...] = tuple(issues)
        listed = "; ".join(str(issue) for issue in self.issues[:_SHOWN])
        more = len(self.issues) - _SHOWN
        super().__init__(f"{subject}: {listed}" + (f"; and {more} more" if more > 0 else ""), **call)


class ConfigurationError(ConvertriloError):
    """A setting is missing or unusable, or an extra is not installed; the message says what to do."""


class APIError(ConvertriloError):
    """The service answered with an error.

    Attributes:
        status: The HTTP status.
        code: The stable code of the contract (branch on this), or `http_<status>` where the answer had none.
        issues: What is wrong with the body, as the service says it, for `invalid_body`.
        required_scope: The scope that the API key lacks, for `missing_required_scope`.
        required: Tokens (neu) that the operation needs, for `insufficient_tokens`.
        available: Tokens (neu) that the account has, for `insufficient_tokens`.
        request_id: The service's id of this request, where it sends one.
        retry_after: Seconds after which the service wants to be asked again, where it says so.
        in_doubt: Whether it may have been done all the same, by an attempt that had no answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        issues: Any = None,
        required_scope: str | None = None,
        required: float | None = None,
        available: float | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        **call: Any,
    ) -> None:
        super().__init__(message, **call)
        self.status = status
        self.code = code
        self.issues = issues
        self.required_scope = required_scope
        self.required = required
        self.available = available
        self.request_id = request_id
        self.retry_after = retry_after
        self.in_doubt = False

    def _context(self) -> list[tuple[str, object]]:
        return [
            *super()._context(),
            ("issues", self.issues or None),
            ("required scope", self.required_scope),
            ("required", self.required),
            ("available", self.available),
            ("request id", self.request_id),
            ("retry after", self.retry_after),
        ]

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {super().__str__()}"


class InvalidRequestError(APIError):
    """The service refuses the request as it is (400, or a 4xx without a class of its own)."""


class AuthenticationError(APIError):
    """The credentials are missing, wrong or expired (401)."""


class InsufficientTokensError(APIError):
    """The account has fewer tokens than the operation needs (402)."""


class PermissionDeniedError(APIError):
    """The credentials are good and do not allow this (403)."""


class NotFoundError(APIError):
    """There is no such thing, or nothing to work on (404)."""


class ConflictError(APIError):
    """The request conflicts with the state of things (409)."""


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used before with another body (409 `idempotency_conflict`).

    The first operation stands and nothing new was made. A rotated credential inside the body is a usual cause: it keeps
    the key and changes the bytes.
    """


class IdempotencyInProgressError(ConflictError):
    """The first request with this key is still running (409 `idempotency_in_progress`)."""


class GoneError(APIError):
    """The service no longer offers this (410)."""


class RateLimitError(APIError):
    """Too many requests (429)."""


class ServerError(APIError):
    """The service, or a proxy before it, failed (5xx)."""


class TransportError(ConvertriloError):
    """The connection failed or broke, so there is no answer."""


class NotSentError(TransportError):
    """No connection could be had, so nothing reached the service."""


class DeadlineExceededError(TransportError, builtins.TimeoutError):
    """The deadline of the call passed before there was an answer."""


class DecodeError(ConvertriloError):
    """The answer is not what the contract says.

    Attributes:
        status: The HTTP status of the answer.
        start: The first bytes of the answer.
        request_id: The service's id of this request, where it sends one.
    """

    def __init__(
        self, message: str, *, status: int = 0, start: bytes = b"", request_id: str | None = None, **call: Any
    ) -> None:
        super().__init__(message, **call)
        self.status = status
        self.start = start
        self.request_id = request_id

    def _context(self) -> list[tuple[str, object]]:
        return [
            *super()._context(),
            ("status", self.status or None),
            ("request id", self.request_id),
            ("begins with", self.start or None),
        ]


class SignatureError(ConvertriloError):
    """A webhook's delivery is not proven to be the service's, or to be recent; the message says why.

    Nobody may act on what it says. What the sender gets to hear is 401, and no reason.
    """


class OutcomeUnknownError(ConvertriloError):
    """It may or may not have happened, and sending it again could do it twice.

    Attributes:
        find_out: How to learn what happened.
    """

    def __init__(self, message: str, *, find_out: str, **call: Any) -> None:
        super().__init__(f"{message} {find_out}", **call)
        self.find_out = find_out


class JournalError(ConvertriloError):
    """The journal cannot be read or written; the message says in which state that leaves things."""


class TransferError(ConvertriloError):
    """A file did not arrive whole; what did arrive is kept where the message says."""


class JobRefusedError(ConvertriloError):
    """The service refused one job of a bulk request; the others are none the worse for it.

    Attributes:
        code: The stable code of the contract (branch on this), or an empty string where the service gave none.
    """

    def __init__(self, message: str, *, code: str, **call: Any) -> None:
        super().__init__(message, **call)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}" if self.code else super().__str__()


class JobError(ConvertriloError):
    """The request was fine, the job was not.

    Attributes:
        job_id: The job.
        status: The last status read, a `StatusResponse` or an `OnDemandStatusResponse`.
    """

    def __init__(self, message: str, *, job_id: str, status: Any = None, **call: Any) -> None:
        super().__init__(message, **call)
        self.job_id = job_id
        self.status = status


class JobFailedError(JobError):
    """The job ended as `failed`; `failure_message` is the service's reason."""

    @property
    def failure_message(self) -> str | None:
        """The service's reason."""
        return None if self.status is None else self.status.failure_message


class JobCanceledError(JobError):
    """The job ended as `canceled`."""


class WaitTimeoutError(JobError, builtins.TimeoutError):
    """The job did not finish in the time given; it goes on, and can be waited for again."""


_BY_STATUS: dict[int, type[APIError]] = {
    401: AuthenticationError,
    402: InsufficientTokensError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    429: RateLimitError,
}
_BY_CODE: dict[str, type[APIError]] = {
    "idempotency_conflict": IdempotencyConflictError,
    "idempotency_in_progress": IdempotencyInProgressError,
}


def api_error_class(status: int, code: str) -> type[APIError]:
    """Return the class for an error answer: by its code where that has a class of its own, else by its status."""
    if status == 409 and code in _BY_CODE:
        return _BY_CODE[code]
    return _BY_STATUS.get(status) or (ServerError if status >= 500 else InvalidRequestError)
