"""The webhook receiver: an ASGI app that verifies deliveries and passes each event to a handler once.

    app = WebhookReceiver(os.environ["CONVERTRILO_WEBHOOK_SECRET"], handler, path="/webhooks/convertrilo")

Run it under uvicorn or hypercorn, or mount it in another app. It needs no framework.
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
"""Handles an event. A coroutine function is awaited; a plain function runs in the event loop and must not block."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

RETRY_DELAYS = (60.0, 300.0, 1_800.0)
"""Seconds between the attempts to handle a queued event, the same as those between the service's deliveries."""

_MAX_HANDLERS = 8
_SERVICE_TIMEOUT = 15.0


class WebhookReceiver:
    """An ASGI app that receives webhooks, verifies them, and passes each event to a handler once.

    Responses have no body. The receiver answers:

    - 204 when the event was handled, now or earlier;
    - 400 for a signed body that cannot be decoded, 401 for a bad signature or an old event;
    - 404, 405 and 413 for a request that is not a delivery;
    - 500 when the handler raises, 503 when it is not done after `timeout`: the service sends the event again.

    A slow handler is not cancelled. Later deliveries of its event wait for the outcome. Once the handler has succeeded,
    the receiver answers them with 204 and does not run the handler again.

    Duplicate deliveries (the same job id and event name) run one at a time. After one succeeds, the rest are
    acknowledged without running the handler, as long as `dedupe` remembers the event. If the process dies while a
    handler runs, the handler runs again later, so write handlers that may run twice.

    With `queue`, the receiver answers 204 as soon as the event is on disk, and then runs up to eight handlers at a
    time. A handler that raises runs again after 1, 5 and 30 minutes; after that, the event is dropped. Events that are
    not handled when the receiver stops or crashes are handled after the next start.

    The receiver runs as long as its server (ASGI's lifespan). If you mount it in an app with its own lifespan, enter it
    there: `async with receiver`. Without `queue`, and with dedupe in memory, you need not enter it.

    Args:
        secrets: The webhook's secret; or several secrets, during a rotation or for several webhooks.
        handler: Called with each event, and awaited if it is a coroutine function.
        path: The path to listen on, relative to the mount point.
        dedupe: Remembers the events that were handled; by default in the memory of this process. For several processes,
            or to remember events across restarts, pass `SQLiteDedupe("webhooks.db")`.
        queue: Whether to answer once the event is on disk instead of once it is handled. Requires a `SQLiteDedupe`.
        timeout: Seconds after which the receiver answers a delivery even if the handler is still running. The service
            waits 15 seconds.
        tolerance: The maximum age of an event in seconds; see `webhooks.parse`.
        max_bytes: The maximum size of a body in bytes.
        clock: Tells the time and sleeps; tests pass a virtual one.

    Raises:
        ConfigurationError: There is no usable secret, or another setting is invalid.
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
        self._runs: dict[Key, _HandlerRun] = {}
        self._exit: AsyncExitStack | None = None

    # ---- lifetime

    async def __aenter__(self) -> Self:
        if self._exit is not None:
            raise ConfigurationError("this receiver is running already")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._dedupe)
            if self._queue is not None:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._queue.run)
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
        """Serve a request, or the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _path_of(scope) != self._path:
            await _respond(send, HTTPStatus.NOT_FOUND)
        elif scope["method"] != "POST":
            await _respond(send, HTTPStatus.METHOD_NOT_ALLOWED, (b"allow", b"POST"))
        elif (body := await self._read_body(scope, receive, send)) is not None:
            await self._accept(body, scope, send)

    async def _read_body(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """Return the body; or `None` if the client hung up, or if the body is too long, which is answered here."""
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
            await _respond(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        return b"".join(parts)

    async def _accept(self, body: bytes, scope: Scope, send: Send) -> None:
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
            await _respond(send, HTTPStatus.UNAUTHORIZED)
        except DecodeError as error:
            logger.error("a signed webhook cannot be decoded: %s", error)
            await _respond(send, HTTPStatus.BAD_REQUEST)
        else:
            # Events without a job id (webhook.test) are identified by their bytes.
            key = (event.job_id or hashlib.sha256(body).hexdigest(), event.event)
            await self._respond_in_time(key, event, body, send)

    async def _respond_in_time(self, key: Key, event: WebhookEvent, body: bytes, send: Send) -> None:
        # The response does not wait for a slow handler, but this task does: it owns the handler's task.
        async with anyio.create_task_group() as tasks:
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = _HandlerRun()
                tasks.start_soon(self._handle, run, key, event, body)
            await _wait_until_set(run.finished, self._timeout, self._clock)
            await _respond(send, run.status)

    async def _handle(self, run: "_HandlerRun", key: Key, event: WebhookEvent, body: bytes) -> None:
        try:
            if self._queue is None:
                await once(self._dedupe, key, partial(call_handler, self._handler, event), self._clock)
            elif self._exit is None:
                raise ConfigurationError("the receiver is not running; enter it with `async with` to use its queue")
            else:
                await self._queue.put(key, body)
            run.status = HTTPStatus.NO_CONTENT
        except Exception:  # noqa: BLE001  # after any error, the service is asked to send the event again
            run.status = HTTPStatus.INTERNAL_SERVER_ERROR
            logger.exception("%s was not handled; the service sends it again", _describe(key))
        finally:
            del self._runs[key]
            run.finished.set()


@attrs.define(eq=False)
class _HandlerRun:
    """A running handler, and the HTTP status for all deliveries of its event: 503 until the handler ends."""

    finished: anyio.Event = attrs.field(factory=anyio.Event)
    status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE


class _Queue:
    """Handles the events that were acknowledged and stored, in the order in which they are due."""

    def __init__(self, store: SQLiteDedupe, handler: Handler, clock: Clock) -> None:
        self._store = store
        self._handler = handler
        self._clock = clock
        self._changed = anyio.Event()

    async def put(self, key: Key, payload: bytes) -> None:
        """Store an event: it is on disk when the method returns."""
        await self._store.put(key, payload)
        self._changed.set()

    async def run(self) -> None:
        """Handle the events that are due, until cancelled."""
        slots = anyio.Semaphore(_MAX_HANDLERS)
        async with anyio.create_task_group() as tasks:
            while True:
                await slots.acquire()
                tasks.start_soon(self._handle, await self._next(), slots)

    async def _next(self) -> Queued:
        while True:
            self._changed = anyio.Event()
            pause = LEASE / 2  # a process that shares the file may have died and left events behind
            try:
                queued, due = await self._store.take()
            except ConfigurationError as error:
                logger.error("the webhook queue cannot be read: %s", error)
            else:
                if queued is not None:
                    return queued
                if due is not None:
                    pause = min(pause, max(0.0, due - self._clock.time()))
            await _wait_until_set(self._changed, pause, self._clock)

    async def _handle(self, queued: Queued, slots: anyio.Semaphore) -> None:
        key = queued.key
        try:
            await with_claim(self._store, key, partial(self._decode_and_handle, queued), self._clock)
            await self._store.finish(key)
        except Exception:  # noqa: BLE001  # after any error, the event is retried or dropped
            await self._retry_or_drop(queued)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._store.release(key)
            raise
        finally:
            slots.release()

    async def _decode_and_handle(self, queued: Queued) -> None:
        await call_handler(self._handler, decode(queued.payload))

    async def _retry_or_drop(self, queued: Queued) -> None:
        with contextlib.suppress(ConfigurationError):  # the claim then expires by itself
            if queued.attempts > len(RETRY_DELAYS):
                logger.exception("%s failed %d times and is dropped", _describe(queued.key), queued.attempts)
                await self._store.drop(queued.key)
            else:
                delay = RETRY_DELAYS[queued.attempts - 1]
                logger.exception("%s was not handled; it is tried again in %g s", _describe(queued.key), delay)
                await self._store.postpone(queued.key, delay)
                self._changed.set()


async def call_handler(handler: Handler, event: WebhookEvent) -> None:
    """Call a handler, and await its result if it is awaitable."""
    result = handler(event)
    if inspect.isawaitable(result):
        await result


async def _wait_until_set(event: anyio.Event, seconds: float, clock: Clock) -> None:
    """Wait until an event is set, for at most `seconds`."""
    async with anyio.create_task_group() as tasks:

        async def time_out() -> None:
            await clock.sleep(seconds)
            tasks.cancel_scope.cancel()

        tasks.start_soon(time_out)
        await event.wait()
        tasks.cancel_scope.cancel()


def _path_of(scope: Scope) -> str:
    """Return the path relative to the mount point; some frameworks leave the mount point in ASGI's `path`."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return str(path).strip("/")


async def _respond(send: Send, status: HTTPStatus, *headers: tuple[bytes, bytes]) -> None:
    if status is not HTTPStatus.NO_CONTENT:
        headers = (*headers, (b"content-length", b"0"))
    with contextlib.suppress(OSError):  # a client that hung up must not cancel the handler
        await send({"type": "http.response.start", "status": int(status), "headers": list(headers)})
        await send({"type": "http.response.body", "body": b""})


def _describe(key: Key) -> str:
    job, event = key
    return f"the webhook {event} of {job}"
