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
    │   │   └── IdempotencyInProgressError   the first request with this key is still running
    │   ├── GoneError                 410
    │   ├── RateLimitError            429: `retry_after`
    │   └── ServerError               5xx
    ├── TransportError                no answer: the connection failed or broke
    │   ├── NotSentError              nothing reached the service
    │   └── DeadlineExceededError     the call's own deadline passed  (also TimeoutError)
    ├── DecodeError                   an answer that does not match the contract
    ├── SignatureError                a webhook whose signature or timestamp is not valid
    ├── OutcomeUnknownError           the operation may have happened, and repeating it could do it twice
    ├── JournalError                  the journal cannot be read or written
    ├── TransferError                 a file was not transferred completely
    ├── JobRefusedError               one job of many was refused by the service: `code`
    └── JobError                      the request succeeded, the job did not
        ├── JobFailedError
        ├── JobCanceledError
        └── WaitTimeoutError          the job is not finished yet  (also TimeoutError)

An error of a call carries its `operation`, its `idempotency_key` and the number of `attempts`. All errors can be
pickled, and none holds a credential.
"""

import builtins
from collections.abc import Sequence
from typing import Any, Self

import attrs

_SHOWN = 10


@attrs.frozen
class Issue:
    """One problem with a value: `path` (`jobs[3].fps`) says where, `message` says what is allowed."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConvertriloError(Exception):
    """The base class of all errors of this SDK.

    Attributes:
        message: What went wrong, without the context that `str()` adds.
        operation: The contract's operation id, such as `createJob`.
        idempotency_key: The idempotency key that was sent, for keyed operations.
        attempts: How many times the request was attempted.
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
        """Set the details of the call that this error ended, and return the error."""
        self.operation = operation
        self.idempotency_key = idempotency_key
        self.attempts = attempts
        return self


def _revive(cls: type[ConvertriloError], args: tuple[Any, ...], state: dict[str, Any]) -> ConvertriloError:
    error = cls.__new__(cls)
    error.args = args  # TimeoutError's __new__ does not keep them
    error.__dict__.update(state)
    return error


class ValidationError(ConvertriloError, ValueError):
    """A value that the contract does not allow. Nothing was sent.

    Attributes:
        issues: Every problem, with the path of its field.
    """

    def __init__(self, subject: str, issues: Sequence[Issue], **call: Any) -> None:
        self.issues: tuple[Issue, ...] = tuple(issues)
        listed = "; ".join(str(issue) for issue in self.issues[:_SHOWN])
        more = len(self.issues) - _SHOWN
        super().__init__(f"{subject}: {listed}" + (f"; and {more} more" if more > 0 else ""), **call)


class ConfigurationError(ConvertriloError):
    """A setting is missing or unusable, or an extra is not installed. The message says what to do."""


class APIError(ConvertriloError):
    """The service answered with an error.

    Attributes:
        status: The HTTP status.
        code: The contract's stable code (branch on this), or `http_<status>` if the answer had none.
        issues: For `invalid_body`: the problems of the body, as the service reports them.
        required_scope: For `missing_required_scope`: the scope that the API key lacks.
        required: For `insufficient_tokens`: tokens (neu) that the operation needs.
        available: For `insufficient_tokens`: tokens (neu) that the account has.
        request_id: The service's id of this request, if it sent one.
        retry_after: Seconds that the service asks the client to wait before the next request, if it asks for a wait.
        in_doubt: Whether an earlier attempt that got no answer may have carried out the operation.
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
    """The service rejects the request (400, or a 4xx without a class of its own)."""


class AuthenticationError(APIError):
    """The credentials are missing, wrong or expired (401)."""


class InsufficientTokensError(APIError):
    """The account has fewer tokens than the operation needs (402)."""


class PermissionDeniedError(APIError):
    """The credentials are valid but do not allow this operation (403)."""


class NotFoundError(APIError):
    """The object does not exist, or there is nothing in it to work on, such as a folder without videos (404)."""


class ConflictError(APIError):
    """The request conflicts with the current state of the service (409)."""


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used before with another body (409 `idempotency_conflict`).

    The result of the first request stands, and the service created nothing new. A common cause is a rotated credential
    in the body: the key stays the same, but the bytes change.
    """


class IdempotencyInProgressError(ConflictError):
    """The first request with this key is still running (409 `idempotency_in_progress`)."""


class GoneError(APIError):
    """The service no longer offers this feature (410)."""


class RateLimitError(APIError):
    """Too many requests (429)."""


class ServerError(APIError):
    """The service, or a proxy in front of it, failed (5xx)."""


class TransportError(ConvertriloError):
    """The connection failed or broke, so there is no answer."""


class NotSentError(TransportError):
    """No connection could be made, so nothing reached the service."""


class DeadlineExceededError(TransportError, builtins.TimeoutError):
    """The deadline of the call passed before an answer arrived."""


class DecodeError(ConvertriloError):
    """The answer does not match the contract.

    Attributes:
        status: The HTTP status of the answer.
        start: The first bytes of the answer.
        request_id: The service's id of this request, if it sent one.
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
    """The signature of a webhook delivery is missing or wrong, or its timestamp is too old; the message says why.

    Do not act on the delivery. The receiver answers 401 and gives the sender no reason.
    """


class OutcomeUnknownError(ConvertriloError):
    """The operation may or may not have happened, and sending it again could do it twice.

    Attributes:
        find_out: How to learn whether it happened.
    """

    def __init__(self, message: str, *, find_out: str, **call: Any) -> None:
        super().__init__(f"{message} {find_out}", **call)
        self.find_out = find_out


class JournalError(ConvertriloError):
    """The journal cannot be read or written. The message says what that means for the operation."""


class TransferError(ConvertriloError):
    """A file was not transferred completely. The message says where the part that arrived is kept."""


class JobRefusedError(ConvertriloError):
    """The service refused one job of a bulk request. The other jobs are not affected.

    Attributes:
        code: The contract's stable code (branch on this), or an empty string if the service gave none.
    """

    def __init__(self, message: str, *, code: str, **call: Any) -> None:
        super().__init__(message, **call)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {super().__str__()}" if self.code else super().__str__()


class JobError(ConvertriloError):
    """The request succeeded, the job did not.

    Attributes:
        job_id: The id of the job.
        status: The last status that was read, a `StatusResponse` or an `OnDemandStatusResponse`.
    """

    def __init__(self, message: str, *, job_id: str, status: Any = None, **call: Any) -> None:
        super().__init__(message, **call)
        self.job_id = job_id
        self.status = status


class JobFailedError(JobError):
    """The job ended as `failed`. `failure_message` is the service's reason."""

    @property
    def failure_message(self) -> str | None:
        """The service's reason."""
        return None if self.status is None else self.status.failure_message


class JobCanceledError(JobError):
    """The job ended as `canceled`."""


class WaitTimeoutError(JobError, builtins.TimeoutError):
    """The job did not end within the given time. The job keeps running, and you can wait for it again."""


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
    """Return the exception class of an error answer: the class of its code, or else the class of its status."""
    if status == 409 and code in _BY_CODE:
        return _BY_CODE[code]
    return _BY_STATUS.get(status) or (ServerError if status >= 500 else InvalidRequestError)
