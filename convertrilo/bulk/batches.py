"""Jobs in frozen batches: which members, in which order, as exactly which bytes, under which key.

Pure. What is frozen does not change any more: every attempt, in this process or a later one, sends the same.
"""

import math
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import attrs

from convertrilo._json import canonical, encode, loads
from convertrilo.codec import from_request, read_answer, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import CREDENTIALS, Identity, batch_identity, name_of_round, strip_credentials
from convertrilo.models import BulkCreateResponse, BulkCreateSettings, JobCreateRequest

Request = JobCreateRequest | Mapping[str, Any]

PASSING = frozenset({"rate_limit_exceeded", "idempotency_in_progress", "host_not_resolvable", "probe_failed"})
"""Codes of refusals that a moment later may be none: the job goes again in the same run."""

PASSING_LATER = PASSING | {"insufficient_tokens"}
"""Codes of refusals that may be none in a later run: then the job goes again."""

# Ids in order, as a listing has them, stay in order: hashed, each would change a page of the journal of its own.
_LONG_IDENTITY = 64
_KEPT = 48
_DIGEST_SIZE = 8


@attrs.frozen(kw_only=True)
class Settings:
    """What is the same for all batches of a run."""

    wire: dict[str, Any]
    dry_run: bool
    suffix: bytes
    """What follows the jobs in a body."""
    operation: str | None
    """The caller's name for the logical operation, which keeps its jobs apart from others with the same ids."""

    def name(self, round_number: int) -> str | None:
        """Return what batches of a round are called: those that go again must have other keys than before."""
        return name_of_round(self.operation or "submit_jobs", round_number) if round_number else self.operation


def checked_settings(settings: BulkCreateSettings | Mapping[str, Any] | None, operation: str | None) -> Settings:
    """Return the settings of a run.

    Raises:
        ValidationError: They are not what the contract allows, or ask for `fail_fast`.
    """
    if settings is None:
        return Settings(wire={}, dry_run=False, suffix=b"]}", operation=operation)
    if isinstance(settings, Mapping):
        settings = from_request(BulkCreateSettings, settings)
    if settings.fail_fast:
        raise ValidationError("settings", [Issue("fail_fast", "must not be set: every job has an outcome of its own")])
    wire = to_wire(settings)
    return Settings(
        wire=wire,
        dry_run=bool(settings.dry_run),
        suffix=b'],"settings":%b}' % encode(wire),
        operation=operation,
    )


class Item:
    """One job as it goes out, and for whom."""

    __slots__ = ("bare", "content", "digest", "external_id", "identity", "replaces", "requests", "round", "wire")

    def __init__(self, wire: dict[str, Any], content: bytes, requests: list[Request]) -> None:
        bare = strip_credentials(wire)
        self.wire = wire
        self.content = content
        self.bare = content if bare is wire else encode(bare)
        """The same without credentials."""
        self.external_id: str | None = wire.get("externalId")
        self.requests = requests
        """The caller's own objects: one, or more where the input has it more than once."""
        self.round = 0
        self.replaces: int | None = None
        """The journal's number of the batch in which it went before, and may go again."""
        self.identity = self.digest = b""

    def identify(self, settings: Settings) -> None:
        """Work out what the journal knows it by."""
        assert self.external_id is not None
        named = self.external_id if settings.operation is None else f"{settings.operation}\0{self.external_id}"
        identity = named.encode()
        if len(identity) > _LONG_IDENTITY:
            identity = identity[:_KEPT] + blake2b(identity, digest_size=_LONG_IDENTITY - _KEPT).digest()
        self.identity = identity
        self.digest = blake2b(self.bare + settings.suffix, digest_size=_DIGEST_SIZE).digest()


def make_item(request: object) -> Item:
    """Return a job as it goes out.

    Raises:
        ValidationError: It is not what the contract allows.
    """
    if isinstance(request, JobCreateRequest):
        model = request
    elif isinstance(request, Mapping):
        model = from_request(JobCreateRequest, cast("Mapping[str, Any]", request))
    else:
        allowed = "JobCreateRequest or a mapping in the wire's shape"
        raise ValidationError("job", [Issue("", f"must be {allowed}, not {type(request).__name__}")])
    wire = to_wire(model)
    return Item(wire, encode(wire), [cast("Request", request)])


@attrs.define(eq=False)
class Batch:
    """A frozen batch."""

    items: Sequence[Item]
    identity: Identity
    content: bytes = attrs.field(repr=False)
    """Its body."""
    bare: bytes = attrs.field(repr=False)
    """The same without credentials: the same object, if it has none."""
    round: int
    """How often its members went before, at most."""
    number: int | None = None
    """The journal's number for it, if it is there."""
    first_sent_at: float | None = None
    """Seconds since the epoch, if the journal knows."""
    was_sent_before: bool = False
    """Whether an earlier process may have sent it."""
    is_in_doubt: bool = False
    """Whether the service may have done it, though no answer says so."""

    @property
    def lacking(self) -> list[int]:
        """The positions of the members whose credentials are not in the body without."""
        return [position for position, item in enumerate(self.items) if item.bare is not item.content]


def freeze(items: Sequence[Item], settings: Settings) -> Batch:
    """Make a batch of jobs."""
    content = bare = _body([item.content for item in items], settings.suffix)
    if any(item.bare is not item.content for item in items):
        bare = _body([item.bare for item in items], settings.suffix)
    round_number = max(item.round for item in items)
    is_named = all(item.external_id for item in items)
    identity = batch_identity(bare, name=settings.name(round_number), is_named=is_named)
    return Batch(items, identity, content, bare, round_number)


def freeze_again(items: Sequence[Item], bare: bytes, identity: Identity, round_number: int) -> Batch:
    """Make the batch again that went out as this body; the members have their credentials, if they had any."""
    content = bare
    if any(item.bare is not item.content for item in items):
        suffix = bare[len(_body([item.bare for item in items], b"")) :]
        content = _body([item.content for item in items], suffix)
    return Batch(items, identity, content, bare, round_number, was_sent_before=True)


def _body(jobs: Sequence[bytes], suffix: bytes) -> bytes:
    return b'{"jobs":[' + b",".join(jobs) + suffix


def items_in(body: bytes, settings: Settings) -> list[Item]:
    """Return the members of a batch as the journal holds it: without credentials, and for nobody yet."""
    wire: dict[str, Any] = loads(body)
    suffix = canonical({**wire, "jobs": []}).removeprefix(b'{"jobs":[')
    items = [Item(job, canonical(job), []) for job in wire["jobs"]]
    for item in items:
        item.identify(attrs.evolve(settings, suffix=suffix))
    return items


def lend_credentials(items: Sequence[Item], missing: set[int]) -> None:
    """Give members that are not in the input any more the credentials of others for the same bucket.

    Args:
        items: The members of a batch.
        missing: The positions of those that have no credentials yet, and need some; who gets them is taken out.
    """
    sources: list[dict[str, Any]] = [item.wire.get("sourceS3") or {} for item in items]
    lenders = {_bucket(source): source for source in sources if not CREDENTIALS.isdisjoint(source)}
    for position in tuple(missing):
        item, source = items[position], sources[position]
        lent = lenders.get(_bucket(source))
        if lent is not None:
            credentials = {name: lent[name] for name in CREDENTIALS & lent.keys()}
            item.wire = {**item.wire, "sourceS3": {**credentials, **source}}
            item.content = canonical(item.wire)
            missing.discard(position)


def _bucket(source: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(source.get(name) for name in ("bucket", "endpoint", "region", "forcePathStyle"))


class Sizes:
    """What a service was found to refuse as too large, in jobs and in bytes of a request."""

    def __init__(self) -> None:
        self.jobs = self.bytes = math.inf

    def too_large(self, items: Sequence[Item]) -> bool:
        """Whether so much was refused before.

        What is smaller than all that was refused is tried: so it is the same halves that go out in every run, however
        early or late it is learned.
        """
        if len(items) < 2:
            return False
        return len(items) >= self.jobs or sum(len(item.content) + 1 for item in items) >= self.bytes


def halves(items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Split the members of a batch: always the same way."""
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:]


# ---- answers


class Outcome(NamedTuple):
    """What the service says of one job."""

    job_id: str | None
    status: str | None
    error: str | None
    estimate: float | None
    external_id: str | None = None
    """What the answer calls the job, where it does not say which one it is in any other way."""

    def may_pass(self, codes: frozenset[str]) -> bool:
        """Whether there is no job, for a reason that is among these codes."""
        return self.error is not None and self.job_id is None and code_and_message(self.error)[0] in codes


def outcome_of(external_id: str | None, outcome: Outcome | None) -> Outcome | None:
    """Return an outcome, unless it is of another job than the one with this id."""
    return None if outcome is not None and outcome.external_id not in (None, external_id) else outcome


def read_outcomes(answer: bytes) -> dict[int, Outcome]:
    """Return what an answer says of each member of a batch, by its position.

    Raises:
        DecodeError: The answer is not what the contract says.
    """
    outcomes: dict[int, Outcome] = {}
    try:
        for position, each in enumerate(loads(answer)["jobs"]):  # models would take three times as long
            get = each.get
            job_id, error, estimate, index = get("jobId"), get("error"), get("estimate"), get("index")
            if (job_id is not None and job_id.__class__ is not str) or (
                error is not None and error.__class__ is not str
            ):
                return _read_slowly(answer)
            place = position if index is None else index
            if job_id is not None or place not in outcomes:  # said twice, there is a job if either says so
                neu = None if estimate is None else estimate.get("neu")
                name = get("externalId") if index is None else None
                outcomes[place] = Outcome(job_id, get("status"), error, neu, name)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return _read_slowly(answer)
    return outcomes


def _read_slowly(answer: bytes) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    for position, each in enumerate(read_answer(BulkCreateResponse, answer).jobs or ()):
        estimate = None if each.estimate is None else each.estimate.neu
        index = position if each.index is None else each.index
        if each.job_id is not None or index not in outcomes:
            name = each.external_id if each.index is None else None
            outcomes[index] = Outcome(each.job_id, each.status, each.error, estimate, name)
    return outcomes


_CODED = re.compile(r"([a-z][a-z0-9_]*)(?:: *(.*))?", re.DOTALL)


def code_and_message(error: str) -> tuple[str, str]:
    """Take the error of one job apart: `probe_failed: no video stream`; the code is empty where it has none."""
    found = _CODED.fullmatch(error)
    return ("", error) if found is None else (found[1], found[2] or found[1])
