"""One call, from its request to its answer: the attempts, the decision after a failure, and the final error.

`retry` decides whether to try again, the transport sends one attempt, and tenacity runs the loop after a first failure.
"""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

import anyio
import httpx
from tenacity import AsyncRetrying, RetryCallState

from convertrilo._http.attempts import Attempts
from convertrilo._http.context import Context, Options
from convertrilo._http.credentials import BearerToken
from convertrilo._http.doubt import Doubt
from convertrilo._http.failures import (
    Failure,
    describe_unreadable,
    failure_of_answer,
    failure_of_break,
    may_be_done,
    may_be_sent,
    request_id_of,
)
from convertrilo._http.redaction import Hide, hider, secrets_in
from convertrilo._model import Model
from convertrilo._version import __version__
from convertrilo.codec import check_empty, read_answer
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    DeadlineExceededError,
    DecodeError,
    NotSentError,
    OutcomeUnknownError,
)
from convertrilo.events import AttemptEvent, Observation, Outcome, notify
from convertrilo.idempotency import Identity
from convertrilo.operations import Auth, Operation, Repeat
from convertrilo.retry import Allowance, FailureKind, Verdict, allowance, may_repeat

R = TypeVar("R")

_USER_AGENT = f"convertrilo-python/{__version__}"
_FIXED_HEADERS = [
    (b"User-Agent", _USER_AGENT.encode()),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
]
_NO_CREDENTIALS = {
    Auth.ANY: "no credentials: pass api_key=… or get_token=…, or set CONVERTRILO_API_KEY",
    Auth.BEARER: "this operation takes a bearer token only: pass get_token=… (an API key is not enough)",
    Auth.NONE: "",
}

Answered = tuple[R, bytes, httpx.Headers]
"""An answer: its model, its bytes as received, and its headers."""


class Call(Generic[R]):
    """One call of an operation."""

    __slots__ = (
        "_attempts",
        "_bearer",
        "_content",
        "_context",
        "_failure",
        "_identity",
        "_options",
        "_url",
        "_wait",
        "_wire",
        "doubt",
        "observation",
        "operation",
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
        self.operation: Operation[R] = operation
        self.doubt: Doubt = Doubt()
        self.observation: Observation | None = None
        """The observer's view of this call, if an observer watches the client."""
        self._context = context
        self._options = options
        self._url = url
        self._content = content
        self._wire = wire
        self._identity = identity
        self._attempts = Attempts(options.retry, context.budget, context.clock)
        self._bearer: BearerToken | None = None  # the token, if the call carries one
        self._failure: Failure | None = None  # of the latest attempt
        self._wait: float | None = None  # seconds until the next attempt; None if no attempt follows

    @property
    def address(self) -> str:
        """The URL without its query, which may hold a token."""
        return str(self._url).partition("?")[0]

    async def run(self) -> Answered[R]:
        """Make attempts until there is an answer or a final error."""
        clock = self._context.clock
        try:
            answered = await self._attempt()
            if answered is None and self._wait is not None:
                # tenacity takes over only after a failure: its setup costs as much as the rest of a successful call.
                await clock.sleep(self._wait)
                retrying = AsyncRetrying(sleep=clock.sleep, wait=self._next_wait, retry=self._will_retry)
                answered = cast("Answered[R] | None", await retrying(self._attempt))
        except BaseException:
            self._attempts.end()  # otherwise, every retry that was charged has been made
            raise
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
        """Return the error of an unreadable answer, without the credentials that the answer may echo."""
        describe_unreadable(error, answer, response, self._hider)
        self.doubt.note_on(error, self.operation, self._identity)
        return self._about_call(error)

    # ---- one attempt

    async def _attempt(self) -> Answered[R] | None:
        """Make one attempt and return its answer; after a failure, set `_failure` and `_wait` and return None."""
        await self._wait_for_turn()
        try:
            return await self._attempt_now()
        finally:
            self._context.limiter.end(self._context.clock.monotonic())

    async def _wait_for_turn(self) -> None:
        """Wait until the rate limiter grants a request; waiting tasks queue, and only the first task asks again."""
        context = self._context
        if not context.limiter_lock.locked() and not context.limiter.begin(context.clock.monotonic()):
            return
        with anyio.move_on_after(self._attempts.left()):
            async with context.limiter_lock:
                while wait := context.limiter.begin(context.clock.monotonic()):
                    if wait >= self._attempts.left():
                        break
                    await context.clock.sleep(wait)
                else:
                    return
        raise self._no_turn()

    async def _attempt_now(self) -> Answered[R] | None:
        authorization = await self._authorization()
        left = self._attempts.left()
        if left <= 0:
            raise self._out_of_time()
        if self.doubt.is_too_late(self._context.clock):  # a slow token source, or a machine that was asleep
            last = self._failure or Failure(FailureKind.NOT_SENT, NotSentError("an earlier call got no answer"))
            raise self._final_error(last) from last.cause
        request = self._request(authorization, left)
        self._attempts.begin()
        self.doubt.begin_attempt()
        response: httpx.Response | None = None
        answer = b""
        failure: Failure | None = None
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + left) as scope:
                try:
                    response = await self._context.send(request)
                    try:
                        answer = await _body(response)
                    finally:
                        await response.aclose()
                    if response.status_code >= 300:
                        failure = self._failure_of_answer(response, answer)
                    self._learn_rate(response, failure)
                except (httpx.HTTPError, OSError) as error:
                    failure = failure_of_break(error, request, self._hider, base_url=self._context.base_url)
        except BaseException:
            if not may_be_done(request):
                self.doubt.rule_out_attempt()
            self._wait = None
            self._notify("interrupted", response, None)
            raise
        if scope.cancelled_caught:
            kind = FailureKind.UNCLEAR if may_be_sent(request) else FailureKind.NOT_SENT
            failure = Failure(kind, self._too_late())
        if failure is None:
            assert response is not None
            return self._succeeded(response, answer), answer, response.headers
        is_unclear = failure.kind is FailureKind.UNCLEAR or _is_unavailable(response)
        if failure.kind is not FailureKind.IN_PROGRESS and not (is_unclear and may_be_done(request)):
            self.doubt.rule_out_attempt()
        self._failure = failure
        self._wait = None if scope.cancelled_caught else self._decide(failure)
        self._notify(failure.kind.value, response, getattr(failure.error, "code", None))
        return None

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
            extra = self.observation.begin_attempt(self._attempts.made + 1)
            headers += [(name.encode(), value.encode()) for name, value in extra.items()]
        timeouts = self._options.timeout.as_dict()
        return httpx.Request(
            self.operation.method,
            self._url,
            headers=headers,
            stream=httpx.ByteStream(self._content),
            extensions={
                "timeout": {name: left if value is None or value > left else value for name, value in timeouts.items()},
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
        if self._bearer is None:
            self._bearer = BearerToken(credentials)
        bearer, token = self._bearer, None
        with anyio.move_on_after(self._attempts.left()):
            token = await bearer.get()
        if token is None:
            raise self._out_of_time()
        if token == bearer.rejected:
            assert self._failure is not None
            raise self._final_error(self._failure)  # the source has no other token
        return [(b"Authorization", b"Bearer " + token.encode())]

    def _learn_rate(self, response: httpx.Response, failure: Failure | None) -> None:
        context = self._context
        now = context.clock.monotonic()
        if response.status_code == 429 and failure is not None:
            context.limiter.refused(failure.retry_after, now)
            return
        allowed: Allowance | None = None
        names = b",".join([name for name, _ in response.headers.raw])
        if b"ratelimit" in names.lower():  # most answers have no such header
            allowed = allowance(response.headers, context.clock.time())
        context.limiter.taken(allowed, now)

    def _succeeded(self, response: httpx.Response, answer: bytes) -> R:
        self._wait = None
        try:
            result = self.read(answer, response)
        except DecodeError:
            self._notify("undecodable", response, None)
            raise
        self._attempts.succeeded()
        self._notify("ok", response, None)
        return result

    # ---- after a failure

    def _failure_of_answer(self, response: httpx.Response, answer: bytes) -> Failure:
        return failure_of_answer(
            response,
            answer,
            self._hider,
            now=self._context.clock.time(),
            has_token=self._bearer is not None,
        )

    def _decide(self, failure: Failure) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the failure is final."""
        if may_repeat(self.operation.repeat, failure.kind) is not Verdict.AGAIN:
            return None
        if failure.kind is FailureKind.UNAUTHORIZED:
            return 0.0 if self._bearer is not None and self._bearer.reject() else None
        policy = self._options.retry
        if self._context.closed or not self._attempts.are_left:
            return None
        # A Retry-After of 0 says nothing about the pace, so the backoff applies.
        wait = failure.retry_after or policy.backoff(self._attempts.made, self._context.random)
        if failure.retry_after is not None and failure.retry_after > policy.max_retry_after:
            return None
        if wait >= self._attempts.left():
            return None
        if self.doubt.is_too_late(self._context.clock, wait):
            return None
        is_free = failure.retry_after is not None or failure.kind is FailureKind.IN_PROGRESS
        return wait if is_free or self._attempts.charge() else None

    def _will_retry(self, state: RetryCallState) -> bool:
        assert state.outcome is not None
        return self._wait is not None and not state.outcome.failed

    def _next_wait(self, _: RetryCallState) -> float:
        return self._wait or 0.0

    # ---- errors and events

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"no answer within the deadline of {self._options.retry.deadline:g} seconds")

    def _out_of_time(self) -> ConvertriloError:
        """Return the error of a deadline that passed before the attempt was made."""
        return self._final_error(Failure(FailureKind.NOT_SENT, self._too_late()))

    def _no_turn(self) -> ConvertriloError:
        """Return the error of an attempt that the rate limiter did not grant before the deadline."""
        if self._failure is not None:
            return self._final_error(self._failure)
        deadline = self._options.retry.deadline
        error = DeadlineExceededError(
            f"the service's rate limit allows no request within the deadline of {deadline:g} seconds"
        )
        return self._final_error(Failure(FailureKind.NOT_SENT, error))

    def _final_error(self, failure: Failure) -> ConvertriloError:
        error = failure.error
        if self.doubt.is_forgotten or may_repeat(self.operation.repeat, failure.kind) is Verdict.OUTCOME_UNKNOWN:
            find_out = self.operation.find_out or (
                "The service may have forgotten the idempotency key by now; see the journal's entry."
            )
            error = OutcomeUnknownError(
                f"{self.operation.id} may or may not have happened: {error.message.rstrip('.')}.", find_out=find_out
            )
            failure.cause = failure.cause or failure.error
        else:
            self.doubt.note_on(error, self.operation, self._identity)
        return self._about_call(error)

    def _about_call(self, error: ConvertriloError) -> ConvertriloError:
        key = None if self._identity is None else self._identity.key
        return error.with_call(operation=self.operation.id, idempotency_key=key, attempts=self._attempts.made)

    def _notify(self, outcome: Outcome, response: httpx.Response | None, code: str | None) -> None:
        if self._context.on_event is None and self.observation is None:
            return
        event = AttemptEvent(
            operation=self.operation.id,
            attempt=self._attempts.made,
            outcome=outcome,
            status=None if response is None else response.status_code,
            code=code,
            wait=self._wait,
            elapsed=self._attempts.elapsed(),
            idempotency_key=None if self._identity is None else self._identity.key,
            request_id=request_id_of(response, self._hider),
        )
        if self.observation is not None:
            self.observation.end_attempt(event)
        notify(self._context.on_event, event)

    def _hider(self, text: str) -> Hide:
        """Return the function that hides this call's credentials in a text and in parts of it."""
        return hider(text, self._secrets())

    def _secrets(self) -> Iterator[str]:
        if self._context.credentials.api_key is not None:
            yield self._context.credentials.api_key
        if self._bearer is not None:
            yield from filter(None, (self._bearer.current, self._bearer.rejected))
        yield from self._url.params.get_list("token")
        yield from secrets_in(self._wire)


def _is_unavailable(response: httpx.Response | None) -> bool:
    """Return whether the answer is a 503, which a gateway may send after the service has begun the work."""
    return response is not None and response.status_code == 503


async def _body(response: httpx.Response) -> bytes:
    if response.is_stream_consumed or "content-encoding" in response.headers:
        return await response.aread()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return b"".join([piece async for piece in response.stream])  # takes a third of the time of aread()
