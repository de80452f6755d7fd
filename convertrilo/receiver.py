"""The server end of webhooks: an ASGI app that verifies deliveries and hands each event to a handler once.

    app = WebhookReceiver(os.environ["CONVERTRILO_WEBHOOK_SECRET"], handler, path="/webhooks/convertrilo")

It needs no framework: run it alone under uvicorn or hypercorn, or mount it.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import anyio
import attrs

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo.dedupe.memory import LEASE, DedupeStore, Key, MemoryDedupe, once, with_claim
from convertrilo.dedupe.sqlite import Queued, SQLiteDedupe
from convertrilo.errors import ConfigurationError, DecodeError, SignatureError
from convertrilo.events import logger
from convertrilo.webhooks import DEFAULT_TOLERANCE, MAX_BYTES, Secrets, WebhookEvent, decode, keys_of, parse

Handler = Callable[[WebhookEvent], object]
"""What is done with an event. A coroutine function is awaited; a plain function runs in the event loop: no blocking."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

RETRY_DELAYS = (60.0, 300.0, 1_800.0)
"""Seconds until a queued event is handled again that its handler failed for: the service's own."""

_AT_ONCE = 8
_SERVICE_TIMEOUT = 15.0


class WebhookReceiver:
    """An ASGI app that receives webhooks, verifies them, and hands each event to a handler once.

    Answers 204 when the event is handled, or was before; 401 to what is not proven to be the service's, 400 to what is
    and cannot be read, 404, 405 and 413 to what is no delivery; all without a body. When the handler raises, the answer
    is 500, and when it is not done after `timeout`, 503; the service sends the event again after both. A slow handler
    is not cancelled: it goes on, deliveries of its event wait for what comes of it, and once it is done they are
    answered 204 without another run.

    Deliveries of one event (the same job id and event name) are handled one at a time, and none after one that
    succeeded, as far as `dedupe` reaches. A handler whose process dies is run again, so it should bear that.

    With `queue`, the answer is 204 as soon as the event is on disk; handlers run after that, eight at a time. One that
    fails is run again 1, 5 and 30 minutes later, and given up then; what is not done when the receiver stops, or dies,
    is done after the next start.

    Its lifetime is the server's (ASGI's lifespan). Where it is mounted in an app that has a lifespan of its own, enter
    it there: `async with receiver`. Without `queue` and with dedupe in memory it works without that, too.

    Args:
        secrets: The webhook's secret; or several, while one replaces another, or for several webhooks.
        handler: Called with each event, and awaited if it is a coroutine function.
        path: Where it listens, relative to where it is mounted.
        dedupe: What remembers the events that were handled; by default the memory of this process. With more processes
            than one, or to remember them past a restart: `SQLiteDedupe("webhooks.db")`.
        queue: Whether to answer when the event is on disk instead of when it is handled. Takes a `SQLiteDedupe`.
        timeout: Seconds after which a delivery is answered, whatever the handler does. The service waits 15.
        tolerance: Seconds that an event may be old; see `webhooks.parse`.
        max_bytes: The most bytes that a body may have.
        clock: Tells the time and sleeps; tests pass a virtual one.

    Raises:
        ConfigurationError: There is no usable secret, or another setting is unusable.
    """

    def __init__(
        self,
        secrets: Secrets,
        handler: Handler,
        *,
        path: str = "/",
        dedupe: DedupeStore | None = None,
        queue: bool = False,
        timeout: float = 10.0,
        tolerance: float = DEFAULT_TOLERANCE,
        max_bytes: int = MAX_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        try:
            self._secrets = keys_of(secrets)
        except SignatureError as error:
            raise ConfigurationError(error.message) from None
        if not 0 < timeout < _SERVICE_TIMEOUT:
            raise ConfigurationError(f"timeout must be above 0 and below {_SERVICE_TIMEOUT:g} s, not {timeout}")
        if not tolerance >= 0:
            raise ConfigurationError(f"tolerance must be a number of seconds of at least 0, not {tolerance}")
        self._dedupe: DedupeStore = MemoryDedupe() if dedupe is None else dedupe
        self._queue: _Queue | None = None
        if queue:
            if not isinstance(dedupe, SQLiteDedupe):
                raise ConfigurationError("a queue must outlive the process: queue=True takes dedupe=SQLiteDedupe(path)")
            self._queue = _Queue(dedupe, handler, clock)
        self._handler = handler
        self._path = path.strip("/")
        self._timeout = timeout
        self._tolerance = tolerance
        self._max_bytes = max_bytes
        self._clock = clock
        self._runs: dict[Key, _Run] = {}
        self._exit: AsyncExitStack | None = None

    # ---- life

    async def __aenter__(self) -> Self:
        if self._exit is not None:
            raise ConfigurationError("this receiver is running already")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._dedupe)
            if self._queue is not None:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._queue.work_off)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._exit is not None
        stack, self._exit = self._exit, None
        await stack.aclose()

    # ---- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the server's own lifetime."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _path_of(scope) != self._path:
            await _answer(send, HTTPStatus.NOT_FOUND)
        elif scope["method"] != "POST":
            await _answer(send, HTTPStatus.METHOD_NOT_ALLOWED, (b"allow", b"POST"))
        elif (body := await self._read(scope, receive, send)) is not None:
            await self._take(body, scope, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """Return the body; or `None`, and answer if it is too long and there is still somebody to answer."""
        length = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
        size = int(length) if length.isdigit() and len(length) < 20 else 0
        parts: list[bytes] = []
        received, more = 0, True
        while more and size <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            received += len(parts[-1])
            size = max(size, received)
        if size > self._max_bytes:
            await _answer(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        return b"".join(parts)

    async def _take(self, body: bytes, scope: Scope, send: Send) -> None:
        try:
            event = parse(
                body,
                scope["headers"],
                self._secrets,
                tolerance=self._tolerance,
                now=self._clock.time(),
                max_bytes=self._max_bytes,
            )
        except SignatureError as error:
            logger.warning("a webhook was refused: %s", error)
            await _answer(send, HTTPStatus.UNAUTHORIZED)
        except DecodeError as error:
            logger.error("a signed webhook cannot be read: %s", error)
            await _answer(send, HTTPStatus.BAD_REQUEST)
        else:
            # Events without a job (webhook.test) are told apart by what they are.
            key = (event.job_id or hashlib.sha256(body).hexdigest(), event.event)
            await self._answer_in_time(key, event, body, send)

    async def _answer_in_time(self, key: Key, event: WebhookEvent, body: bytes, send: Send) -> None:
        # The answer does not wait for a handler that is too slow; this task does, so that somebody owns it.
        async with anyio.create_task_group() as tasks:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = _Run()
                tasks.start_soon(self._run, run, key, event, body)
            await _wait(run.finished, self._timeout, self._clock)
            await _answer(send, run.status)

    async def _run(self, run: "_Run", key: Key, event: WebhookEvent, body: bytes) -> None:
        try:
            if self._queue is None:
                await once(self._dedupe, key, partial(call_handler, self._handler, event), self._clock)
            elif self._exit is None:
                raise ConfigurationError("the receiver is not running, so nothing works its queue off; enter it")
            else:
                await self._queue.put(key, body)
            run.status = HTTPStatus.NO_CONTENT
        except Exception:  # noqa: BLE001  # whatever it was, the service is told to send it again
            run.status = HTTPStatus.INTERNAL_SERVER_ERROR
            logger.exception("%s was not handled; the service sends it again", _name(key))
        finally:
            del self._runs[key]
            run.finished.set()


@attrs.define(eq=False)
class _Run:
    """A handler at work, and what to answer to all deliveries of its event: 503 until it is finished."""

    finished: anyio.Event = attrs.field(factory=anyio.Event)
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE


class _Queue:
    """Works off the events that were answered for, and are still to be handled."""

    def __init__(self, store: SQLiteDedupe, handler: Handler, clock: Clock) -> None:
        self._store = store
        self._handler = handler
        self._clock = clock
        self._woken = anyio.Event()

    async def put(self, key: Key, payload: bytes) -> None:
        """Take an event over: it is on disk when this returns."""
        await self._store.put(key, payload)
        self._woken.set()

    async def work_off(self) -> None:
        """Handle what is due, for ever."""
        free = anyio.Semaphore(_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            while True:
                await free.acquire()
                tasks.start_soon(self._handle, await self._next(), free)

    async def _next(self) -> Queued:
        while True:
            self._woken = anyio.Event()
            pause = LEASE / 2  # another process that shares the file may have died
            try:
                queued, due = await self._store.take()
            except ConfigurationError as error:
                logger.error("the queue of webhooks cannot be read: %s", error)
            else:
                if queued is not None:
                    return queued
                if due is not None:
                    pause = min(pause, max(0.0, due - self._clock.time()))
            await _wait(self._woken, pause, self._clock)

    async def _handle(self, queued: Queued, free: anyio.Semaphore) -> None:
        key = queued.key
        try:
            await with_claim(self._store, key, partial(self._decode_and_handle, queued), self._clock)
            await self._store.finish(key)
        except Exception:  # noqa: BLE001  # whatever it was, it is handled again, or given up
            await self._give_back(queued)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._store.release(key)
            raise
        finally:
            free.release()

    async def _decode_and_handle(self, queued: Queued) -> None:
        await call_handler(self._handler, decode(queued.payload))

    async def _give_back(self, queued: Queued) -> None:
        with contextlib.suppress(ConfigurationError):  # the claim runs out by itself then
            if queued.attempts > len(RETRY_DELAYS):
                logger.exception("%s was not handled, %d times: it is given up", _name(queued.key), queued.attempts)
                await self._store.drop(queued.key)
            else:
                delay = RETRY_DELAYS[queued.attempts - 1]
                logger.exception("%s was not handled; again in %g s", _name(queued.key), delay)
                await self._store.postpone(queued.key, delay)
                self._woken.set()


async def call_handler(handler: Handler, event: WebhookEvent) -> None:
    """Call a handler, and await it if it wants to be."""
    done = handler(event)
    if inspect.isawaitable(done):
        await done


async def _wait(event: anyio.Event, seconds: float, clock: Clock) -> None:
    """Wait until something has happened, but no longer than so many seconds."""
    async with anyio.create_task_group() as tasks:

        async def ring() -> None:
            await clock.sleep(seconds)
            tasks.cancel_scope.cancel()

        tasks.start_soon(ring)
        await event.wait()
        tasks.cancel_scope.cancel()


def _path_of(scope: Scope) -> str:
    """Return the path relative to where the app is mounted; ASGI's `path` includes that place, but not everywhere."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return str(path).strip("/")


async def _answer(send: Send, status: HTTPStatus, *headers: tuple[bytes, bytes]) -> None:
    if status is not HTTPStatus.NO_CONTENT:
        headers = (*headers, (b"content-length", b"0"))
    with contextlib.suppress(OSError):  # who hung up needs no answer, and its handler must not be cancelled for that
        await send({"type": "http.response.start", "status": int(status), "headers": list(headers)})
        await send({"type": "http.response.body", "body": b""})


def _name(key: Key) -> str:
    job, event = key
    return f"the webhook {event} of {job}"
