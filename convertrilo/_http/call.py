"""One call, from its request to its answer: attempts, what is tried again, and the errors.

`retry` decides, the transport makes one attempt on the wire, and tenacity runs the loop once an attempt has failed.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import anyio
import attrs
import httpx
from tenacity import AsyncRetrying, RetryCallState

from convertrilo._clock import Clock
from convertrilo._http.credentials import Credentials
from convertrilo._http.limiter import RateLimiter
from convertrilo._http.redaction import Hide, hider, secrets_in, without_secrets
from convertrilo._json import loads
from convertrilo._model import Model
from convertrilo._version import __version__
from convertrilo.codec import check_empty, read_answer
from convertrilo.errors import (
    APIError,
    ConfigurationError,
    ConvertriloError,
    DeadlineExceededError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
    TransportError,
    api_error_class,
)
from convertrilo.events import AttemptEvent, Listener, Observation, Observer, Outcome, notify
from convertrilo.idempotency import Identity
from convertrilo.operations import Auth, Operation, Repeat
from convertrilo.retry import (
    Allowance,
    FailureKind,
    RetryBudget,
    RetryPolicy,
    Verdict,
    allowance,
    kind_of_answer,
    may_repeat,
    retry_after,
)

R = TypeVar("R")

_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
_SHOWN = 200  # bytes or characters of an answer that is not understood
_USER_AGENT = f"convertrilo-python/{__version__}"
_FIXED_HEADERS = [
    (b"User-Agent", _USER_AGENT.encode()),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
]


@attrs.frozen(kw_only=True)
class Options:
    """What `with_options` can change for a view of a client."""

    retry: RetryPolicy
    timeout: httpx.Timeout
    operation: str | None = None


Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Context:
    """What the calls of one client share."""

    def __init__(
        self,
        *,
        base_url: httpx.URL,
        credentials: Credentials,
        send: Send,
        budget: RetryBudget,
        clock: Clock,
        on_event: Listener | None,
    ) -> None:
        self.base_url = base_url
        self.credentials = credentials
        self.send = send
        self.budget = budget
        self.clock = clock
        self.on_event = on_event
        self.observer: Observer | None = None
        self.limiter = RateLimiter()
        self.line = anyio.Lock()
        """Of the tasks that the limiter holds back."""
        self.random: Callable[[], float] = random.random
        self.closed = False


Answered = tuple[R, bytes, httpx.Headers]
"""An answer: as a model, as it was received, and its headers."""


class _Failure:
    """How an attempt failed: the error to raise if it was the last one, and what is known about trying again."""

    __slots__ = ("cause", "error", "kind", "told")

    def __init__(
        self,
        kind: FailureKind,
        error: ConvertriloError,
        *,
        cause: BaseException | None = None,
        told: float | None = None,
    ) -> None:
        self.kind = kind
        self.error = error
        self.cause = cause
        self.told = told
        """Seconds after which the service wants to be asked again."""


class Call(Generic[R]):
    """The state of one call."""

    __slots__ = (
        "_attempts",
        "_content",
        "_context",
        "_deadline",
        "_failure",
        "_identity",
        "_is_forgotten",
        "_options",
        "_paid",
        "_rejected_token",
        "_renewals",
        "_reserved",
        "_started",
        "_token",
        "_url",
        "_wait",
        "_wire",
        "in_doubt",
        "last_resend",
        "observation",
        "operation",
        "was_sent_before",
    )

    def __init__(
        self,
        context: Context,
        operation: Operation[R],
        options: Options,
        url: httpx.URL,
        content: bytes,
        wire: dict[str, Any] | None,
        identity: Identity | None,
    ) -> None:
        self.operation = operation
        self.in_doubt = False
        """Whether the service may have done it, by any attempt so far."""
        self._context = context
        self._options = options
        self._url = url
        self._content = content
        self._wire = wire
        self._identity = identity
        self._attempts = 0
        self._started = context.clock.monotonic()
        self._deadline = self._started + options.retry.deadline
        self._failure: _Failure | None = None
        self._wait: float | None = None
        self._paid = False
        self._reserved = False  # paid for, and not tried yet
        self._token: str | None = None
        self._rejected_token: str | None = None
        self._renewals = 0
        self.last_resend: float | None = None
        """Seconds since the epoch after which the service may have forgotten the key, where a journal knows."""
        self.was_sent_before = False
        """Whether an earlier call may have done it, where a journal knows."""
        self._is_forgotten = False
        self.observation: Observation | None = None
        """What watches this call, if anything does."""

    @property
    def address(self) -> str:
        """Where the service is asked, without the query: it may hold a token."""
        return str(self._url).partition("?")[0]

    async def run(self) -> Answered[R]:
        """Try until there is an answer or an error that stands."""
        clock = self._context.clock
        try:
            answered = await self._attempt()
            if answered is None and self._wait is not None:
                # tenacity takes over after the first failure: to set it up costs as much as the rest of a good call.
                await clock.sleep(self._wait)
                retrying = AsyncRetrying(sleep=clock.sleep, wait=self._next_wait, retry=self._will_retry)
                answered = cast("Answered[R] | None", await retrying(self._attempt))
        finally:
            if self._reserved:
                self._context.budget.give_back()
        if answered is not None:
            return answered
        assert self._failure is not None
        raise self._final_error(self._failure) from self._failure.cause

    def read(self, answer: bytes, response: httpx.Response | None = None) -> R:
        """Return an answer as the operation's model."""
        returns = self.operation.returns
        try:
            if returns is None:
                return cast("R", check_empty(answer))
            return cast("R", read_answer(cast("type[Model]", returns), answer))
        except DecodeError as error:
            raise self.not_understood(error, answer, response) from None

    def not_understood(
        self, error: DecodeError, answer: bytes, response: httpx.Response | None = None
    ) -> ConvertriloError:
        """Return the error of an answer that cannot be read, without the credentials that the answer may echo."""
        if answer.startswith(error.start):  # hidden before it is cut, lest the first half of a secret stays
            text = _text(answer)
            error.start = self._hider(text)(text).encode(errors="surrogateescape")[:_SHOWN]
        if response is not None:
            error.status = response.status_code
            error.request_id = self._request_id(response)
        self._note_doubt(error)
        error.__context__ = None  # it quotes the answer, and some pickle it (Dask)
        return self._about_call(error)

    # ---- one attempt

    async def _attempt(self) -> Answered[R] | None:
        """Return the answer to one request; without one, `_failure` says why and `_wait` when to try again."""
        await self._turn()
        try:
            return await self._attempt_now()
        finally:
            self._context.limiter.end(self._context.clock.monotonic())

    async def _turn(self) -> None:
        """Wait for a turn; tasks that have to are in line, and only the first one asks again."""
        context = self._context
        if not context.line.locked() and not context.limiter.begin(context.clock.monotonic()):
            return
        with anyio.move_on_after(self._left()):
            async with context.line:
                while wait := context.limiter.begin(context.clock.monotonic()):
                    if wait >= self._left():
                        break
                    await context.clock.sleep(wait)
                else:
                    return
        raise self._no_turn()

    async def _attempt_now(self) -> Answered[R] | None:
        authorization = await self._authorization()
        left = self._left()
        if left <= 0:
            raise self._out_of_time()
        if self._would_come_too_late():  # a token may be slow, and a machine may sleep, which no monotonic clock tells
            last = self._failure or _Failure(FailureKind.NOT_SENT, NotSentError("it was not answered before"))
            raise self._final_error(last) from last.cause
        request = self._request(authorization, left)
        self._attempts += 1
        self._reserved = False
        was_in_doubt, self.in_doubt = self.in_doubt, True
        response: httpx.Response | None = None
        answer = b""
        failure: _Failure | None = None
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + left) as scope:
                try:
                    response = await self._context.send(request)
                    try:
                        answer = await _body(response)
                    finally:
                        await response.aclose()
                    if response.status_code >= 300:
                        failure = self._answered(response, answer)
                    self._learn_rate(response, failure)
                except (httpx.HTTPError, OSError) as error:
                    failure = self._broken(error, request)
        except BaseException:
            if not _may_be_done(request):
                self.in_doubt = was_in_doubt
            self._wait = None
            self._notify("interrupted", response, None)
            raise
        if scope.cancelled_caught:
            kind = FailureKind.UNCLEAR if _may_be_sent(request) else FailureKind.NOT_SENT
            failure = _Failure(kind, self._too_late())
        if failure is None:
            assert response is not None
            return self._succeeded(response, answer), answer, response.headers
        is_unclear = failure.kind is FailureKind.UNCLEAR or _is_unavailable(response)
        if failure.kind is not FailureKind.IN_PROGRESS and not (is_unclear and _may_be_done(request)):
            self.in_doubt = was_in_doubt
        self._failure = failure
        self._wait = None if scope.cancelled_caught else self._decide(failure)
        self._notify(failure.kind.value, response, getattr(failure.error, "code", None))
        return None

    def _learn_rate(self, response: httpx.Response, failure: _Failure | None) -> None:
        context = self._context
        now = context.clock.monotonic()
        if response.status_code == 429 and failure is not None:
            context.limiter.refused(failure.told, now)
            return
        told: Allowance | None = None
        if any(b"ratelimit" in name.lower() for name, _ in response.headers.raw):  # most services say nothing
            told = allowance(response.headers, context.clock.time())
        context.limiter.taken(told, now)

    def _left(self) -> float:
        return self._deadline - self._context.clock.monotonic()

    def _request(self, authorization: list[tuple[bytes, bytes]], left: float) -> httpx.Request:
        headers = [(b"Host", self._url.netloc), *_FIXED_HEADERS, *authorization]
        if self._identity is not None:
            headers.append((b"Idempotency-Key", self._identity.key.encode()))
        if self._content or self.operation.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(self._content)))
        if self._content:
            kind = b"application/octet-stream" if self.operation.body is bytes else b"application/json"
            headers.append((b"Content-Type", kind))
        if self.observation is not None:
            extra = self.observation.begin_attempt(self._attempts + 1)
            headers += [(name.encode(), value.encode()) for name, value in extra.items()]
        timeouts = self._options.timeout.as_dict()
        return httpx.Request(
            self.operation.method,
            self._url,
            headers=headers,
            stream=httpx.ByteStream(self._content),
            extensions={
                "timeout": {name: left if value is None else min(value, left) for name, value in timeouts.items()},
                "repeatable": self.operation.repeat is not Repeat.ONCE,
            },
        )

    async def _authorization(self) -> list[tuple[bytes, bytes]]:
        credentials, auth = self._context.credentials, self.operation.auth
        if auth is Auth.NONE:
            return []
        if auth is Auth.ANY and credentials.api_key is not None:
            return [(b"X-API-Key", credentials.api_key.encode())]
        if credentials.get_token is None:
            raise self._about_call(ConfigurationError(_NO_CREDENTIALS[auth]))
        token: str | None = None
        with anyio.move_on_after(self._left()):
            if self._rejected_token is None:
                self._renewals = credentials.renewals
                token = await credentials.token()
            else:
                token = await credentials.renewed_token(self._renewals)
        if token is None:
            raise self._out_of_time()
        if token == self._rejected_token:
            assert self._failure is not None
            raise self._final_error(self._failure)  # there is no other token
        self._token = token
        return [(b"Authorization", b"Bearer " + token.encode())]

    def _succeeded(self, response: httpx.Response, answer: bytes) -> R:
        self._wait = None
        try:
            result = self.read(answer, response)
        except DecodeError:
            self._notify("undecodable", response, None)
            raise
        if self._paid:
            self._context.budget.give_back()
        elif self._attempts == 1:
            self._context.budget.reward()
        self._notify("ok", response, None)
        return result

    def _answered(self, response: httpx.Response, answer: bytes) -> _Failure:
        """Make the error of an error answer."""
        text, body = _text(answer), _json_object(answer)
        hide = self._hider(text)
        status = response.status_code
        said = body.get("code")
        code = said if isinstance(said, str) and said else f"http_{status}"
        told = retry_after(status, response.headers, self._context.clock.time())
        kind = kind_of_answer(status, code, told_to_wait=told is not None, has_token=self._token is not None)
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
            request_id=self._request_id(response),
            retry_after=told,
        )
        return _Failure(kind, error, told=told)

    def _broken(self, error: BaseException, request: httpx.Request) -> _Failure:
        """Make the error of an attempt that got no answer."""
        if isinstance(error, httpx.RequestError):
            error.request = httpx.Request(request.method, self._context.base_url)  # the real one has the credentials
        text = str(error)
        reason = self._hider(text)(text)
        cause = error if all(self._hider(each)(each) == each for each in _texts_of(error)) else None
        reason = reason or type(error).__name__
        if isinstance(error, _NOT_SENT) and not _may_be_sent(request, default=False):
            return _Failure(FailureKind.NOT_SENT, NotSentError(f"nothing was sent: {reason}"), cause=cause)
        return _Failure(FailureKind.UNCLEAR, TransportError(f"no answer: {reason}"), cause=cause)

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"no answer within the deadline of {self._options.retry.deadline:g} seconds")

    def _no_turn(self) -> ConvertriloError:
        """Make the error of an attempt that the rate limit has no room for."""
        if self._failure is not None:
            return self._final_error(self._failure)
        deadline = self._options.retry.deadline
        error = DeadlineExceededError(
            f"the service's rate limit leaves no room within the deadline of {deadline:g} seconds"
        )
        return self._final_error(_Failure(FailureKind.NOT_SENT, error))

    def _out_of_time(self) -> ConvertriloError:
        """Make the error of a deadline that passed before the attempt was made."""
        return self._final_error(_Failure(FailureKind.NOT_SENT, self._too_late()))

    # ---- what comes after a failure

    def _decide(self, failure: _Failure) -> float | None:
        """Return the seconds to wait before the next attempt, or `None` if there is to be none."""
        if may_repeat(self.operation.repeat, failure.kind) is not Verdict.AGAIN:
            return None
        if failure.kind is FailureKind.UNAUTHORIZED:
            if self._rejected_token is not None:
                return None
            self._rejected_token = self._token
            return 0.0
        policy = self._options.retry
        if self._context.closed or self._attempts >= policy.max_attempts:
            return None
        wait = failure.told or policy.backoff(self._attempts, self._context.random)  # told 0 is no pace to keep
        if failure.told is not None and failure.told > policy.max_retry_after:
            return None
        if wait >= self._left():
            return None
        if self._would_come_too_late(wait):
            return None
        free = failure.told is not None or failure.kind is FailureKind.IN_PROGRESS
        if not free:
            if not self._context.budget.spend():
                return None
            self._paid = self._reserved = True
        return wait

    def _would_come_too_late(self, wait: float = 0.0) -> bool:
        """Whether an attempt could be a second job: it may have been done, and by then its key may be forgotten."""
        if self.last_resend is None or not (self.in_doubt or self.was_sent_before):
            return False
        self._is_forgotten = self._context.clock.time() + wait > self.last_resend
        return self._is_forgotten

    def _will_retry(self, state: RetryCallState) -> bool:
        assert state.outcome is not None
        return self._wait is not None and not state.outcome.failed

    def _next_wait(self, _: RetryCallState) -> float:
        return self._wait or 0.0

    def _final_error(self, failure: _Failure) -> ConvertriloError:
        error = failure.error
        if self._is_forgotten or may_repeat(self.operation.repeat, failure.kind) is Verdict.OUTCOME_UNKNOWN:
            find_out = self.operation.find_out or "Its key may be forgotten by now; the journal's entry has the rest."
            error = OutcomeUnknownError(
                f"{self.operation.id} may or may not have happened: {error.message}.", find_out=find_out
            )
            failure.cause = failure.cause or failure.error
        else:
            self._note_doubt(error)
        return self._about_call(error)

    def _note_doubt(self, error: ConvertriloError) -> None:
        if not self.in_doubt:
            return
        if isinstance(error, APIError):
            error.in_doubt = True
        if self._identity is not None:
            again = f"Calling again is safe under the same key: idempotency_key={self._identity.key!r}."
            error.add_note(f"The service may have done it all the same. {again}")
        elif self.operation.repeat is not Repeat.SAFE:
            error.add_note(f"The service may have done it all the same. {self.operation.find_out}".rstrip())

    def _about_call(self, error: ConvertriloError) -> ConvertriloError:
        key = None if self._identity is None else self._identity.key
        return error.with_call(operation=self.operation.id, idempotency_key=key, attempts=self._attempts)

    def _notify(self, outcome: Outcome, response: httpx.Response | None, code: str | None) -> None:
        if self._context.on_event is None and self.observation is None:
            return
        event = AttemptEvent(
            operation=self.operation.id,
            attempt=self._attempts,
            outcome=outcome,
            status=None if response is None else response.status_code,
            code=code,
            wait=self._wait,
            elapsed=self._context.clock.monotonic() - self._started,
            idempotency_key=None if self._identity is None else self._identity.key,
            request_id=self._request_id(response),
        )
        if self.observation is not None:
            self.observation.end_attempt(event)
        notify(self._context.on_event, event)

    def _request_id(self, response: httpx.Response | None) -> str | None:
        told = None if response is None else response.headers.get("x-request-id")
        return None if told is None else self._hider(told)(told)

    # ---- keeping credentials out of what is shown

    def _hider(self, text: str) -> Hide:
        """Return what hides this call's credentials in a text and in parts of it."""
        return hider(text, self._secrets())

    def _secrets(self) -> Iterator[str]:
        yield from filter(None, (self._context.credentials.api_key, self._token, self._rejected_token))
        yield from self._url.params.get_list("token")
        yield from secrets_in(self._wire)


_NO_CREDENTIALS = {
    Auth.ANY: "no credentials: pass api_key=… or get_token=…, or set CONVERTRILO_API_KEY",
    Auth.BEARER: "this operation takes a bearer token only: pass get_token=… (an API key is not enough)",
    Auth.NONE: "",
}


def _may_be_sent(request: httpx.Request, *, default: bool = True) -> bool:
    """Whether any of a request may have gone out; our own transport knows, for others there is a default."""
    return bool(request.extensions.get("begun", default))


def _may_be_done(request: httpx.Request) -> bool:
    """Whether all of a request may have gone out: half a body is not what its length says, and so no request."""
    return bool(request.extensions.get("complete", True))


def _is_unavailable(response: httpx.Response | None) -> bool:
    """Whether it is a 503: with Retry-After it may be tried again, and still a gateway may have said it too late."""
    return response is not None and response.status_code == 503


async def _body(response: httpx.Response) -> bytes:
    if response.is_stream_consumed or "content-encoding" in response.headers:
        return await response.aread()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return b"".join([piece async for piece in response.stream])  # a third of what aread() costs


def _texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield what a traceback would show of an error and of those that led to it."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _text(answer: bytes) -> str:
    return answer.decode(errors="surrogateescape")


def _no_message(response: httpx.Response, answer: str) -> str:
    if response.has_redirect_location:
        return "the service redirects elsewhere; is the base URL right?"
    if not answer.strip():
        return "the answer is empty"
    return f"the answer is not of the service's form; it begins with {answer[:_SHOWN]!r}"
