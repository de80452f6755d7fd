"""Jobs in frozen batches: which members, in which order, as exactly which bytes, under which key.

What is frozen does not change any more: every attempt, in this process or a later one, sends the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs

from convertrilo._json import encode
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import Identity, bare_of, batch_identity
from convertrilo.models import BulkCreateSettings, JobCreateRequest

Request = JobCreateRequest | Mapping[str, Any]


class Item:
    """One job as it goes out."""

    __slots__ = ("bare", "content", "external_id", "request", "wire")

    def __init__(self, request: Request) -> None:
        self.request = request
        model = request if isinstance(request, JobCreateRequest) else _checked(request)
        wire = to_wire(model)
        content = encode(wire)
        bare = bare_of(wire)
        self.external_id = model.external_id
        self.wire = wire
        self.content = content
        self.bare = content if bare is wire else encode(bare)
        """The same without credentials."""


def _checked(request: object) -> JobCreateRequest:
    if isinstance(request, Mapping):
        return from_request(JobCreateRequest, request)
    allowed = "JobCreateRequest or a mapping in the wire's shape"
    raise ValidationError("job", [Issue("", f"must be {allowed}, not {type(request).__name__}")])


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a run, as they stand in every batch."""

    wire: dict[str, Any]
    dry_run: bool
    suffix: bytes
    """What follows the jobs in a body."""


def checked_settings(settings: BulkCreateSettings | Mapping[str, Any] | None) -> Settings:
    """Return the settings of a run.

    Raises:
        ValidationError: They are not what the contract allows, or ask for `fail_fast`.
    """
    if settings is None:
        return Settings(wire={}, dry_run=False, suffix=b"]}")
    if isinstance(settings, Mapping):
        settings = from_request(BulkCreateSettings, settings)
    if settings.fail_fast:
        raise ValidationError("settings", [Issue("fail_fast", "must not be set: every job has an outcome of its own")])
    wire = to_wire(settings)
    return Settings(wire=wire, dry_run=bool(settings.dry_run), suffix=b'],"settings":%b}' % encode(wire))


class Batch:
    """A frozen batch."""

    __slots__ = ("bare", "content", "identity", "items", "wire")

    def __init__(self, items: Sequence[Item], settings: Settings) -> None:
        self.items = items
        self.content = _body([item.content for item in items], settings)
        has_credentials = any(item.bare is not item.content for item in items)
        self.bare = _body([item.bare for item in items], settings) if has_credentials else self.content
        self.identity: Identity = batch_identity(self.bare, named=all(item.external_id for item in items))
        self.wire = cast("dict[str, Any]", {"jobs": [item.wire for item in items]})


def _body(jobs: Sequence[bytes], settings: Settings) -> bytes:
    return b'{"jobs":[' + b",".join(jobs) + settings.suffix
