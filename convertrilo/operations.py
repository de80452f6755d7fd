"""The 35 operations of the contract, each declared once.

The client's methods, the sandbox's routes, the contract tests and the docs' reference all use these rows.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import attrs

from convertrilo import models
from convertrilo._model import Model

R = TypeVar("R")


class Repeat(enum.Enum):
    """Whether an operation may be sent again when its outcome is unclear."""

    SAFE = "safe"
    """The operation changes nothing."""
    IDEMPOTENT = "idempotent"
    """Doing the operation twice is the same as doing it once."""
    KEYED = "keyed"
    """The operation carries an idempotency key, by which the service recognises a repetition."""
    ONCE = "once"
    """The operation spends, reserves or creates, and the service cannot tell a repetition from a new request."""


class Auth(enum.Enum):
    """Which credentials an operation takes."""

    ANY = "any"
    """An API key or a bearer token."""
    BEARER = "bearer"
    """A bearer token only."""
    NONE = "none"
    """No credentials: none are sent."""


@attrs.frozen(kw_only=True)
class Operation(Generic[R]):
    """One operation of the contract."""

    id: str
    """The contract's operation id."""
    method: str
    path: str
    returns: type[R] | None
    """The model of the answer; `None` if the body of the answer means nothing."""
    body: type[Model] | type[bytes] | None = None
    body_required: bool = True
    query: tuple[str, ...] = ()
    """Names of the query parameters. All are required."""
    repeat: Repeat
    auth: Auth = Auth.ANY
    status: int = 200
    """The HTTP status of success."""
    find_out: str = ""
    """For `Repeat.ONCE`: how to learn whether the operation happened."""


_READ_BALANCE = "Read the balance (get_balance): the reserved and available tokens show whether it happened."
_READ_STATUS = "Read the job's status (job_status): if the job is queued or later, it happened."

LOGIN = Operation(
    id="login",
    method="POST",
    path="/auth/login",
    body=models.AuthLoginRequest,
    returns=models.AuthLoginResponse,
    repeat=Repeat.ONCE,
    auth=Auth.NONE,
    find_out="Log in again: an unused token is harmless.",
)
GET_BALANCE = Operation(
    id="getBalance",
    method="GET",
    path="/tokens/balance",
    returns=models.TokenBalanceResponse,
    repeat=Repeat.SAFE,
)
RESERVE_TOKENS: Operation[None] = Operation(
    id="reserveTokens",
    method="POST",
    path="/tokens/reserve",
    body=models.TokenReserveRequest,
    returns=None,
    repeat=Repeat.ONCE,
    find_out=_READ_BALANCE,
)
RELEASE_TOKENS: Operation[None] = Operation(
    id="releaseTokens",
    method="POST",
    path="/tokens/release",
    body=models.TokenReserveRequest,
    returns=None,
    repeat=Repeat.ONCE,
    find_out=_READ_BALANCE,
)
DEDUCT_TOKENS: Operation[None] = Operation(
    id="deductTokens",
    method="POST",
    path="/tokens/deduct",
    body=models.TokenDeductRequest,
    returns=None,
    repeat=Repeat.ONCE,
    find_out=_READ_BALANCE,
)
CREATE_JOB = Operation(
    id="createJob",
    method="POST",
    path="/jobs",
    body=models.JobCreateRequest,
    returns=models.JobCreateResponse,
    repeat=Repeat.KEYED,
)
PROBE_DURATION = Operation(
    id="probeDuration",
    method="GET",
    path="/jobs/{id}/probe-duration",
    returns=models.ProbeDurationResponse,
    repeat=Repeat.SAFE,
)
APPROVE_UNIFIED = Operation(
    id="approveUnified",
    method="POST",
    path="/jobs/{id}/approve-unified",
    body=models.ApproveUnifiedRequest,
    body_required=False,
    returns=models.ApproveUnifiedResponse,
    repeat=Repeat.ONCE,
    find_out=_READ_BALANCE,
)
CONFIRM_JOB = Operation(
    id="confirmJob",
    method="POST",
    path="/jobs/{id}/confirm",
    body=models.ConfirmRequest,
    body_required=False,
    returns=models.ConfirmResponse,
    repeat=Repeat.ONCE,
    find_out=_READ_STATUS,
)
CANCEL_JOB: Operation[None] = Operation(
    id="cancelJob",
    method="POST",
    path="/jobs/{id}/cancel",
    returns=None,
    repeat=Repeat.IDEMPOTENT,
)
JOB_STATUS = Operation(
    id="jobStatus",
    method="GET",
    path="/jobs/{id}/status",
    returns=models.StatusResponse,
    repeat=Repeat.SAFE,
)
CREATE_JOBS_BULK = Operation(
    id="createJobsBulk",
    method="POST",
    path="/jobs/bulk",
    body=models.BulkCreateRequest,
    returns=models.BulkCreateResponse,
    repeat=Repeat.KEYED,
)
BULK_STATUS = Operation(
    id="bulkStatus",
    method="GET",
    path="/jobs/bulk/status",
    query=("ids",),
    returns=models.BulkStatusResponse,
    repeat=Repeat.SAFE,
)
BULK_CONFIRM = Operation(
    id="bulkConfirm",
    method="POST",
    path="/jobs/bulk/confirm",
    body=models.BulkConfirmRequest,
    returns=models.BulkConfirmResponse,
    repeat=Repeat.ONCE,
    find_out="Read the statuses of the jobs (bulk_status): jobs that are queued or later were confirmed.",
)
GET_API_KEYS = Operation(
    id="getApiKeys",
    method="GET",
    path="/api-keys",
    returns=models.ApiKeyListResponse,
    repeat=Repeat.SAFE,
    auth=Auth.BEARER,
)
CREATE_API_KEY = Operation(
    id="createApiKey",
    method="POST",
    path="/api-keys",
    body=models.ApiKeyCreateRequest,
    returns=models.ApiKeyResponse,
    repeat=Repeat.ONCE,
    auth=Auth.BEARER,
    find_out="List the API keys (get_api_keys) and revoke the new key: only the lost answer showed the key itself.",
)
REVOKE_API_KEY: Operation[None] = Operation(
    id="revokeApiKey",
    method="DELETE",
    path="/api-keys/{id}",
    returns=None,
    repeat=Repeat.IDEMPOTENT,
    auth=Auth.BEARER,
    status=204,
)
GET_WEBHOOKS = Operation(
    id="getWebhooks",
    method="GET",
    path="/webhooks",
    returns=models.WebhookListResponse,
    repeat=Repeat.SAFE,
)
CREATE_WEBHOOK = Operation(
    id="createWebhook",
    method="POST",
    path="/webhooks",
    body=models.WebhookCreateRequest,
    returns=models.WebhookResponse,
    repeat=Repeat.ONCE,
    find_out="List the webhooks (get_webhooks) and delete the new webhook: only the lost answer showed its secret.",
)
UPDATE_WEBHOOK = Operation(
    id="updateWebhook",
    method="PATCH",
    path="/webhooks/{id}",
    body=models.WebhookUpdateRequest,
    returns=models.WebhookResponse,
    repeat=Repeat.IDEMPOTENT,  # it sets values
)
DELETE_WEBHOOK: Operation[None] = Operation(
    id="deleteWebhook",
    method="DELETE",
    path="/webhooks/{id}",
    returns=None,
    repeat=Repeat.IDEMPOTENT,
    status=204,
)
TEST_WEBHOOK: Operation[None] = Operation(
    id="testWebhook",
    method="POST",
    path="/webhooks/{id}/test",
    returns=None,
    repeat=Repeat.ONCE,
    find_out="List the webhook's deliveries (get_webhook_deliveries): the test is among them if it was sent.",
)
GET_WEBHOOK_DELIVERIES = Operation(
    id="getWebhookDeliveries",
    method="GET",
    path="/webhooks/{id}/deliveries",
    returns=models.WebhookDeliveryListResponse,
    repeat=Repeat.SAFE,
)
ON_DEMAND_ENCODE = Operation(
    id="onDemandEncode",
    method="POST",
    path="/ondemand/encode",
    body=models.OnDemandEncodeRequest,
    returns=models.OnDemandEncodeResponse,
    repeat=Repeat.KEYED,
)
ON_DEMAND_INGEST_FOLDER = Operation(
    id="onDemandIngestFolder",
    method="POST",
    path="/ondemand/ingest/folder",
    body=models.OnDemandFolderIngestRequest,
    returns=models.OnDemandFolderIngestResponse,
    repeat=Repeat.KEYED,
)
ON_DEMAND_STATUS = Operation(
    id="onDemandStatus",
    method="GET",
    path="/ondemand/status/{jobId}",
    returns=models.OnDemandStatusResponse,
    repeat=Repeat.SAFE,
)
ON_DEMAND_CANCEL = Operation(
    id="onDemandCancel",
    method="DELETE",
    path="/ondemand/{jobId}",
    returns=models.OnDemandCancelResponse,
    repeat=Repeat.IDEMPOTENT,
)
INIT_STREAM = Operation(
    id="initStream",
    method="POST",
    path="/jobs/{id}/stream/init",
    returns=models.StreamInitResponse,
    repeat=Repeat.IDEMPOTENT,  # parts name the job, not the upload: at worst, an empty upload is left behind
)
UPLOAD_CHUNK: Operation[None] = Operation(
    id="uploadChunk",
    method="PUT",
    path="/jobs/{id}/stream/chunk/{index}",
    body=bytes,
    returns=None,
    repeat=Repeat.IDEMPOTENT,
)
FINALIZE_STREAM: Operation[None] = Operation(
    id="finalizeStream",
    method="POST",
    path="/jobs/{id}/stream/finalize",
    body=models.StreamFinalizeRequest,
    body_required=False,
    returns=None,
    repeat=Repeat.ONCE,
    find_out="Finalize again: a completed upload is refused, and probe_duration then measures the file.",
)
ABORT_STREAM: Operation[None] = Operation(
    id="abortStream",
    method="POST",
    path="/jobs/{id}/stream/abort",
    returns=None,
    repeat=Repeat.IDEMPOTENT,
)
CREATE_PUBLIC_JOB = Operation(
    id="createPublicJob",
    method="POST",
    path="/public/jobs",
    body=models.PublicJobCreateRequest,
    returns=models.JobCreateResponse,
    repeat=Repeat.ONCE,
    auth=Auth.NONE,
    find_out="There is no way to tell: a public job has no key and no owner. A job that is not confirmed does nothing.",
)
PROBE_PUBLIC_DURATION = Operation(
    id="probePublicDuration",
    method="GET",
    path="/public/jobs/{id}/probe-duration",
    returns=models.ProbeDurationResponse,
    repeat=Repeat.SAFE,
    auth=Auth.NONE,
)
CONFIRM_PUBLIC_JOB: Operation[None] = Operation(
    id="confirmPublicJob",
    method="POST",
    path="/public/jobs/{id}/confirm",
    body=models.ConfirmRequest,
    body_required=False,
    returns=None,
    repeat=Repeat.ONCE,
    auth=Auth.NONE,
    find_out="Read the job's status (public_job_status): if the job is queued or later, it happened.",
)
PUBLIC_JOB_STATUS = Operation(
    id="publicJobStatus",
    method="GET",
    path="/public/jobs/{id}/status",
    query=("token",),
    returns=models.StatusResponse,
    repeat=Repeat.SAFE,
    auth=Auth.NONE,
)

_DECLARED: list[Operation[Any]] = [each for each in tuple(globals().values()) if isinstance(each, Operation)]

OPERATIONS: Mapping[str, Operation[Any]] = MappingProxyType({each.id: each for each in _DECLARED})
"""Every operation by its id, in the contract's order."""
