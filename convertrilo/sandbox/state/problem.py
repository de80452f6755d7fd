"""An error answer on its way: raised anywhere in the sandbox, turned into an `ErrorResponse` at its edge."""

from collections.abc import Iterable, Mapping
from typing import Any

from convertrilo.errors import Issue


class Problem(Exception):  # noqa: N818 - it is an answer, not a fault of the program
    """What will be answered instead of the operation's result.

    Args:
        status: the HTTP status.
        code: the contract's error code.
        message: prose for people.
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
        """The answer's body."""
        return {"code": self.code, "message": self.message, **self.fields}


def invalid_body(issues: Iterable[Issue]) -> Problem:
    """Return the answer to a body that the contract does not allow."""
    listed = [{"path": issue.path, "message": issue.message} for issue in issues]
    return Problem(400, "invalid_body", "The body is not what the contract allows.", issues=listed)


def invalid_request(message: str) -> Problem:
    """Return the answer to a request that does not fit the state of things."""
    return Problem(400, "invalid_request", message)


def not_found(what: str = "job") -> Problem:
    """Return the answer to an id that the account does not have."""
    return Problem(404, "not_found", f"There is no such {what} in this account.")
