"""Fault injection: broken connections, lost responses, and the statuses of a proxy or an overloaded server."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from convertrilo._json import dumps, loads
from convertrilo.operations import OPERATIONS, Repeat
from convertrilo.sandbox.state.records import GET_OBJECT, PUT_OBJECT

FaultKind = Literal["refuse", "reset", "lose_response", "cut_response", "stall", "status", "future"]

_KEYED = frozenset(each.id for each in OPERATIONS.values() if each.repeat is Repeat.KEYED)
_NAMES = frozenset({*OPERATIONS, PUT_OBJECT, GET_OBJECT})


@attrs.frozen
class Fault:
    """The fault that one request suffers."""

    kind: FaultKind
    status: int = 0
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: bytes = b""


@attrs.define
class _Plan:
    fault: Fault
    operations: frozenset[str]
    times: int | None
    probability: float


class Faults:
    """Plans faults for later requests.

    Every method takes the operation's id (`createJob`; None for all operations of the contract; uploads and downloads
    are `putObject` and `getObject`), the number of `times` that the fault strikes (None for always), and the
    `probability` of striking each matching request. Faults are tried in the order in which they were planned.

    Args:
        seed: the seed of the random numbers behind `probability`; None gives other numbers in every run.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)  # noqa: S311 - chance, not secrets
        self._plans: list[_Plan] = []

    def refuse(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Refuse the connection. Over a port the connection is accepted, then closed before the request is read."""
        self._plan(Fault("refuse"), operation, times, probability)

    def reset(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Break the connection before the request is processed; the request has no effect."""
        self._plan(Fault("reset"), operation, times, probability)

    def lose_response(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Process the request, commit, and break the connection instead of responding."""
        self._plan(Fault("lose_response"), operation, times, probability)

    def cut_response(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Process the request, and break the connection halfway through the response body."""
        self._plan(Fault("cut_response"), operation, times, probability)

    def future(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Process the request, and respond as a later API version may: new fields in objects, unknown error codes."""
        self._plan(Fault("future"), operation, times, probability)

    def stall(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Accept the request, and never process it or respond until the client gives up."""
        self._plan(Fault("stall"), operation, times, probability)

    def status(
        self,
        operation: str | None,
        status: int,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = b"",
        times: int | None = 1,
        probability: float = 1.0,
    ) -> None:
        """Respond with a status, headers and body (bytes, text, or a value for JSON); the request has no effect."""
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if not isinstance(body, bytes | str):
            given.setdefault("content-type", "application/json")
            body = dumps(body)
        content = body.encode() if isinstance(body, str) else body
        self._plan(Fault("status", status, given, content), operation, times, probability)

    def rate_limit(
        self,
        operation: str | None = None,
        *,
        retry_after: str | None = None,
        times: int | None = 1,
        probability: float = 1.0,
    ) -> None:
        """Respond with 429 `rate_limit_exceeded`, and a `Retry-After` header (seconds or a date) if given."""
        body = {"code": "rate_limit_exceeded", "message": "There are too many requests."}
        headers = {} if retry_after is None else {"retry-after": retry_after}
        self.status(operation, 429, headers=headers, body=body, times=times, probability=probability)

    def in_progress(self, operation: str | None = None, *, times: int | None = 1, probability: float = 1.0) -> None:
        """Respond with 409 `idempotency_in_progress` to keyed operations, as if the first request were running."""
        body = dumps({"code": "idempotency_in_progress", "message": "The first request with this key is running."})
        fault = Fault("status", 409, {"content-type": "application/json"}, body)
        operations = _KEYED if operation is None else _named(operation)
        self._plans.append(_Plan(fault, operations, times, probability))

    def clear(self) -> None:
        """Remove all planned faults."""
        self._plans.clear()

    def _plan(self, fault: Fault, operation: str | None, times: int | None, probability: float) -> None:
        operations = frozenset(OPERATIONS) if operation is None else _named(operation)
        self._plans.append(_Plan(fault, operations, times, probability))

    def take(self, operation: str) -> Fault | None:
        """Return the fault that strikes a request, if any, and count it."""
        for plan in self._plans:
            if operation in plan.operations and plan.times != 0 and self._random.random() < plan.probability:
                if plan.times is not None:
                    plan.times -= 1
                return plan.fault
        return None


def of_the_future(body: bytes) -> bytes:
    """Return a response body as a later API version may send it; a body that is not JSON stays as it is."""
    try:
        return dumps(_with_more(loads(body)))
    except ValueError:
        return body


def _with_more(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_more(each) for each in cast("Sequence[Any]", value)]
    if not isinstance(value, dict):
        return value
    more = {name: _with_more(each) for name, each in cast("dict[str, Any]", value).items()}
    if {"code", "message"} <= more.keys():
        more["code"] = "code_of_the_future"
    return {**more, "fieldOfTheFuture": {"isNew": True}}


def _named(operation: str) -> frozenset[str]:
    if operation not in _NAMES:
        raise ValueError(f"there is no operation {operation!r}; the operations are {', '.join(sorted(_NAMES))}")
    return frozenset({operation})
