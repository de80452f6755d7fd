"""What the sandbox keeps, as typed records: jobs, accounts, balances, and the requests it has seen."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from convertrilo._json import dumps, loads

PUT_OBJECT = "putObject"
GET_OBJECT = "getObject"
"""Uploads to and downloads from presigned URLs go by these names among the operations."""

JobKind = Literal["upload", "url", "ondemand"]

CREDENTIALS = frozenset({"accessKeyId", "secretAccessKey", "accessToken", "refreshToken"})
"""The fields of a place that open it."""

INSTANT = "instant"
"""The encoder that answers with a tiny file, whatever was asked for."""

CREATED = "created"
QUEUED = "queued"
RUNNING = "running"
SUCCESS = "success"
FAILED = "failed"
CANCELED = "canceled"


@attrs.frozen(kw_only=True)
class Job:
    """One job of the ledger. Times are seconds since 1970, prices tokens (neu)."""

    id: str
    account: str | None
    """The account's id; None for a public job."""
    kind: JobKind
    external_id: str | None = None
    idempotency_key: str | None
    """The key of the request that made it."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    settings: Mapping[str, Any] = attrs.field(repr=False)
    """What shall come out, in the wire's words: `codec`, `resolution`, `bitrateTier`, ..."""
    status: str
    high_priority: bool = False
    created_at: float
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    source_url: str | None = attrs.field(default=None, repr=False)
    source: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """The place of its source, as on the wire, if that is in S3 (`bucket`, `key`) or Google Drive (`fileId`)."""
    destination: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """The place of its output, as on the wire, if that is in S3 or Google Drive (`folderId`, `fileName`)."""
    source_filename: str | None = None
    output_filename: str | None = None
    uploaded: bool = False
    """Whether the source lies in the sandbox's own files."""
    duration: float | None = None
    """Seconds of the source, once probed."""
    price: int | None = None
    """What was quoted when its tokens were reserved."""
    reserved: int = 0
    spent: int = 0
    token: str | None = attrs.field(default=None, repr=False)
    """What lets the owner of a public job read its status."""
    output_expiry: int | None = None
    """Seconds for which an on-demand job's output stays."""
    webhook: str | None = attrs.field(default=None, repr=False)
    """The one-off callback of an on-demand job."""
    encoder: str | None = None
    output_size: int | None = None
    failure_message: str | None = None

    @property
    def ended(self) -> bool:
        """Whether its status is final."""
        return self.status in (SUCCESS, FAILED, CANCELED)

    @property
    def input_key(self) -> str:
        """The storage key of its source."""
        return f"in/{self.id}/source"

    @property
    def output_key(self) -> str:
        """The storage key of its output."""
        return f"out/{self.id}/output.{self.settings['container']}"

    def to_row(self) -> tuple[Any, ...]:
        """Return its values as the store keeps them."""
        return tuple(to_column(getattr(self, name)) for name in JOB_COLUMNS)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Return the job that the store keeps."""
        values = dict(zip(JOB_COLUMNS, row, strict=True))
        for name in ("metadata", "settings", "source", "destination"):
            if values[name] is not None:
                values[name] = loads(values[name])
        values["high_priority"] = bool(values["high_priority"])
        values["uploaded"] = bool(values["uploaded"])
        return cls(**values)


JOB_COLUMNS: tuple[str, ...] = tuple(field.name for field in attrs.fields(Job))


def to_column(value: Any) -> Any:
    """Return a value as a column holds it: JSON for objects."""
    return dumps(value) if isinstance(value, dict) else value


@attrs.frozen
class Account:
    """Whose jobs and tokens they are."""

    id: str
    email: str
    available: int
    reserved: int
    spent: int
    granted: int


@attrs.frozen
class Tokens:
    """An account's books, in tokens (neu); `available + reserved + spent` is always `granted`."""

    available: int
    reserved: int
    spent: int
    granted: int


@attrs.frozen
class RequestRecord:
    """One request that the sandbox has seen, whether or not its answer arrived."""

    method: str
    path: str
    operation: str
    """The contract's operation id; uploads and downloads are `putObject` and `getObject`."""
    idempotency_key: str | None
    status: int | None
    """The answer's status; None if a fault came before there was one."""
    replayed: bool = False
    """Whether the answer was one that the key remembered."""
    fault: str | None = None
    """The fault that was injected."""
    at: float = 0.0
    """Seconds since 1970."""
