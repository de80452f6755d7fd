"""Errors of failed attempts: made from an error answer or a broken connection, with the credentials hidden."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx

from convertrilo._http.redaction import Hide, without_secrets
from convertrilo._json import loads
from convertrilo.errors import ConvertriloError, DecodeError, NotSentError, TransportError, api_error_class
from convertrilo.retry import FailureKind, kind_of_answer, retry_after

HiderFor = Callable[[str], Hide]
"""Returns the function that hides a call's credentials in a text and in parts of the text."""

_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
_SHOWN = 200  # bytes or characters of an unreadable answer that an error shows


class Failure:
    """How an attempt failed: the error to raise if no attempt follows, and what is known about trying again."""

    __slots__ = ("cause", "error", "kind", "retry_after")

    def __init__(
        self,
        kind: FailureKind,
        error: ConvertriloError,
        *,
        cause: BaseException | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.kind = kind
        self.error = error
        self.cause = cause
        self.retry_after = retry_after
        """Seconds that the service asks the client to wait, if it asks for a wait."""


def failure_of_answer(
    response: httpx.Response, answer: bytes, hider_for: HiderFor, *, now: float, has_token: bool
) -> Failure:
    """Return the failure that an error answer means.

    Args:
        response: The answer's status and headers.
        answer: The answer's body.
        hider_for: Hides the call's credentials, which the service may echo.
        now: The time, in seconds since the epoch.
        has_token: Whether the request carried a bearer token.
    """
    text, body = _text(answer), _json_object(answer)
    hide = hider_for(text)
    status = response.status_code
    given_code = body.get("code")
    code = given_code if isinstance(given_code, str) and given_code else f"http_{status}"
    wait = retry_after(status, response.headers, now)
    kind = kind_of_answer(status, code, told_to_wait=wait is not None, has_token=has_token)
    message = body.get("message")
    try:
        issues = without_secrets(body.get("issues"), hide)
    except RecursionError:
        issues = None
    error = api_error_class(status, code)(
        hide(str(message)) if message else _no_message(response, hide(text)),
        status=status,
        code=hide(code),
        issues=issues,
        required_scope=None if (scope := body.get("requiredScope")) is None else hide(str(scope)),
        required=_number(body.get("required")),
        available=_number(body.get("available")),
        request_id=request_id_of(response, hider_for),
        retry_after=wait,
    )
    return Failure(kind, error, retry_after=wait)


def failure_of_break(
    error: BaseException, request: httpx.Request, hider_for: HiderFor, *, base_url: httpx.URL
) -> Failure:
    """Return the failure of an attempt that got no answer, from what the transport raised."""
    if isinstance(error, httpx.RequestError):
        error.request = httpx.Request(request.method, base_url)  # the real request carries the credentials
    text = str(error)
    reason = hider_for(text)(text)
    cause = error if all(hider_for(each)(each) == each for each in _texts_of(error)) else None
    reason = reason or type(error).__name__
    if isinstance(error, _NOT_SENT) and not may_be_sent(request, default=False):
        return Failure(FailureKind.NOT_SENT, NotSentError(f"nothing was sent: {reason}"), cause=cause)
    return Failure(FailureKind.UNCLEAR, TransportError(f"no answer: {reason}"), cause=cause)


def describe_unreadable(
    error: DecodeError, answer: bytes, response: httpx.Response | None, hider_for: HiderFor
) -> None:
    """Complete the error of an unreadable answer, without the credentials that the answer may echo."""
    if answer.startswith(error.start):  # hide before cutting: a cut secret would not be recognised
        text = _text(answer)
        error.start = hider_for(text)(text).encode(errors="surrogateescape")[:_SHOWN]
    if response is not None:
        error.status = response.status_code
        error.request_id = request_id_of(response, hider_for)
    error.__context__ = None  # the context quotes the answer, and some libraries pickle it (Dask)


def request_id_of(response: httpx.Response | None, hider_for: HiderFor) -> str | None:
    """Return the service's request id of an answer, if there is one."""
    request_id = None if response is None else response.headers.get("x-request-id")
    return None if request_id is None else hider_for(request_id)(request_id)


def may_be_sent(request: httpx.Request, *, default: bool = True) -> bool:
    """Return whether any byte of a request may have been sent; `default` if the transport is not our own."""
    return bool(request.extensions.get("begun", default))


def may_be_done(request: httpx.Request) -> bool:
    """Return whether the whole request may have been sent: the service cannot carry out a part of a request."""
    return bool(request.extensions.get("complete", True))


def _texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and its causes, as a traceback shows them."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _text(answer: bytes) -> str:
    return answer.decode(errors="surrogateescape")


def _no_message(response: httpx.Response, answer: str) -> str:
    if response.has_redirect_location:
        return "the service redirects to another URL; is the base URL right?"
    if not answer.strip():
        return "the answer is empty"
    return f"the answer is not in the service's error format; it begins with {answer[:_SHOWN]!r}"
