"""The engine of a client: what all its views share, and how a call runs within the journal and the observer."""

import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import anyio
import httpx

from convertrilo._clock import Clock
from convertrilo._http.call import Call
from convertrilo._http.context import Context, Options, Send
from convertrilo._http.credentials import Credentials
from convertrilo._http.request import Urls, encoded_body
from convertrilo._model import Model
from convertrilo.errors import ConfigurationError, JournalError
from convertrilo.events import Beginning, Listener, Observer, logger
from convertrilo.idempotency import Identity, identify
from convertrilo.operations import CREATE_JOBS_BULK, Operation, Repeat
from convertrilo.retry import RetryBudget

if TYPE_CHECKING:
    from convertrilo.journal import Journal  # imports sqlite3, which most clients do without

R = TypeVar("R")
T = TypeVar("T")

_UNWATCHED = contextlib.nullcontext()


class Arguments(TypedDict, total=False):
    """The arguments of a call, for functions that pass them on to `Engine.call`."""

    path: Mapping[str, str | int]
    """The path parameters by name."""
    query: Mapping[str, str]
    """The query parameters by name."""
    body: Model | Mapping[str, Any] | bytes | None
    """The operation's model, a mapping in the wire's shape, or the bytes of a chunk."""
    idempotency_key: str | None
    """The idempotency key itself."""
    name: str | None
    """The name of the logical operation, from which the key is derived."""


class Engine(Context):
    """What all views of a client share, and the method that carries out their calls."""

    def __init__(
        self,
        *,
        base_url: httpx.URL,
        credentials: Credentials,
        send: Send,
        close: Callable[[], Awaitable[None]],
        budget: RetryBudget,
        clock: Clock,
        on_event: Listener | None,
        journal: "Journal | None",
        poll_batch_size: int,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        super().__init__(
            base_url=base_url, credentials=credentials, send=send, budget=budget, clock=clock, on_event=on_event
        )
        self.journal = journal
        self.poll_batch_size = poll_batch_size
        """The maximum number of job ids in one `bulkStatus` request of the poller."""
        self.transport = transport
        self.service: str = _service(base_url)
        """The service's name in the journal."""
        self._urls = Urls(base_url)
        self._shared: dict[type[object], object] = {}
        self._close = close
        self._journal_open = False
        self._journal_opening = anyio.Lock()

    def shared(self, kind: type[T]) -> T | None:
        """Return the object of this class that a flow shares between a client and its views, if there is one."""
        return cast("T | None", self._shared.get(kind))

    def share(self, value: T) -> T:
        """Share an object between a client and its views; `shared` finds it by its class."""
        self._shared[type(value)] = value
        return value

    def check_open(self) -> None:
        """Refuse to use a closed client.

        Raises:
            ConfigurationError: The client is closed.
        """
        if self.closed:
            raise ConfigurationError("the client is closed")

    async def open_journal(self) -> None:
        """Open the client's journal, unless it has none or the journal is open already.

        Raises:
            ConfigurationError: The client is closed.
        """
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
        """Carry out one operation, and return its answer and the answer's headers.

        Args:
            operation: The operation.
            options: The settings of the client's view.
            path: The path parameters by name.
            query: The query parameters by name.
            body: The operation's model, a mapping in the wire's shape, or the bytes of a chunk.
            idempotency_key: The idempotency key itself.
            name: The name of the logical operation, from which the key is derived.
        """
        self.check_open()
        url = self._urls.url(operation, path, query)
        wire, content = encoded_body(operation, body)
        identity: Identity | None = None
        body_without_credentials = b""
        if operation.repeat is Repeat.KEYED:
            assert wire is not None
            identity, body_without_credentials = identify(
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
            return await self.journaled(self.journal, call, identity, body_without_credentials)

    def frozen_call(
        self, operation: Operation[R], options: Options, *, wire: dict[str, Any], content: bytes, identity: Identity
    ) -> Call[R]:
        """Return a keyed call whose bytes and identity already exist; the caller records the call in its journal."""
        self.check_open()
        return Call(self, operation, options, self._urls.url(operation, None, None), content, wire, identity)

    # ---- the observer and the journal

    def watching(
        self, call: Call[Any], wire: dict[str, Any] | None, identity: Identity | None
    ) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the observer, if there is one, watches a call from beginning to end."""
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

    async def journaled(
        self, journal: "Journal", call: Call[R], identity: Identity, body_without_credentials: bytes
    ) -> tuple[R, httpx.Headers]:
        """Carry out a keyed call, and record it in a journal before it is sent and after it was answered."""
        await self.open_journal()
        recording = journal.begin(
            service=self.service,
            sender=self.credentials.sender,
            operation=call.operation.id,
            key=identity.key,
            body=body_without_credentials,
            identity=identity.kind,
            name=identity.name,
        )
        entry = await self.timed("begin", recording)
        call.doubt.last_resend = entry.first_sent_at.timestamp() + journal.replay_window
        call.doubt.was_sent_before = not entry.fresh
        if entry.answer is not None:
            return call.read(entry.answer), httpx.Headers()
        try:
            result, answer, headers = await call.run()
        except BaseException:
            if not call.doubt.may_be_done:
                with anyio.CancelScope(shield=True), only_logged(call.operation.id):
                    await self.timed("forget", journal.forget(identity.key))
            raise
        with only_logged(call.operation.id):
            await self.timed("answer", journal.answer(identity.key, answer))
        return result, headers

    async def timed(self, step: str, recording: Awaitable[T]) -> T:
        """Await one step of the journal, and report its duration to the observer, if there is one."""
        if self.observer is None:
            return await recording
        started = time.perf_counter()
        try:
            return await recording
        finally:
            self.observer.journaled(step, time.perf_counter() - started)


def _service(base_url: httpx.URL) -> str:
    """Return a service's name for the journal; a sandbox on this machine has the same name on every port."""
    is_local = base_url.host in ("localhost", "127.0.0.1", "::1") or base_url.host.endswith(".localhost")
    return "localhost" if is_local else str(base_url)


@contextlib.contextmanager
def only_logged(operation_id: str) -> Generator[None]:
    """Log journal failures; never mask the call's result."""
    try:
        yield
    except JournalError:
        logger.exception("the outcome of %s could not be recorded; the journal still lists it as pending", operation_id)
