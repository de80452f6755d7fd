"""Errors as the user sees them: an exit code, and one line that says what to do next."""

from typing import cast

from convertrilo import errors
from convertrilo.cli.output import tokens_text
from convertrilo.operations import LOGIN, OPERATIONS, Auth

SUCCESS = 0
JOB_FAILED = 1
USAGE = 2
REFUSED = 3
NO_ANSWER = 4
CREDENTIALS = 5
TOKENS = 6
UNCLEAR = 7
INTERRUPTED = 130

_NEED_ACCESS_TOKEN = frozenset(each.id for each in OPERATIONS.values() if each.auth is Auth.BEARER)
"""Operations that take an access token, which a login with a password gives, and no API key."""


def exit_code(error: errors.ConvertriloError) -> int:
    """Return the exit code of an error."""
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


def can_be_resumed(error: errors.ConvertriloError) -> bool:
    """Whether repeating the unchanged command may continue where the error stopped it."""
    return exit_code(error) not in (JOB_FAILED, USAGE, CREDENTIALS)


def error_line(error: errors.ConvertriloError) -> str:
    """Return an error as one line: what went wrong, and what to do next."""
    notes = cast("list[str]", getattr(error, "__notes__", []))
    return "; ".join(filter(None, [_what_happened(error), _what_next(error), *notes]))


def _what_happened(error: errors.ConvertriloError) -> str:
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
        if error.operation == LOGIN.id:
            return ""
        how = (
            "convertrilo login --email YOU@EXAMPLE.COM"
            if error.operation in _NEED_ACCESS_TOKEN
            else "convertrilo login"
        )
        return f"log in with {how}" + ("" if error.operation in _NEED_ACCESS_TOKEN else ", or set CONVERTRILO_API_KEY")
    if isinstance(error, errors.InsufficientTokensError):
        return f"{_number(error.required)} tokens are required, {_number(error.available)} are available"
    if isinstance(error, errors.PermissionDeniedError) and error.required_scope:
        return f"use a key with the scope {error.required_scope}: convertrilo keys create NAME --scope …"
    if isinstance(error, errors.IdempotencyConflictError):
        return (
            "this idempotency key or external id was used for a different request before: the result of that request "
            "exists, and nothing new was created; repeat that request unchanged, or use another key or external id"
        )
    if isinstance(error, errors.IdempotencyInProgressError):
        return (
            "the first request with this key is still running: repeat the command in a moment, no second job is created"
        )
    if isinstance(error, errors.RateLimitError):
        return f"try again in {error.retry_after:.0f} s" if error.retry_after else "try again later"
    if isinstance(error, errors.TransportError):
        return "run convertrilo doctor to find the reason"
    return ""


def _number(tokens: float | None) -> str:
    return "an unknown number of" if tokens is None else tokens_text(tokens)
