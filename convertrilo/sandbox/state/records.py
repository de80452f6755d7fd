"""The sandbox's records: jobs, accounts, balances, and the requests received."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from convertrilo._json import dumps, loads

PUT_OBJECT = "putObject"
GET_OBJECT = "getObject"
"""The operation names of uploads to and downloads from presigned URLs."""

JobKind = Literal["upload", "url", "ondemand"]

CREDENTIALS = frozenset({"accessKeyId", "secretAccessKey", "accessToken", "refreshToken"})
"""The credential fields of a source or destination, as on the wire."""

INSTANT = "instant"
"""The encoder that produces the same tiny file for every job."""

CREATED = "created"
QUEUED = "queued"
RUNNING = "running"
SUCCESS = "success"
FAILED = "failed"
CANCELED = "canceled"


@attrs.frozen(kw_only=True)
class Job:
    """One job. Times are in seconds since 1970, prices in tokens (neu)."""

    id: str
    account: str | None
    """The account's id; None for a public job."""
    kind: JobKind
    external_id: str | None = None
    idempotency_key: str | None
    """The idempotency key of the request that created the job."""
    metadata: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    settings: Mapping[str, Any] = attrs.field(repr=False)
    """The encode settings in the wire's names: `codec`, `resolution`, `bitrateTier`, ..."""
    status: str
    high_priority: bool = False
    created_at: float
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    source_url: str | None = attrs.field(default=None, repr=False)
    source: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """The source in S3 (`bucket`, `key`) or Google Drive (`fileId`), as on the wire; None for a URL or an upload."""
    destination: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    """Where the output goes in S3 or Google Drive (`folderId`, `fileName`), as on the wire; None for a download URL."""
    source_filename: str | None = None
    output_filename: str | None = None
    uploaded: bool = False
    """Whether the source has been uploaded to the sandbox."""
    duration: float | None = None
    """The source's duration in seconds; None until it is probed."""
    price: int | None = None
    """The price quoted when the tokens were reserved."""
    reserved: int = 0
    spent: int = 0
    token: str | None = attrs.field(default=None, repr=False)
    """The token that grants access to the status of a public job."""
    output_expiry: int | None = None
    """Seconds for which the output of an on-demand job is kept."""
    webhook: str | None = attrs.field(default=None, repr=False)
    """The URL of the one-off callback of an on-demand job."""
    encoder: str | None = None
    output_size: int | None = None
    failure_message: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in (SUCCESS, FAILED, CANCELED)

    @property
    def input_key(self) -> str:
        """The storage key of the source."""
        return f"in/{self.id}/source"

    @property
    def output_key(self) -> str:
        """The storage key of the output."""
        return f"out/{self.id}/output.{self.settings['container']}"

    def to_row(self) -> tuple[Any, ...]:
        """Return the values as database columns."""
        return tuple(to_column(getattr(self, name)) for name in JOB_COLUMNS)

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Return the job of a database row."""
        values = dict(zip(JOB_COLUMNS, row, strict=True))
        for name in ("metadata", "settings", "source", "destination"):
            if values[name] is not None:
                values[name] = loads(values[name])
        values["high_priority"] = bool(values["high_priority"])
        values["uploaded"] = bool(values["uploaded"])
        return cls(**values)


JOB_COLUMNS: tuple[str, ...] = tuple(field.name for field in attrs.fields(Job))


def to_column(value: Any) -> Any:
    """Return a value as a database column holds it: JSON for objects."""
    return dumps(value) if isinstance(value, dict) else value


@attrs.frozen
class Account:
    """An account, with its tokens (neu) at the time of reading."""

    id: str
    email: str
    available: int
    reserved: int
    spent: int
    granted: int


@attrs.frozen
class Tokens:
    """An account's books in tokens (neu); `available + reserved + spent` always equals `granted`."""

    available: int
    reserved: int
    spent: int
    granted: int


@attrs.frozen
class RequestRecord:
    """One request that the sandbox received, whether or not its response arrived."""

    method: str
    path: str
    operation: str
    """The contract's operation id; uploads and downloads are `putObject` and `getObject`."""
    idempotency_key: str | None
    status: int | None
    """The response's status; None if a fault struck before there was a response."""
    replayed: bool = False
    """Whether the response was replayed for a known idempotency key."""
    fault: str | None = None
    """The kind of the injected fault, if there was one."""
    at: float = 0.0
    """Seconds since 1970."""
