"""One call from its arguments to its answer: credentials, attempts, retries, deadline, journal, events.

An `Engine` is what all views of a client share; `_Call` is the state of one call. tenacity runs the loop over its
attempts, `retry` decides, the transport makes one attempt on the wire.
"""

import inspect
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import quote

import anyio
import attrs
import httpx
from tenacity import AsyncRetrying, RetryCallState

from convertrilo._clock import Clock
from convertrilo._json import encode, loads
from convertrilo._model import Model, field_specs
from convertrilo._version import __version__
from convertrilo.codec import from_request, read_answer, to_wire, wire_name
from convertrilo.errors import (
    ConfigurationError,
    ConvertriloError,
    DeadlineExceededError,
    DecodeError,
    Issue,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    TransportError,
    ValidationError,
    api_error_class,
)
from convertrilo.events import AttemptEvent, Listener, Outcome, logger, notify
from convertrilo.idempotency import Identity, identify
from convertrilo.operations import Auth, Operation, Repeat
from convertrilo.retry import (
    FailureKind,
    RetryBudget,
    RetryPolicy,
    Verdict,
    kind_of_answer,
    may_repeat,
    retry_after,
)

if TYPE_CHECKING:
    from convertrilo.journal import Journal  # it imports sqlite3, which most clients do without

R = TypeVar("R")

TokenSource = Callable[[], str | Awaitable[str]]

_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)
_SHOWN_BYTES = 200
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


@attrs.define(eq=False)
class Credentials:
    """The API key and the source of bearer tokens; neither is ever shown."""

    api_key: str | None = attrs.field(repr=False)
    get_token: TokenSource | None = attrs.field(repr=False)
    _last_token: str | None = attrs.field(default=None, init=False, repr=False)
    _refreshing: anyio.Lock = attrs.field(factory=anyio.Lock, init=False, repr=False)

    async def token(self, rejected: str | None) -> str:
        """Return a bearer token.

        However many calls had the same token rejected, the source is asked for another one once.

        Args:
            rejected: The token that the service has just refused, if any.
        """
        if rejected is None:
            return await self._ask()
        async with self._refreshing:
            return await self._ask() if self._last_token in (None, rejected) else str(self._last_token)

    async def _ask(self) -> str:
        assert self.get_token is not None
        token = self.get_token()
        self._last_token = await token if inspect.isawaitable(token) else token
        return self._last_token

    def secrets(self) -> Iterator[str]:
        """Yield what must not be shown."""
        for secret in (self.api_key, self._last_token):
            if secret:
                yield secret


Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


@attrs.define(eq=False)
class Engine:
    """What all views of a client share."""

    base_url: httpx.URL
    credentials: Credentials
    send: Send
    close: Callable[[], Awaitable[None]]
    budget: RetryBudget
    journal: "Journal | None"
    clock: Clock
    on_event: Listener | None
    random: Callable[[], float] = random.random
    shared: dict[str, Any] = attrs.field(factory=dict[str, Any], init=False)
    """What the flows keep for a client and its views, by their own names."""
    _journal_open: bool = attrs.field(default=False, init=False)
    _journal_opening: anyio.Lock = attrs.field(factory=anyio.Lock, init=False)

    async def open_journal(self) -> None:
        """Open the journal, if there is one and it is not open yet."""
        if self.journal is None or self._journal_open:
            return
        async with self._journal_opening:
            if not self._journal_open:
                await self.journal.__aenter__()
                self._journal_open = True

    async def aclose(self) -> None:
        """Close the connections and the journal."""
        try:
            await self.close()
        finally:
            if self.journal is not None and self._journal_open:
                self._journal_open = False
                await self.journal.__aexit__(None, None, None)

    async def call(
        self,
        operation: Operation[R],
        options: Options,
        *,
        path: Mapping[str, str | int] | None = None,
        query: Mapping[str, str] | None = None,
        body: Model | Mapping[str, Any] | bytes | None = None,
        idempotency_key: str | None = None,
        name: str | None = None,
    ) -> tuple[R, httpx.Headers]:
        """Carry out one operation, and return its answer with the answer's headers."""
        url = self._url(operation, path, query)
        wire, content = _content(operation, body)
        identity: Identity | None = None
        bare = b""
        if operation.repeat is Repeat.KEYED:
            assert wire is not None
            identity, bare = identify(
                operation, wire, content, idempotency_key=idempotency_key, name=name or options.operation
            )
        call = _Call(self, operation, options, url, content, wire, identity)
        if identity is None or self.journal is None:
            answer, headers = await call.run()
            return call.read(answer, headers), headers
        return await self._journaled(self.journal, call, identity, bare)

    async def _journaled(
        self, journal: "Journal", call: "_Call[R]", identity: Identity, bare: bytes
    ) -> tuple[R, httpx.Headers]:
        await self.open_journal()
        entry = await journal.begin(
            operation=call.operation.id, key=identity.key, body=bare, identity=identity.kind, name=identity.name
        )
        if entry.answer is not None:
            return call.read(entry.answer, httpx.Headers()), httpx.Headers()
        try:
            answer, headers = await call.run()
            result = call.read(answer, headers)
        except BaseException:
            if entry.fresh and not call.in_doubt:
                with anyio.CancelScope(shield=True):
                    await journal.forget(identity.key)
            raise
        try:
            await journal.answer(identity.key, answer)
        except JournalError:  # the job exists, and its answer is worth more than the journal's copy of it
            logger.exception("the answer to %s is not in the journal; it stays pending there", call.operation.id)
        return result, headers

    def _url(
        self, operation: Operation[Any], path: Mapping[str, str | int] | None, query: Mapping[str, str] | None
    ) -> httpx.URL:
        target = operation.path
        for name, value in (path or {}).items():
            target = target.replace(f"{{{name}}}", _path_segment(name, value))
        if query:
            target += "?" + "&".join(f"{name}={quote(value, safe=',')}" for name, value in query.items())
        return _joined(self.base_url, target)


_URLS: dict[tuple[httpx.URL, str], httpx.URL] = {}
_MOST_URLS = 1024


def _joined(base: httpx.URL, target: str) -> httpx.URL:
    """Return the URL of a target; making one costs more than all else in a request, so the latest are kept."""
    url = _URLS.get((base, target))
    if url is None:
        if len(_URLS) >= _MOST_URLS:
            _URLS.clear()
        _URLS[base, target] = url = httpx.URL(f"{base}{target}")
    return url


def _path_segment(name: str, value: str | int) -> str:
    text = str(value)
    if not text or text in (".", ".."):
        raise ValidationError(name, [Issue("", f"must name something, not {text!r}")])
    return quote(text, safe="")


def _content(
    operation: Operation[Any], body: Model | Mapping[str, Any] | bytes | None
) -> tuple[dict[str, Any] | None, bytes]:
    """Return a body in the wire's shape, and its bytes: encoded once, sent in every attempt."""
    if operation.body is None or (body is None and not operation.body_required):
        return None, b""
    if issubclass(operation.body, bytes):
        if not isinstance(body, bytes | bytearray | memoryview):
            raise ValidationError(operation.id, [Issue("body", f"must be bytes, not {type(body).__name__}")])
        return None, bytes(body)
    if isinstance(body, Mapping):
        body = from_request(operation.body, body)
    if not isinstance(body, operation.body):
        allowed = f"{operation.body.__name__} or a mapping in the wire's shape"
        raise ValidationError(operation.id, [Issue("body", f"must be {allowed}, not {type(body).__name__}")])
    wire = to_wire(body)
    return wire, encode(wire)


@attrs.define
class _Failure:
    """How an attempt failed: the error to raise if it was the last one, and what is known about trying again."""

    kind: FailureKind
    error: ConvertriloError
    cause: BaseException | None = None
    told: float | None = None
    """Seconds after which the service wants to be asked again."""


class _FailedAttempt(Exception):  # noqa: N818  # no error: the loop's own signal
    """Tells tenacity that an attempt failed; `_Call.failure` has the rest."""


class _Call(Generic[R]):
    """The state of one call."""

    __slots__ = (
        "_attempts",
        "_content",
        "_deadline",
        "_engine",
        "_failure",
        "_identity",
        "_options",
        "_paid",
        "_rejected_token",
        "_started",
        "_token",
        "_url",
        "_wait",
        "_wire",
        "in_doubt",
        "operation",
    )

    def __init__(
        self,
        engine: Engine,
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
        self._engine = engine
        self._options = options
        self._url = url
        self._content = content
        self._wire = wire
        self._identity = identity
        self._attempts = 0
        self._started = engine.clock.monotonic()
        self._deadline = self._started + options.retry.deadline
        self._failure: _Failure | None = None
        self._wait: float | None = None
        self._paid = False
        self._token: str | None = None
        self._rejected_token: str | None = None

    async def run(self) -> tuple[bytes, httpx.Headers]:
        """Try until there is an answer or an error that stands; return the answer's body and headers."""
        retrying = AsyncRetrying(
            sleep=self._engine.clock.sleep, wait=self._next_wait, retry=self._will_retry, reraise=True
        )
        try:
            return await retrying(self._attempt)
        except _FailedAttempt:
            pass
        assert self._failure is not None
        raise self._final_error(self._failure) from self._failure.cause

    def read(self, answer: bytes, headers: httpx.Headers) -> R:
        """Return the answer as the operation's model."""
        returns = self.operation.returns
        if returns is None:
            return cast("R", None)
        try:
            return cast("R", read_answer(cast("type[Model]", returns), answer))
        except DecodeError as error:
            error.start = self._redacted(error.start)
            error.status = self.operation.status
            error.request_id = headers.get("x-request-id")
            self._note_doubt(error)
            raise self._about_call(error) from None

    # ---- one attempt

    async def _attempt(self) -> tuple[bytes, httpx.Headers]:
        request = await self._request()
        self._attempts += 1
        was_in_doubt, self.in_doubt = self.in_doubt, True
        left = self._deadline - self._engine.clock.monotonic()
        response: httpx.Response | None = None
        failure: _Failure | None = None
        with anyio.move_on_after(left) as scope:
            try:
                response = await self._engine.send(request)
                try:
                    answer = await response.aread()
                finally:
                    await response.aclose()
                if response.status_code < 300:
                    self._succeeded(response)
                    return answer, response.headers
                failure = self._answered(response, answer)
            except (httpx.HTTPError, OSError) as error:
                failure = self._broken(error, request)
        if scope.cancelled_caught or failure is None:
            failure = _Failure(FailureKind.UNCLEAR, self._too_late())
        if failure.kind is not FailureKind.UNCLEAR:
            self.in_doubt = was_in_doubt
        self._failure = failure
        self._wait = self._decide(failure)
        self._notify(failure.kind.value, response, getattr(failure.error, "code", None))
        raise _FailedAttempt

    async def _request(self) -> httpx.Request:
        headers = [(b"Host", self._url.netloc), *_FIXED_HEADERS, *(await self._authorization())]
        if self._identity is not None:
            headers.append((b"Idempotency-Key", self._identity.key.encode()))
        if self._content or self.operation.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(self._content)))
        if self._content:
            kind = b"application/octet-stream" if self.operation.body is bytes else b"application/json"
            headers.append((b"Content-Type", kind))
        left = self._deadline - self._engine.clock.monotonic()
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
        credentials, auth = self._engine.credentials, self.operation.auth
        if auth is Auth.NONE:
            return []
        if auth is Auth.ANY and credentials.api_key is not None:
            return [(b"X-API-Key", credentials.api_key.encode())]
        if credentials.get_token is None:
            raise self._about_call(ConfigurationError(_NO_CREDENTIALS[auth]))
        self._token = await credentials.token(self._rejected_token)
        if self._token == self._rejected_token:
            assert self._failure is not None
            raise self._final_error(self._failure)  # there is no other token
        return [(b"Authorization", b"Bearer " + self._token.encode())]

    def _succeeded(self, response: httpx.Response) -> None:
        if self._paid:
            self._engine.budget.give_back()
        elif self._attempts == 1:
            self._engine.budget.reward()
        self._wait = None
        self._notify("ok", response, None)

    def _answered(self, response: httpx.Response, answer: bytes) -> _Failure:
        """Make the error of an error answer."""
        body = _json_object(answer)
        status = response.status_code
        code = str(body.get("code") or f"http_{status}")
        told = retry_after(status, response.headers, self._engine.clock.time())
        kind = kind_of_answer(status, code, told_to_wait=told is not None, has_token=self._token is not None)
        message = body.get("message")
        error = api_error_class(status, code)(
            self._redacted_text(str(message) if message else _no_message(response, answer)),
            status=status,
            code=self._redacted_text(code),
            issues=self._redacted_json(body.get("issues")),
            required_scope=None if (scope := body.get("requiredScope")) is None else str(scope),
            required=_number(body.get("required")),
            available=_number(body.get("available")),
            request_id=response.headers.get("x-request-id"),
            retry_after=told,
        )
        return _Failure(kind, error, told=told)

    def _broken(self, error: BaseException, request: httpx.Request) -> _Failure:
        """Make the error of an attempt that got no answer."""
        if isinstance(error, httpx.RequestError):
            error.request = httpx.Request(request.method, self._engine.base_url)  # the real one has the credentials
        reason = self._redacted_text(str(error)) or type(error).__name__
        if isinstance(error, _NOT_SENT):
            return _Failure(FailureKind.NOT_SENT, NotSentError(f"nothing was sent: {reason}"), error)
        return _Failure(FailureKind.UNCLEAR, TransportError(f"no answer: {reason}"), error)

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"no answer within the deadline of {self._options.retry.deadline:g} seconds")

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
        if self._attempts >= policy.max_attempts:
            return None
        wait = failure.told
        if wait is None:
            wait = policy.backoff(self._attempts, self._engine.random)
        elif wait > policy.max_retry_after:
            return None
        if self._engine.clock.monotonic() + wait >= self._deadline:
            return None
        free = failure.told is not None or failure.kind is FailureKind.IN_PROGRESS
        if not free:
            if not self._engine.budget.spend():
                return None
            self._paid = True
        return wait

    def _will_retry(self, state: RetryCallState) -> bool:
        assert state.outcome is not None
        return self._wait is not None and isinstance(state.outcome.exception(), _FailedAttempt)

    def _next_wait(self, _: RetryCallState) -> float:
        return self._wait or 0.0

    def _final_error(self, failure: _Failure) -> ConvertriloError:
        error = failure.error
        if may_repeat(self.operation.repeat, failure.kind) is Verdict.OUTCOME_UNKNOWN:
            error = OutcomeUnknownError(
                f"{self.operation.id} may or may not have happened: {error.message}.", find_out=self.operation.find_out
            )
            failure.cause = failure.cause or failure.error
        else:
            self._note_doubt(error)
        return self._about_call(error)

    def _note_doubt(self, error: ConvertriloError) -> None:
        if self.in_doubt and self._identity is not None:
            error.add_note(
                "The service may have done it all the same. Calling again is safe under the same key: "
                f"idempotency_key={self._identity.key!r}."
            )

    def _about_call(self, error: ConvertriloError) -> ConvertriloError:
        key = None if self._identity is None else self._identity.key
        return error.with_call(operation=self.operation.id, idempotency_key=key, attempts=self._attempts)

    def _notify(self, outcome: Outcome, response: httpx.Response | None, code: str | None) -> None:
        if self._engine.on_event is None:
            return
        event = AttemptEvent(
            operation=self.operation.id,
            attempt=self._attempts,
            outcome=outcome,
            status=None if response is None else response.status_code,
            code=code,
            wait=self._wait,
            elapsed=self._engine.clock.monotonic() - self._started,
            idempotency_key=None if self._identity is None else self._identity.key,
            request_id=None if response is None else response.headers.get("x-request-id"),
        )
        notify(self._engine.on_event, event)

    # ---- keeping credentials out of what is shown

    def _secrets(self) -> Iterator[str]:
        yield from self._engine.credentials.secrets()
        if self._wire is not None and isinstance(self.operation.body, type) and issubclass(self.operation.body, Model):
            yield from _secrets_in(self.operation.body, self._wire)

    def _redacted_text(self, text: str) -> str:
        for secret in self._secrets():
            text = text.replace(secret, "<hidden>")
        return text

    def _redacted(self, data: bytes) -> bytes:
        for secret in self._secrets():
            data = data.replace(secret.encode(), b"<hidden>")
        return data

    def _redacted_json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redacted_text(value)
        if isinstance(value, list):
            return [self._redacted_json(each) for each in value]
        if isinstance(value, dict):
            return {name: self._redacted_json(each) for name, each in value.items()}
        return value


_NO_CREDENTIALS = {
    Auth.ANY: "no credentials: pass api_key=… or get_token=…, or set CONVERTRILO_API_KEY",
    Auth.BEARER: "this operation takes a bearer token only: pass get_token=… (an API key is not enough)",
    Auth.NONE: "",
}


def _secrets_in(cls: type[Model], wire: Mapping[str, Any]) -> Iterator[str]:
    for spec in field_specs(cls):
        value = wire.get(wire_name(spec.name))
        if not value:
            continue
        if spec.facts.secret:
            yield str(value)
        elif issubclass(spec.kind, Model):
            for each in value if spec.many else [value]:
                yield from _secrets_in(spec.kind, each)


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _no_message(response: httpx.Response, answer: bytes) -> str:
    if response.is_redirect:
        return "the service redirects elsewhere; is the base URL right?"
    if not answer.strip():
        return "the answer is empty"
    return f"the answer is not of the service's form; it begins with {answer[:_SHOWN_BYTES]!r}"
