"""One authenticated request on its way to the operation's handler, and what handlers share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from convertrilo._model import Model, field_specs
from convertrilo.codec import from_request, to_wire, wire_name
from convertrilo.errors import Issue
from convertrilo.operations import Operation
from convertrilo.sandbox.state.problem import invalid_body, invalid_request, not_found
from convertrilo.sandbox.state.records import Job
from convertrilo.sandbox.state.store import Tx

if TYPE_CHECKING:
    from starlette.requests import Request

    from convertrilo.sandbox.api.service import Service

M = TypeVar("M", bound=Model)


@attrs.define(eq=False, kw_only=True)
class Call:
    """A request that may do what it asks for."""

    service: Service
    operation: Operation[Any]
    origin: str
    """Scheme and host that the caller used: URLs in the answer begin with it."""
    path: Mapping[str, str]
    query: Mapping[str, str]
    idempotency_key: str | None
    body: Model | None = None
    wire: Any = None
    """The body as parsed JSON."""
    chunks: Callable[[], AsyncGenerator[bytes]]
    """The body of an upload, as it comes."""
    account_id: str | None = None
    headers: dict[str, str] = attrs.field(factory=dict[str, str])
    """Further headers of the answer."""
    afterwards: Callable[[], Awaitable[object]] | None = None
    """What is done once the work is committed."""

    @property
    def account(self) -> str:
        """The id of the account that asks; public operations have none."""
        assert self.account_id is not None
        return self.account_id

    def body_as(self, cls: type[M]) -> M:
        """Return the body as the operation's model; one that was left out is empty."""
        if self.body is None:
            return cls()
        assert isinstance(self.body, cls)
        return self.body

    def job(self, tx: Tx, job_id: str | None = None) -> Job:
        """Return the caller's job that the path, or an id, names; of another account or none it is not found."""
        found = tx.job(self.path["id"] if job_id is None else job_id)
        if found is None or found.account != self.account_id:
            raise not_found()
        return found


Work = Callable[[Call, Tx], Model | None]
"""What an operation does inside one transaction, and answers."""

Handler = Work | Callable[[Call], Awaitable[Work]]
"""An operation's work, or, asynchronous, what must be waited for before: it returns the work."""


def refuse(issues: list[Issue]) -> None:
    """Answer 400 `invalid_body` if there is anything wrong."""
    if issues:
        raise invalid_body(issues)


async def read_all(request: Request, limit: int) -> bytes:
    """Read the whole body of a request.

    Raises:
        Problem: it has more than `limit` bytes.
    """
    chunks: list[bytes] = []
    size = 0
    async with aclosing(request.stream()) as stream:
        async for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise invalid_request(f"The body has more than {limit} bytes.")
            chunks.append(chunk)
    return b"".join(chunks)


def read_body(model: type[M], wire: Any) -> M:
    """Read a body, or one of the jobs in it, as its model.

    Raises:
        ValidationError: the contract does not allow it.
        Problem: the same, for a null.
    """
    body = from_request(model, wire)
    refuse(list(_nulls(model, wire, "")))
    to_wire(body)  # raises for metadata that no answer and no event could repeat, because it is nested too deep
    return body


def _nulls(model: type[Model], wire: dict[str, Any], path: str) -> Iterator[Issue]:
    """Find the fields of a body that are null: clients may mean "not set" by that, the contract does not."""
    for spec in field_specs(model):
        name = wire_name(spec.name)
        if name not in wire:
            continue
        value = wire[name]
        if value is None:
            yield Issue(f"{path}{name}", "must not be null")
        elif issubclass(spec.kind, Model):
            for each in value if spec.many else [value]:
                yield from _nulls(spec.kind, each, f"{path}{name}.")
