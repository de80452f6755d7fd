"""One authenticated request, and the conversion of its body to a model."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar, Unpack

import attrs

from convertrilo._model import Model, field_specs
from convertrilo.codec import from_request, to_wire, wire_name
from convertrilo.errors import Issue
from convertrilo.operations import Operation
from convertrilo.sandbox.api.backend import Backend
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.problem import invalid_body, not_found
from convertrilo.sandbox.state.records import Job, JobKind
from convertrilo.sandbox.state.store import Tx

M = TypeVar("M", bound=Model)


@attrs.define(eq=False, kw_only=True)
class ApiCall:
    """A request whose caller is authenticated and authorized."""

    backend: Backend
    operation: Operation[Any]
    origin: str
    """The scheme and host that the caller used; URLs in the response begin with them."""
    path: Mapping[str, str]
    query: Mapping[str, str]
    idempotency_key: str | None
    body: Model | None = None
    wire: Any = None
    """The body as parsed JSON."""
    chunks: Callable[[], AsyncGenerator[bytes]]
    """Streams the body of an upload."""
    account_id: str | None = None
    headers: dict[str, str] = attrs.field(factory=dict[str, str])
    """Further headers of the response."""
    after_commit: Callable[[], Awaitable[object]] | None = None
    """Awaited after the transaction is committed."""

    @property
    def account(self) -> str:
        """The id of the caller's account; public operations have none."""
        assert self.account_id is not None
        return self.account_id

    def body_as(self, cls: type[M]) -> M:
        """Return the body as the operation's model; an omitted body is an empty model."""
        if self.body is None:
            return cls()
        assert isinstance(self.body, cls)
        return self.body

    def job(self, tx: Tx, job_id: str | None = None) -> Job:
        """Return the caller's job with an id, by default the id in the path.

        Raises:
            Problem: 404 `not_found`; also for a job of another account.
        """
        found = tx.job(self.path["id"] if job_id is None else job_id)
        if found is None or found.account != self.account_id:
            raise not_found()
        return found

    def new_job(
        self,
        tx: Tx,
        kind: JobKind,
        settings: Mapping[str, Any],
        source_filename: str | None,
        **fields: Unpack[lifecycle.JobFields],
    ) -> Job:
        """Return a new job of the caller, which `tx.add_job` stores."""
        return lifecycle.new_job(
            tx,
            kind,
            settings,
            source_filename,
            account=self.account_id,
            idempotency_key=self.idempotency_key,
            **fields,
        )


Work = Callable[[ApiCall, Tx], Model | None]
"""The part of an operation that runs in one transaction; returns the response body."""

Handler = Work | Callable[[ApiCall], Awaitable[Work]]
"""An operation's work; or an async function that first waits for something, such as an upload, and returns the work."""


def refuse(issues: list[Issue]) -> None:
    """Raise 400 `invalid_body` if there are issues."""
    if issues:
        raise invalid_body(issues)


def read_body(model: type[M], wire: Any) -> M:
    """Convert a body, or one of the jobs in it, to its model.

    Raises:
        ValidationError: the body violates the contract.
        Problem: a field of the body is null.
    """
    body = from_request(model, wire)
    refuse(list(_nulls(model, wire, "")))
    to_wire(body)  # raises for metadata that is nested too deep for responses and events
    return body


def _nulls(model: type[Model], wire: dict[str, Any], path: str) -> Iterator[Issue]:
    """Find the fields of a body that are null. The contract does not say that null means "not set"."""
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
