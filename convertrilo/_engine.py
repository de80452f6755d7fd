"""One call from its arguments to its answer: credentials, attempts, retries, deadline, journal, events.

An `Engine` is what all views of a client share; `_Call` is the state of one call. tenacity runs the loop over its
attempts, `retry` decides, the transport makes one attempt on the wire.
"""

import contextlib
import inspect
import random
import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import quote, unquote_plus

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
)
_SHOWN = 200  # bytes or characters of an answer that is not understood
_HIDDEN = "<hidden>"
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


class Credentials:
    """The API key and the source of bearer tokens; neither is ever shown."""

    def __init__(self, api_key: str | None, get_token: TokenSource | None) -> None:
        self.api_key = api_key
        self.get_token = get_token
        self.renewals = 0
        """How often the source was asked for another token because one was rejected."""
        self._renewed = ""
        self._renewing = anyio.Lock()

    async def token(self) -> str:
        """Ask the source for a bearer token.

        Raises:
            ConfigurationError: What it returned cannot be a token.
        """
        assert self.get_token is not None
        given = self.get_token()
        token = await given if inspect.isawaitable(given) else given
        if not is_visible(token):
            raise ConfigurationError("get_token must return the token as a string of visible ASCII characters")
        return token

    async def renewed_token(self, since: int) -> str:
        """Return a token for one that was rejected; the source is asked once, however many calls need it.

        Args:
            since: What `renewals` was when the rejected token was handed out.
        """
        async with self._renewing:
            if self.renewals == since:
                self._renewed = await self.token()
                self.renewals += 1
            return self._renewed


def is_visible(secret: object) -> bool:
    """Return whether a credential is a string of visible ASCII characters: a header carries no others."""
    return isinstance(secret, str) and re.fullmatch("[!-~]+", secret) is not None


Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Engine:
    """What all views of a client share."""

    def __init__(
        self,
        *,
        base_url: httpx.URL,
        credentials: Credentials,
        send: Send,
        close: Callable[[], Awaitable[None]],
        budget: RetryBudget,
        journal: "Journal | None",
        clock: Clock,
        on_event: Listener | None,
    ) -> None:
        self.base_url = base_url
        self.credentials = credentials
        self.send = send
        self.budget = budget
        self.journal = journal
        self.clock = clock
        self.on_event = on_event
        self.random: Callable[[], float] = random.random
        self.shared: dict[str, Any] = {}
        """What the flows keep for a client and its views, by their own names."""
        self._close = close
        self._closed = False
        self._journal_open = False
        self._journal_opening = anyio.Lock()

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
        self._closed = True
        try:
            await self._close()
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
        if self._closed:
            raise ConfigurationError("the client is closed")
        url = self._url(operation, path, query)
        wire, content = _content(operation, body)
        identity: Identity | None = None
        bare = b""
        if operation.repeat is Repeat.KEYED:
            assert wire is not None
            identity, bare = identify(
                operation,
                wire,
                content,
                idempotency_key=idempotency_key,
                name=options.operation if name is None else name,
            )
        call = _Call(self, operation, options, url, content, wire, identity)
        if identity is None or self.journal is None:
            result, _, headers = await call.run()
            return result, headers
        return await self._journaled(self.journal, call, identity, bare)

    async def _journaled(
        self, journal: "Journal", call: "_Call[R]", identity: Identity, bare: bytes
    ) -> tuple[R, httpx.Headers]:
        await self.open_journal()
        entry = await journal.begin(
            operation=call.operation.id, key=identity.key, body=bare, identity=identity.kind, name=identity.name
        )
        if entry.answer is not None:
            return call.read(entry.answer), httpx.Headers()
        try:
            result, answer, headers = await call.run()
        except BaseException:
            if not call.in_doubt:
                with anyio.CancelScope(shield=True), _only_logged(call.operation.id):
                    await journal.forget(identity.key)
            raise
        with _only_logged(call.operation.id):
            await journal.answer(identity.key, answer)
        return result, headers

    def _url(
        self, operation: Operation[Any], path: Mapping[str, str | int] | None, query: Mapping[str, str] | None
    ) -> httpx.URL:
        target = operation.path
        for name, value in (path or {}).items():
            target = target.replace(f"{{{name}}}", _path_segment(name, value))
        if query:
            target += "?" + "&".join(f"{name}={_quoted(name, value, safe=',')}" for name, value in query.items())
        return _joined(self.base_url, target)


@contextlib.contextmanager
def _only_logged(operation_id: str) -> Generator[None]:
    """Let a failing journal not take the place of what came of the call: that is worth more than the journal's copy."""
    try:
        yield
    except JournalError:
        logger.exception("what came of %s is not in the journal; it stays pending there", operation_id)


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


def _path_segment(name: str, value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or value in ("", ".", ".."):
        raise ValidationError(name, [Issue("", f"must name something, not {value!r}")])
    return _quoted(name, value, safe="")


def _quoted(name: str, value: str, *, safe: str) -> str:
    try:
        return quote(value, safe=safe)
    except UnicodeEncodeError:
        raise ValidationError(name, [Issue("", "holds text that is not valid Unicode")]) from None


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
        "_renewals",
        "_reserved",
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
        self._reserved = False  # paid for, and not tried yet
        self._token: str | None = None
        self._rejected_token: str | None = None
        self._renewals = 0

    async def run(self) -> tuple[R, bytes, httpx.Headers]:
        """Try until there is an answer or an error that stands; return the answer, its bytes and its headers."""
        retrying = AsyncRetrying(
            sleep=self._engine.clock.sleep, wait=self._next_wait, retry=self._will_retry, reraise=True
        )
        try:
            return await retrying(self._attempt)
        except _FailedAttempt:
            pass
        finally:
            if self._reserved:
                self._engine.budget.give_back()
        assert self._failure is not None
        raise self._final_error(self._failure) from self._failure.cause

    def read(self, answer: bytes, response: httpx.Response | None = None) -> R:
        """Return an answer as the operation's model."""
        returns = self.operation.returns
        if returns is None:
            return cast("R", None)
        try:
            return cast("R", read_answer(cast("type[Model]", returns), answer))
        except DecodeError as error:
            if answer.startswith(error.start):  # hidden before it is cut, lest the first half of a secret stays
                text = _text(answer)
                error.start = self._hider(text)(text).encode(errors="surrogateescape")[:_SHOWN]
            if response is not None:
                error.status = response.status_code
                error.request_id = response.headers.get("x-request-id")
            self._note_doubt(error)
            raise self._about_call(error) from None

    # ---- one attempt

    async def _attempt(self) -> tuple[R, bytes, httpx.Headers]:
        authorization = await self._authorization()
        left = self._left()
        if left <= 0:
            raise self._out_of_time()
        request = self._request(authorization, left)
        self._attempts += 1
        self._reserved = False
        was_in_doubt, self.in_doubt = self.in_doubt, True
        response: httpx.Response | None = None
        answer = b""
        failure: _Failure | None = None
        with anyio.move_on_after(left) as scope:
            try:
                response = await self._engine.send(request)
                try:
                    answer = await response.aread()
                finally:
                    await response.aclose()
                if response.status_code >= 300:
                    failure = self._answered(response, answer)
            except (httpx.HTTPError, OSError) as error:
                failure = self._broken(error, request)
        if scope.cancelled_caught:
            failure = _Failure(FailureKind.UNCLEAR, self._too_late())
        if failure is None:
            assert response is not None
            return self._succeeded(response, answer), answer, response.headers
        if failure.kind not in (FailureKind.UNCLEAR, FailureKind.IN_PROGRESS):
            self.in_doubt = was_in_doubt
        self._failure = failure
        self._wait = None if scope.cancelled_caught else self._decide(failure)
        self._notify(failure.kind.value, response, getattr(failure.error, "code", None))
        raise _FailedAttempt

    def _left(self) -> float:
        return self._deadline - self._engine.clock.monotonic()

    def _request(self, authorization: list[tuple[bytes, bytes]], left: float) -> httpx.Request:
        headers = [(b"Host", self._url.netloc), *_FIXED_HEADERS, *authorization]
        if self._identity is not None:
            headers.append((b"Idempotency-Key", self._identity.key.encode()))
        if self._content or self.operation.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(self._content)))
        if self._content:
            kind = b"application/octet-stream" if self.operation.body is bytes else b"application/json"
            headers.append((b"Content-Type", kind))
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
        token: str | None = None
        with anyio.move_on_after(self._left()):
            if self._rejected_token is None:
                token = await credentials.token()
                self._renewals = credentials.renewals
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
            self._engine.budget.give_back()
        elif self._attempts == 1:
            self._engine.budget.reward()
        self._notify("ok", response, None)
        return result

    def _answered(self, response: httpx.Response, answer: bytes) -> _Failure:
        """Make the error of an error answer."""
        text, body = _text(answer), _json_object(answer)
        hide = self._hider(text)
        status = response.status_code
        code = str(body.get("code") or f"http_{status}")
        told = retry_after(status, response.headers, self._engine.clock.time())
        kind = kind_of_answer(status, code, told_to_wait=told is not None, has_token=self._token is not None)
        message = body.get("message")
        try:
            issues = _without_secrets(body.get("issues"), hide)
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
            request_id=response.headers.get("x-request-id"),
            retry_after=told,
        )
        return _Failure(kind, error, told=told)

    def _broken(self, error: BaseException, request: httpx.Request) -> _Failure:
        """Make the error of an attempt that got no answer."""
        if isinstance(error, httpx.RequestError):
            error.request = httpx.Request(request.method, self._engine.base_url)  # the real one has the credentials
        text = str(error)
        reason = self._hider(text)(text)
        cause = error if reason == text else None
        reason = reason or type(error).__name__
        if isinstance(error, _NOT_SENT):
            return _Failure(FailureKind.NOT_SENT, NotSentError(f"nothing was sent: {reason}"), cause=cause)
        return _Failure(FailureKind.UNCLEAR, TransportError(f"no answer: {reason}"), cause=cause)

    def _too_late(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"no answer within the deadline of {self._options.retry.deadline:g} seconds")

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
        if self._attempts >= policy.max_attempts:
            return None
        wait = failure.told
        if wait is None:
            wait = policy.backoff(self._attempts, self._engine.random)
        elif wait > policy.max_retry_after:
            return None
        if wait >= self._left():
            return None
        free = failure.told is not None or failure.kind is FailureKind.IN_PROGRESS
        if not free:
            if not self._engine.budget.spend():
                return None
            self._paid = self._reserved = True
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

    def _hider(self, text: str) -> "_Hide":
        """Return what hides this call's credentials in a text and in parts of it."""
        return _hider(text, self._secrets())

    def _secrets(self) -> Iterator[str]:
        yield from filter(None, (self._engine.credentials.api_key, self._token, self._rejected_token))
        yield from self._url.params.get_list("token")
        if self._wire is not None and isinstance(self.operation.body, type) and issubclass(self.operation.body, Model):
            yield from _secrets_in(self.operation.body, self._wire)


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
        elif spec.facts.signed:
            yield from _secrets_of(str(value))
        elif issubclass(spec.kind, Model):
            for each in value if spec.many else [value]:
                yield from _secrets_in(spec.kind, each)


_SHORTEST_SIGNATURE = 16  # characters: shorter parameters of a URL are words and numbers


def _secrets_of(url: str) -> Iterator[str]:
    """Yield what may be secret in a URL: user name and password, and a query with its long values."""
    address, _, query = url.partition("?")
    user_info = re.split("[/#]", address.partition("://")[2])[0].rpartition("@")[0]
    yield from (user_info, user_info.partition(":")[2], query)
    for parameter in query.split("&"):
        value = unquote_plus(parameter.partition("=")[2])
        if len(value) >= _SHORTEST_SIGNATURE:
            yield value


_Hide = Callable[[str], str]


def _hider(text: str, secrets: Iterable[str]) -> _Hide:
    """Return what replaces secrets in parts of a text; only those that are in it are searched for."""
    lower = text.lower()
    present = {each for each in secrets if each and max(_WORDS.findall(each), key=len, default="").lower() in lower}
    if not present:
        return str
    longest_first = sorted(present, key=len, reverse=True)  # one can be the start of another
    return partial(re.compile("|".join(map(_any_spelling, longest_first)), re.IGNORECASE).sub, _HIDDEN)


_WORDS = re.compile("[A-Za-z0-9]+")


def _any_spelling(secret: str) -> str:
    """Return a pattern for a secret as it is, or escaped as JSON, Python, URLs and HTML do it."""
    return "".join(
        each if _WORDS.match(each) else rf"(?:\\*{re.escape(each)}|(?:%[\dA-F]{{2}})+|\\u[\dA-F]{{4}}|&#?\w+;)"
        for each in secret
    )


def _without_secrets(value: Any, hide: _Hide) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [_without_secrets(each, hide) for each in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {hide(name): _without_secrets(each, hide) for name, each in cast("dict[str, Any]", value).items()}
    return value


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
    if response.is_redirect:
        return "the service redirects elsewhere; is the base URL right?"
    if not answer.strip():
        return "the answer is empty"
    return f"the answer is not of the service's form; it begins with {answer[:_SHOWN]!r}"
