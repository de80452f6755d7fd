"""The ASGI app: routes from the table of operations, authentication, idempotency keys, error responses and faults."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convertrilo._json import canonical, dumps, loads
from convertrilo._model import Model
from convertrilo.codec import to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.models import BulkCreateRequest
from convertrilo.operations import OPERATIONS, Operation, Repeat
from convertrilo.sandbox.api import (
    accounts,
    authentication,
    bulk,
    folders,
    jobs,
    ondemand,
    replay,
    storage,
    tokens,
    uploads,
    webhooks,
)
from convertrilo.sandbox.api.backend import Backend
from convertrilo.sandbox.api.call import ApiCall, Handler, Work, read_body
from convertrilo.sandbox.api.limits import RateLimit
from convertrilo.sandbox.state.faults import Fault, of_the_future
from convertrilo.sandbox.state.problem import Problem, invalid_body, invalid_request
from convertrilo.sandbox.state.records import GET_OBJECT, PUT_OBJECT, RequestRecord
from convertrilo.sandbox.state.store import Tx
from convertrilo.sandbox.state.streams import read_stream

ABORT = "convertrilo.abort"
"""The ASGI extension that breaks the connection: a function, set by the server, that takes the kind of fault."""

HANDLERS: Mapping[str, Handler] = {
    **accounts.HANDLERS,
    **tokens.HANDLERS,
    **jobs.HANDLERS,
    **bulk.HANDLERS,
    **webhooks.HANDLERS,
    **uploads.HANDLERS,
    **ondemand.HANDLERS,
    **folders.HANDLERS,
}

_MAX_BODY = 64 * 1024**2
_Record = Callable[[RequestRecord], None]


def make_app(backend: Backend, record: _Record, other_routes: Sequence[Route]) -> ASGIApp:
    """Return the ASGI app.

    Args:
        backend: the sandbox behind the API.
        record: called with every request.
        other_routes: routes that are not operations of the contract.
    """

    async def answer_storage(scope: Scope, receive: Receive, send: Send) -> None:
        response = await storage.answer(backend, Request(scope, receive))
        await response(scope, receive, send)

    limit = RateLimit(backend.rules, backend.clock)
    operations = sorted(OPERATIONS.values(), key=_literal_first)
    routes = [
        *(
            Route(
                operation.path,
                _Observed(backend, operation.id, _OperationEndpoint(backend, operation, limit), record),
                methods=[operation.method],
            )
            for operation in operations
        ),
        Route("/storage/{key:path}", _Observed(backend, PUT_OBJECT, answer_storage, record), methods=["PUT"]),
        Route("/storage/{key:path}", _Observed(backend, GET_OBJECT, answer_storage, record), methods=["GET"]),
        *other_routes,
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_route})


def _literal_first(operation: Operation[Any]) -> list[bool]:
    """Return a sort key that puts `/jobs/bulk/status` before `/jobs/{id}/status`."""
    return [part.startswith("{") for part in operation.path.split("/")]


def _no_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = "not_found" if status == 404 else "invalid_request"
    answer = JSONResponse({"code": code, "message": f"There is no {request.method} {request.url.path}."}, status)
    if status == 405:  # Starlette's own header lists one route of the path only
        path = next(route.path for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL)
        methods = {method for route in request.app.routes if route.path == path for method in route.methods}
        answer.headers["allow"] = ", ".join(sorted(methods))
    return answer


# ---- every request: faults and records


class _Observed:
    """Records each request, and applies the fault planned for it."""

    def __init__(self, backend: Backend, name: str, inner: ASGIApp, record: _Record) -> None:
        self._backend = backend
        self._name = name
        self._inner = inner
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._backend.faults.take(self._name)
        held: list[Message] = []
        cut = _cutting(send)

        async def watch(message: Message) -> None:
            # Record the request before sending, so that a client that has the response finds the record.
            if message["type"] == "http.response.start":
                self._record(self._recorded(scope, message["status"], fault))
            if fault is None or fault.kind == "status":
                await send(message)
            elif fault.kind == "cut_response":
                await cut(message)
            elif fault.kind == "future":
                held.append(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    await _send_later_version(held, send)

        if fault is None or fault.kind in ("lose_response", "cut_response", "future"):
            await self._inner(scope, receive, watch)
        elif fault.kind == "status":
            await _answer_fault(fault, watch)
        else:
            self._record(self._recorded(scope, None, fault))
        if fault is not None and fault.kind not in ("status", "future"):
            if fault.kind != "stall":
                scope["extensions"][ABORT](fault.kind)
            await _until_gone(receive)

    def _recorded(self, scope: Scope, status: int | None, fault: Fault | None) -> RequestRecord:
        key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), None)
        return RequestRecord(
            method=scope["method"],
            path=scope["path"],
            operation=self._name,
            idempotency_key=None if key is None else key.decode("latin-1"),
            status=status,
            replayed=bool(scope.get("convertrilo.replayed")),
            fault=None if fault is None else fault.kind,
            at=self._backend.clock.time(),
        )


async def _answer_fault(fault: Fault, send: Send) -> None:
    headers = {"content-length": str(len(fault.body)), **fault.headers}
    await _send(send, fault.status, headers, fault.body)


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _send_later_version(answer: Sequence[Message], send: Send) -> None:
    start, *pieces = answer
    body = of_the_future(b"".join(piece.get("body", b"") for piece in pieces))
    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
    await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def _cutting(send: Send) -> Send:
    """Return a `send` that passes on the head of a response and the first half of its body."""
    left = 0

    async def cut(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.start":
            left = next((int(value) // 2 for name, value in message["headers"] if name == b"content-length"), 0)
        else:
            body = message.get("body", b"")[:left]
            left -= len(body)
            message = {**message, "body": body, "more_body": True}
        await send(message)

    return cut


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# ---- every operation


class _OperationEndpoint:
    """Answers one operation: authenticate the caller, claim the idempotency key, validate, run the handler."""

    def __init__(self, backend: Backend, operation: Operation[Any], limit: RateLimit) -> None:
        self._backend = backend
        self._limit = limit
        self._operation = operation
        self._handler = HANDLERS[operation.id]
        self._is_async = inspect.iscoroutinefunction(self._handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers = {"x-request-id": self._backend.request_id()}
        try:
            status, body = await self._answer(request, headers)
        except Problem as problem:
            status, body = problem.status, canonical(problem.wire)  # a problem may repeat a number that orjson rejects
        except ClientDisconnect:
            return  # the client hung up during its request
        if body:
            headers["content-type"] = "application/json"
        if status != 204:
            headers["content-length"] = str(len(body))
        await _send(send, status, headers, body)

    async def _answer(self, request: Request, headers: dict[str, str]) -> tuple[int, bytes]:
        operation, backend = self._operation, self._backend
        raw = b"" if operation.body is bytes else await read_stream(request.stream(), _MAX_BODY)
        key = request.headers.get("idempotency-key") if operation.repeat is Repeat.KEYED else None

        def open_call(tx: Tx) -> tuple[authentication.Caller | None, replay.Claim | None]:
            caller = authentication.authenticate(tx, operation, request.headers)
            name = caller.account if caller is not None else f"from {request.client.host if request.client else ''}"
            self._limit.count(name, headers)
            if key is None or caller is None:
                return caller, None
            return caller, replay.claim(tx, backend.rules, caller, operation.id, key, raw)

        caller, claim = await backend.store.transaction(open_call)
        if claim is not None and claim.answer is not None:
            request.scope["convertrilo.replayed"] = True
            return claim.answer
        call = ApiCall(
            backend=backend,
            operation=operation,
            origin=f"{request.url.scheme}://{request.url.netloc}",
            path=request.path_params,
            query=dict(request.query_params),
            idempotency_key=key,
            chunks=request.stream,
            account_id=None if caller is None else caller.account,
            headers=headers,
        )
        try:
            return await self._perform(call, raw, claim)
        except BaseException as error:
            if claim is not None:
                with anyio.CancelScope(shield=True):
                    await self._close_claim(claim, error)
            raise

    async def _perform(self, call: ApiCall, raw: bytes, claim: replay.Claim | None) -> tuple[int, bytes]:
        self._validate(call, raw)
        work = await cast("Any", self._handler)(call) if self._is_async else cast("Work", self._handler)

        def perform(tx: Tx) -> tuple[int, bytes]:
            model = work(call, tx)
            body = b"" if model is None or self._operation.returns is None else dumps(to_wire(model))
            if claim is not None:
                claim.keep(tx, self._operation.status, body)
            return self._operation.status, body

        answer = await self._backend.store.transaction(perform)
        if call.after_commit is not None:
            await call.after_commit()
        return answer

    async def _close_claim(self, claim: replay.Claim, error: BaseException) -> None:
        def close(tx: Tx) -> None:
            if isinstance(error, Problem) and replay.is_remembered(self._backend.rules, error.status):
                claim.keep(tx, error.status, canonical(error.wire))
            else:
                claim.drop(tx)

        await self._backend.store.transaction(close)

    def _validate(self, call: ApiCall, raw: bytes) -> None:
        """Convert the body to the operation's model, and check that the query is complete."""
        operation = self._operation
        for name in operation.query:
            if name not in call.query:
                raise invalid_request(f"The query parameter {name} is missing.")
        if operation.body is None or operation.body is bytes:
            return
        if not raw:
            if operation.body_required:
                raise invalid_body([Issue("", "is required")])
            return
        try:
            call.wire = loads(raw)
            # json.loads accepts lone surrogates, which neither the database nor a response can hold.
            dumps(call.wire)
        except (ValueError, TypeError, RecursionError):
            raise invalid_body([Issue("", "is not JSON")]) from None
        model = cast("type[Model]", operation.body)
        try:
            # The handler of a bulk request validates its jobs one by one.
            call.body = read_body(model, bulk.without_items(call.wire) if model is BulkCreateRequest else call.wire)
        except ValidationError as error:
            raise invalid_body(error.issues) from None
