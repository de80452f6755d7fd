"""Frozen batches: the jobs of a batch, their order, the bytes that are sent, and the idempotency key.

This module is pure. A frozen batch never changes: every attempt, in this process or a later one, sends the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

import attrs

from convertrilo._json import canonical, encode, loads
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import CREDENTIALS, Identity, batch_identity, name_of_round, strip_credentials
from convertrilo.models import BulkCreateSettings, JobCreateRequest

JobRequest = JobCreateRequest | Mapping[str, Any]

# A long identity keeps its beginning, and only the rest is hashed. So ids that arrive in order, for example from a
# listing, stay in order. If the whole id were hashed, each id would touch another page of the journal.
_LONG_IDENTITY = 64
_KEPT = 48
_DIGEST_SIZE = 8


@attrs.frozen(kw_only=True)
class BatchSettings:
    """What all batches of a run have in common."""

    wire: dict[str, Any]
    dry_run: bool
    suffix: bytes
    """The bytes that follow the jobs in a body."""
    operation: str | None
    """The caller's name for the logical operation, which separates its jobs from others with the same ids."""

    def name(self, round_number: int) -> str | None:
        """Return the name of a round's batches: jobs that are sent again need a new key."""
        return name_of_round(self.operation or "submit_jobs", round_number) if round_number else self.operation


def checked_settings(settings: BulkCreateSettings | Mapping[str, Any] | None, operation: str | None) -> BatchSettings:
    """Return the settings of a run.

    Raises:
        ValidationError: The contract does not allow the settings, or they ask for `fail_fast`.
    """
    if settings is None:
        return BatchSettings(wire={}, dry_run=False, suffix=b"]}", operation=operation)
    if isinstance(settings, Mapping):
        settings = from_request(BulkCreateSettings, settings)
    if settings.fail_fast:
        raise ValidationError("settings", [Issue("fail_fast", "must not be set: every job has an outcome of its own")])
    wire = to_wire(settings)
    return BatchSettings(
        wire=wire,
        dry_run=bool(settings.dry_run),
        suffix=b'],"settings":%b}' % encode(wire),
        operation=operation,
    )


class Item:
    """One job as it is sent, and the requests of the caller that it stands for."""

    __slots__ = (
        "body",
        "body_without_credentials",
        "digest",
        "external_id",
        "identity",
        "replaces",
        "requests",
        "round",
        "wire",
    )

    def __init__(self, wire: dict[str, Any], body: bytes, requests: list[JobRequest]) -> None:
        stripped = strip_credentials(wire)
        self.wire: dict[str, Any] = wire
        self.body: bytes = body
        self.body_without_credentials: bytes = body if stripped is wire else encode(stripped)
        """The same object as `body` if the job has no credentials."""
        self.external_id: str | None = wire.get("externalId")
        self.requests: list[JobRequest] = requests
        """The caller's own objects: several if the input contains the job several times."""
        self.round: int = 0
        """The number of earlier batches in which the job was sent."""
        self.replaces: int | None = None
        """The journal's number of the earlier batch from which the job may be moved to a new one."""
        self.identity: bytes = b""
        self.digest: bytes = b""

    def identify(self, settings: BatchSettings) -> None:
        """Compute the identity and digest under which the journal knows the job."""
        assert self.external_id is not None
        named = self.external_id if settings.operation is None else f"{settings.operation}\0{self.external_id}"
        identity = named.encode()
        if len(identity) > _LONG_IDENTITY:
            identity = identity[:_KEPT] + blake2b(identity, digest_size=_LONG_IDENTITY - _KEPT).digest()
        self.identity = identity
        self.digest = blake2b(self.body_without_credentials + settings.suffix, digest_size=_DIGEST_SIZE).digest()


def make_item(request: object) -> Item:
    """Return a job as it is sent.

    Raises:
        ValidationError: The contract does not allow the job.
    """
    if isinstance(request, JobCreateRequest):
        model = request
    elif isinstance(request, Mapping):
        model = from_request(JobCreateRequest, cast("Mapping[str, Any]", request))
    else:
        allowed = "JobCreateRequest or a mapping in the wire's shape"
        raise ValidationError("job", [Issue("", f"must be {allowed}, not {type(request).__name__}")])
    wire = to_wire(model)
    return Item(wire, encode(wire), [cast("JobRequest", request)])


@attrs.define(eq=False)
class Batch:
    """A frozen batch."""

    items: Sequence[Item]
    identity: Identity
    body: bytes = attrs.field(repr=False)
    body_without_credentials: bytes = attrs.field(repr=False)
    """The same object as `body` if no job has credentials."""
    round: int
    """The highest round of its jobs."""
    number: int | None = None
    """The journal's number for the batch, if the journal holds it."""
    first_sent_at: float | None = None
    """When the batch was first sent, in seconds since the epoch, if the journal knows."""
    was_sent_before: bool = False
    """Whether an earlier process may have sent the batch."""
    is_in_doubt: bool = False
    """Whether the service may have processed the batch although no answer says so."""

    @property
    def needs_credentials(self) -> list[int]:
        """The positions of the jobs that have credentials, which `body_without_credentials` lacks."""
        return [position for position, item in enumerate(self.items) if item.body_without_credentials is not item.body]


def freeze(items: Sequence[Item], settings: BatchSettings) -> Batch:
    """Make a batch of jobs."""
    body = without_credentials = _body([item.body for item in items], settings.suffix)
    if any(item.body_without_credentials is not item.body for item in items):
        without_credentials = _body([item.body_without_credentials for item in items], settings.suffix)
    round_number = max(item.round for item in items)
    is_named = all(item.external_id for item in items)
    identity = batch_identity(without_credentials, name=settings.name(round_number), is_named=is_named)
    return Batch(items, identity, body, without_credentials, round_number)


def refreeze(items: Sequence[Item], body_without_credentials: bytes, identity: Identity, round_number: int) -> Batch:
    """Rebuild a batch from the journal's body; `items` already contain the credentials."""
    body = body_without_credentials
    if any(item.body_without_credentials is not item.body for item in items):
        suffix = body[len(_body([item.body_without_credentials for item in items], b"")) :]
        body = _body([item.body for item in items], suffix)
    return Batch(items, identity, body, body_without_credentials, round_number, was_sent_before=True)


def _body(jobs: Sequence[bytes], suffix: bytes) -> bytes:
    return b'{"jobs":[' + b",".join(jobs) + suffix


def items_of_body(body: bytes, settings: BatchSettings) -> list[Item]:
    """Return the jobs of a batch in the journal: without credentials, and without requests of the caller."""
    wire: dict[str, Any] = loads(body)
    suffix = canonical({**wire, "jobs": []}).removeprefix(b'{"jobs":[')
    items = [Item(job, canonical(job), []) for job in wire["jobs"]]
    for item in items:
        item.identify(attrs.evolve(settings, suffix=suffix))
    return items


def fill_in_credentials(items: Sequence[Item], missing: set[int]) -> None:
    """Give jobs that are no longer in the input the credentials of other jobs with the same bucket.

    Args:
        items: The jobs of a batch.
        missing: The positions of the jobs that still need credentials; the positions that are filled in are removed.
    """
    sources: list[dict[str, Any]] = [item.wire.get("sourceS3") or {} for item in items]
    by_bucket = {_bucket(source): source for source in sources if not CREDENTIALS.isdisjoint(source)}
    for position in tuple(missing):
        item, source = items[position], sources[position]
        other = by_bucket.get(_bucket(source))
        if other is not None:
            credentials = {name: other[name] for name in CREDENTIALS & other.keys()}
            item.wire = {**item.wire, "sourceS3": {**credentials, **source}}
            item.body = canonical(item.wire)
            missing.discard(position)


def _bucket(source: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(source.get(name) for name in ("bucket", "endpoint", "region", "forcePathStyle"))


class SizeLimits:
    """The smallest requests that a service has rejected as too large; all runs of a client share them."""

    def __init__(self) -> None:
        self.jobs: float = math.inf
        self.bytes: float = math.inf

    def too_large(self, items: Sequence[Item]) -> bool:
        """Whether a request of this size was rejected earlier.

        A smaller request is always tried, even if the service will probably reject it. So every run sends the same
        halves, no matter when it learns the limits.
        """
        if len(items) < 2:
            return False
        return len(items) >= self.jobs or sum(len(item.body) + 1 for item in items) >= self.bytes
