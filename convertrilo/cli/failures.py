"""What a failure is to the command's user: one line that says what to do next, and an exit code."""

from typing import cast

from convertrilo import errors
from convertrilo.cli.output import tokens_text

SUCCESS = 0
JOB_FAILED = 1
USAGE = 2
REFUSED = 3
NO_ANSWER = 4
CREDENTIALS = 5
TOKENS = 6
UNCLEAR = 7
INTERRUPTED = 130

_BY_PASSWORD = frozenset({"getApiKeys", "createApiKey", "revokeApiKey"})


def exit_code(error: errors.ConvertriloError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, errors.JobError) and not isinstance(error, errors.WaitTimeoutError):
        return JOB_FAILED
    if isinstance(error, errors.ValidationError | errors.ConfigurationError | errors.JournalError):
        return USAGE
    if isinstance(error, errors.OutcomeUnknownError):
        return UNCLEAR
    if not isinstance(error, errors.APIError) or isinstance(error, errors.ServerError):
        return NO_ANSWER
    if error.code == "probe_failed":
        return JOB_FAILED
    if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
        return CREDENTIALS
    return TOKENS if isinstance(error, errors.InsufficientTokensError) else REFUSED


def leaves_work(error: errors.ConvertriloError) -> bool:
    """Whether the same command may go on where an error has stopped it, without the user having to change it."""
    return exit_code(error) not in (JOB_FAILED, USAGE, CREDENTIALS)


def line(error: errors.ConvertriloError) -> str:
    """Return an error as people want it: what went wrong, and what to do next."""
    notes = cast("list[str]", getattr(error, "__notes__", []))
    return "; ".join(filter(None, [_what(error), _what_next(error), *notes]))


def _what(error: errors.ConvertriloError) -> str:
    if isinstance(error, errors.ValidationError) and all(issue.path for issue in error.issues):
        return "; ".join(map(str, error.issues))
    if not isinstance(error, errors.APIError):
        return error.message
    try:
        message = "; ".join(f"{each['path']} {each['message']}" for each in error.issues)
    except (TypeError, KeyError):
        message = error.message
    return f"{message.rstrip('.')} ({error.status} {error.code})"


def _what_next(error: errors.ConvertriloError) -> str:
    if isinstance(error, errors.AuthenticationError):
        if error.operation == "login":
            return ""
        how = "convertrilo login --email YOU@EXAMPLE.COM" if error.operation in _BY_PASSWORD else "convertrilo login"
        return f"log in with {how}" + ("" if error.operation in _BY_PASSWORD else ", or set CONVERTRILO_API_KEY")
    if isinstance(error, errors.InsufficientTokensError):
        return f"{_number(error.required)} tokens are required, {_number(error.available)} are available"
    if isinstance(error, errors.PermissionDeniedError) and error.required_scope:
        return f"use a key with the scope {error.required_scope}: convertrilo keys create NAME --scope …"
    if isinstance(error, errors.IdempotencyConflictError):
        return (
            "this key or external id has stood for another request before: what that made is there, and nothing new "
            "was made; repeat that request as it was, or give this one a key or external id of its own"
        )
    if isinstance(error, errors.IdempotencyInProgressError):
        return "the first request with this key still runs: repeat the command in a moment, and no second job is made"
    if isinstance(error, errors.RateLimitError):
        return f"try again in {error.retry_after:.0f} s" if error.retry_after else "try again later"
    if isinstance(error, errors.TransportError):
        return "convertrilo doctor looks for the reason"
    return ""


def _number(tokens: float | None) -> str:
    return "an unknown number of" if tokens is None else tokens_text(tokens)
