"""The two exceptions of the sandbox: an error response, and media that cannot be used."""

from collections.abc import Iterable, Mapping
from typing import Any

from convertrilo.errors import Issue


class Problem(Exception):  # noqa: N818 - a response, not a defect of the program
    """An error response. The code that raises it need not know HTTP; the API turns it into an `ErrorResponse`.

    Args:
        status: the HTTP status.
        code: the contract's error code.
        message: a sentence for people.
        fields: further fields of the `ErrorResponse`, as on the wire.
    """

    def __init__(self, status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fields: Mapping[str, Any] = fields

    @property
    def wire(self) -> dict[str, Any]:
        """The response body."""
        return {"code": self.code, "message": self.message, **self.fields}


class MediaError(Exception):
    """A source that cannot be fetched, read or encoded, or an output that cannot be written.

    The message is for the owner of the job and contains no local path.
    """


def invalid_body(issues: Iterable[Issue]) -> Problem:
    """Return the response to a body that violates the contract."""
    listed = [{"path": issue.path, "message": issue.message} for issue in issues]
    return Problem(400, "invalid_body", "The body does not match the contract.", issues=listed)


def invalid_request(message: str) -> Problem:
    """Return the response to a request that does not fit the current state, such as confirming a finished job."""
    return Problem(400, "invalid_request", message)


def not_found(what: str = "job") -> Problem:
    """Return the response to an id that does not exist in the caller's account."""
    return Problem(404, "not_found", f"There is no such {what} in this account.")
