"""One authenticated request on its way to the operation's handler, and what handlers share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from convertrilo._model import Model
from convertrilo.operations import Operation
from convertrilo.sandbox.problem import invalid_body, not_found
from convertrilo.sandbox.records import Job
from convertrilo.sandbox.store import Tx

if TYPE_CHECKING:
    from convertrilo.errors import Issue
    from convertrilo.sandbox.service import Service

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
