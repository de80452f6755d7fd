"""The way of a call through a client: its URL, its body, its identity, and the journal around it."""

import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

import anyio
import httpx

from convertrilo._http.call import Call, Context, Options
from convertrilo._json import encode
from convertrilo._model import Model
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import ConfigurationError, Issue, JournalError, ValidationError
from convertrilo.events import Beginning, Observer, logger
from convertrilo.idempotency import Identity, identify
from convertrilo.operations import CREATE_JOBS_BULK, Operation, Repeat

if TYPE_CHECKING:
    from convertrilo.journal import Journal  # it imports sqlite3, which most clients do without

R = TypeVar("R")
T = TypeVar("T")

_MOST_URLS = 1024
_UNWATCHED = contextlib.nullcontext()


class Engine(Context):
    """What all views of a client share, and the way of a call through it."""

    def __init__(
        self,
        *,
        journal: "Journal | None",
        poll_batch_size: int,
        transport: httpx.AsyncBaseTransport | None,
        close: Callable[[], Awaitable[None]],
        **shared_by_calls: Any,
    ) -> None:
        super().__init__(**shared_by_calls)
        self.journal = journal
        self.poll_batch_size = poll_batch_size
        """Ids that one `bulkStatus` of the poller asks for at most."""
        self.transport = transport
        self._shared: dict[type[object], object] = {}
        self.service = _service(self.base_url)
        """What the journal calls it."""
        self._close = close
        self._journal_open = False
        self._journal_opening = anyio.Lock()
        self._urls: dict[str, httpx.URL] = {}

    def shared(self, kind: type[T]) -> T | None:
        """Return the object of this class that a flow keeps for a client and its views, if there is one."""
        return cast("T | None", self._shared.get(kind))

    def share(self, value: T) -> T:
        """Keep an object for a client and its views; `shared` finds it by its class."""
        self._shared[type(value)] = value
        return value

    def check_open(self) -> None:
        """Refuse to go on with a client that is closed.

        Raises:
            ConfigurationError: It is.
        """
        if self.closed:
            raise ConfigurationError("the client is closed")

    async def open_journal(self) -> None:
        """Open the journal, if there is one and it is not open yet."""
        self.check_open()
        if self.journal is None or self._journal_open:
            return
        async with self._journal_opening:
            if not self._journal_open:
                await self.journal.__aenter__()
                self._journal_open = True

    async def aclose(self) -> None:
        """Close the connections and the journal."""
        self.closed = True
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
        self.check_open()
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
        call = Call(self, operation, options, url, content, wire, identity)
        with self.watching(call, wire, identity):
            if identity is None or self.journal is None:
                result, _, headers = await call.run()
                return result, headers
            return await self.journaled(self.journal, call, identity, bare)

    def watching(
        self, call: Call[Any], wire: dict[str, Any] | None, identity: Identity | None
    ) -> contextlib.AbstractContextManager[object]:
        """Return the context in which a call is carried out, so that the observer, if there is one, sees all of it."""
        if self.observer is None:
            return _UNWATCHED
        return self._watched(self.observer, call, wire, identity)

    @contextlib.contextmanager
    def _watched(
        self, observer: Observer, call: Call[Any], wire: dict[str, Any] | None, identity: Identity | None
    ) -> Generator[None]:
        operation = call.operation
        jobs: Any = (wire or {}).get("jobs")
        beginning = Beginning(
            operation=operation.id,
            method=operation.method,
            path=operation.path,
            url=call.address,
            idempotency_key=None if identity is None else identity.key,
            identity=None if identity is None else identity.kind,
            items=len(jobs) if operation.id == CREATE_JOBS_BULK.id else None,
        )
        with observer.watch(beginning) as call.observation:
            yield

    def frozen_call(
        self, operation: Operation[R], options: Options, *, wire: dict[str, Any], content: bytes, identity: Identity
    ) -> Call[R]:
        """Return the call of a keyed operation whose bytes and identity are made already; no journal is around it."""
        self.check_open()
        return Call(self, operation, options, self._url(operation, None, None), content, wire, identity)

    async def journaled(
        self, journal: "Journal", call: "Call[R]", identity: Identity, bare: bytes
    ) -> tuple[R, httpx.Headers]:
        """Carry out a keyed call, written down in a journal before it and after it."""
        await self.open_journal()
        writing = journal.begin(
            service=self.service,
            sender=self.credentials.sender,
            operation=call.operation.id,
            key=identity.key,
            body=bare,
            identity=identity.kind,
            name=identity.name,
        )
        entry = await self.timed("begin", writing)
        call.last_resend = entry.first_sent_at.timestamp() + journal.replay_window
        call.was_sent_before = not entry.fresh
        if entry.answer is not None:
            return call.read(entry.answer), httpx.Headers()
        try:
            result, answer, headers = await call.run()
        except BaseException:
            if not call.in_doubt:
                with anyio.CancelScope(shield=True), only_logged(call.operation.id):
                    await self.timed("forget", journal.forget(identity.key))
            raise
        with only_logged(call.operation.id):
            await self.timed("answer", journal.answer(identity.key, answer))
        return result, headers

    async def timed(self, step: str, writing: Awaitable[T]) -> T:
        """Await a step of the journal's, and let the observer, if there is one, know how long it took."""
        if self.observer is None:
            return await writing
        started = time.perf_counter()
        try:
            return await writing
        finally:
            self.observer.journaled(step, time.perf_counter() - started)

    def _url(
        self, operation: Operation[Any], path: Mapping[str, str | int] | None, query: Mapping[str, str] | None
    ) -> httpx.URL:
        target = operation.path
        for name, value in (path or {}).items():
            target = target.replace(f"{{{name}}}", _path_segment(name, value))
        if query:
            target += "?" + "&".join(f"{name}={_quoted(name, value, safe=',')}" for name, value in query.items())
        url = self._urls.get(target)  # to make one costs 10 us
        if url is None:
            url = httpx.URL(f"{self.base_url}{target}")
            if query is None:  # with one, URLs are long, and seldom asked for again
                if len(self._urls) >= _MOST_URLS:
                    self._urls.clear()
                self._urls[target] = url
        return url


def _service(base_url: httpx.URL) -> str:
    """Name a service for the journal: a sandbox on this machine is the same one whatever its port."""
    is_local = base_url.host in ("localhost", "127.0.0.1", "::1") or base_url.host.endswith(".localhost")
    return "localhost" if is_local else str(base_url)


@contextlib.contextmanager
def only_logged(operation_id: str) -> Generator[None]:
    """Let a failing journal not take the place of what came of the call: that is worth more than the journal's copy."""
    try:
        yield
    except JournalError:
        logger.exception("what came of %s is not in the journal; it stays pending there", operation_id)


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
