"""Errors as agents see them: a code to branch on, what happened, and what to do next."""

from typing import Any

from convertrilo import errors
from convertrilo.errors import APIError, ConvertriloError

_AGAIN = "Call the tool again with the same arguments; this makes no second job."
_SETTINGS = (
    "The user has to correct it with `convertrilo login` or in this MCP server's settings (its environment), and then "
    "restart the server."
)

_BY_CODE = {
    "insufficient_tokens": "Choose cheaper settings or fewer jobs, or ask the user to buy tokens.",
    "idempotency_conflict": "This idempotencyKey was used with other arguments, or with a credential that has been "
    "replaced since. The first job is unaffected. For another job, choose another idempotencyKey.",
    "idempotency_in_progress": f"The first call is still running. {_AGAIN}",
    "rate_limit_exceeded": f"Wait, then continue. {_AGAIN}",
    "missing_required_scope": "Ask the user for an API key with this scope.",
    "account_banned": "No tool can help; the user has to contact the service.",
    "url_host_blocked": "Use a source on another host.",
    "private_ip_blocked": "Use a source that is reachable from the internet.",
    "host_not_resolvable": "Check the host name in the URL.",
    "file_too_large": "Use a smaller source.",
    "probe_failed": "Check that the source is a complete video file.",
    "google_drive_not_connected": "Ask the user to connect Google Drive to the account, or choose another destination.",
    "no_video_files_found": "Check the bucket and the prefix.",
    "output_not_available": "The output has expired or was stored elsewhere. To encode it again, make a new job: "
    "use the same arguments with another idempotencyKey.",
}

_BY_CLASS: dict[type[ConvertriloError], tuple[str, str]] = {
    errors.WaitTimeoutError: (
        "wait_timeout",
        "The job is still running. Call wait_for_job again, or get_job_status later.",
    ),
    errors.ValidationError: ("invalid_arguments", "Nothing was sent. Correct the arguments and call again."),
    errors.ConfigurationError: ("configuration", _SETTINGS),
    errors.JournalError: ("journal", _SETTINGS),
    errors.OutcomeUnknownError: ("outcome_unknown", ""),  # the error says what to do next
    errors.NotSentError: ("not_sent", f"The service cannot be reached. {_AGAIN}"),
    errors.DeadlineExceededError: ("deadline_exceeded", _AGAIN),
    errors.TransportError: ("no_answer", _AGAIN),
    errors.TransferError: ("storage", "Check the bucket, the prefix and the storage profile, then call again."),
    errors.DecodeError: ("undecodable_answer", "The answer does not come from the service; check the base URL."),
    errors.AuthenticationError: ("", f"The service does not accept the API key. {_SETTINGS}"),
    errors.NotFoundError: ("", "Check the id; it may belong to another account."),
    errors.RateLimitError: ("", _BY_CODE["rate_limit_exceeded"]),
    errors.ServerError: ("", f"The service has a problem. {_AGAIN}"),
    APIError: ("", "Correct the arguments as the message says, and call again."),
}

UNEXPECTED = {
    "code": "internal_error",
    "message": "this server failed unexpectedly; its log has the details",
    "next": "Tell the user. Repeating the call makes no second job.",
}


def error_facts(error: ConvertriloError) -> dict[str, Any]:
    """Return the facts about an error that an agent receives."""
    code, advice = next((known for cls, known in _BY_CLASS.items() if isinstance(error, cls)), ("error", ""))
    details: dict[str, Any] = {}
    if isinstance(error, APIError):
        code = error.code
        advice = _BY_CODE.get(code, advice)
        details = {
            "httpStatus": error.status,
            "issues": error.issues,
            "requiredScope": error.required_scope,
            "required": error.required,
            "available": error.available,
            "requestId": error.request_id,
            "retryAfterSec": error.retry_after,
        }
    elif isinstance(error, errors.ValidationError):
        details = {"issues": [{"path": issue.path, "message": issue.message} for issue in error.issues]}
    elif isinstance(error, errors.JobError):
        details = {"jobId": error.job_id, "status": getattr(error.status, "status", None)}
    elif isinstance(error, errors.OutcomeUnknownError):
        advice = error.find_out
    details |= {"operation": error.operation, "idempotencyKey": error.idempotency_key}
    return {
        "code": code,
        "message": error.message,
        "next": advice,
        **{name: value for name, value in details.items() if value is not None},
    }


def error_text(facts: dict[str, Any]) -> str:
    """Return the facts of an error as text, for people and for hosts that show only text."""
    return f"{facts['code']}: {facts['message']}\n{facts['next']}".rstrip()
