"""The contract's schemas as frozen attrs classes, validated when they are made.

Fields are snake_case; only `codec` knows their wire names. In a request, `None` means "not set", and fields that are
not set are not sent. In an answer, `None` means absent or null. Every class takes `extra={...}`: wire-shaped fields
that this version does not know. The `extra` of an answer holds its unknown fields.

The docstring of a field is its description in openapi.yaml; `python tests/contract/test_model_docs.py` writes it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from attrs import field

from convertrilo._model import Model, facts, model

# ---- values that the contract allows

Codec = Literal["h264", "h265", "av1"]
Container = Literal["mp4", "mkv", "webm", "mov"]
Resolution = Literal["480p", "720p", "1080p", "1440p", "2160p", "4320p"]
OnDemandResolution = Literal["480p", "720p", "1080p", "1440p", "2160p"]
PublicResolution = Literal["480p", "720p"]
Preset = Literal["fast", "standard", "slow"]
BitrateTier = Literal["low", "medium", "high"]
Passes = Literal[1, 2]
Policy = Literal["fastest", "gpu_first", "gpu_only"]
Quality = Literal["good", "better", "best"]
Optimize = Literal["none", "vmaf"]
Priority = Literal["normal", "high"]
OutputDestination = Literal["cdn", "s3", "google-drive"]
Scope = Literal[
    "jobs:create", "jobs:read", "jobs:cancel", "tokens:read", "tokens:write", "webhooks:manage", "credentials:manage"
]
WebhookEventName = Literal[
    "job.created", "job.queued", "job.running", "job.completed", "job.failed", "job.canceled"
]  #: the contract's schema `WebhookEvent`

TERMINAL_STATUSES = frozenset({"success", "failed", "canceled"})
"""Statuses after which a job no longer changes."""


# ---- facts that many fields share

_NULLABLE = facts(nullable=True)
_SECRET = facts(secret=True)
_PASSWORD = facts(secret=True, format="password")
_UUID = facts(format="uuid")  # documentation only: the contract does not promise that every id is a UUID
_URI = facts(format="uri", signed=True)
_SIGNED = facts(signed=True)
_TIME = facts(format="date-time")
_NULLABLE_TIME = facts(format="date-time", nullable=True)
_VMAF = facts(minimum=50, maximum=99)


# ---- auth and tokens


@model
class AuthLoginRequest(Model):
    """Email address and password to sign in with."""

    email: str = field(metadata=facts(format="email"))
    """Email address of the account."""
    password: str = field(metadata=facts(secret=True, min_length=8))
    """Password of the account, at least 8 characters. A secret."""


@model
class AuthLoginResponse(Model):
    """The tokens of a session: a bearer token and a refresh token."""

    access_token: str | None = field(default=None, metadata=_SECRET)
    """Access token, to be sent as `Authorization: Bearer <token>`. A secret."""
    refresh_token: str | None = field(default=None, metadata=_SECRET)
    """Token that represents the session after the access token has expired. No operation of this contract takes it. A
    secret."""


@model
class TokenBalanceResponse(Model):
    """The account's balance, in tokens (neu)."""

    available: float | None = None
    """Tokens (neu) that can be reserved or spent."""
    reserved: float | None = None
    """Tokens (neu) set aside for jobs that have not ended."""
    trial_grant_remaining: float | None = None
    """Tokens (neu) left of the trial grant."""
    trial_expires_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the trial grant expires; `None` if there is none."""


@model
class TokenReserveRequest(Model):
    """Tokens (neu) to reserve for a job, or to release from it."""

    job_id: str = field(metadata=_UUID)
    """Id of the job to reserve tokens for, or to release them from."""
    amount: int = field(metadata=facts(minimum=1))
    """Number of tokens (neu), a whole number."""


@model
class TokenDeductRequest(Model):
    """Tokens (neu) to spend on a job."""

    job_id: str = field(metadata=_UUID)
    """Id of the job to spend tokens on."""
    amount: int = field(metadata=facts(minimum=1))
    """Number of tokens (neu), a whole number."""


# ---- jobs


@model
class S3Source(Model):
    """An object in S3 or an S3-compatible store (`endpoint`, `force_path_style`)."""

    bucket: str | None = None
    """Name of the bucket."""
    key: str | None = None
    """Key of the object in the bucket."""
    endpoint: str | None = field(default=None, metadata=_SIGNED)
    """URL of an S3-compatible store. Without it, the bucket is in Amazon S3."""
    region: str | None = None
    """Region of the bucket."""
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    """Id of the access key to read with. Temporary credentials do not work: there is no field for a session token."""
    secret_access_key: str | None = field(default=None, metadata=_SECRET)
    """Secret access key. Write-only: no answer returns it."""
    force_path_style: bool | None = None
    """Whether the URL holds the bucket in its path instead of its host name, as many S3-compatible stores require."""


@model
class JobCreateRequest(Model):
    """A job to encode one video: uploaded, or fetched from `source_url` or `source_s3`."""

    external_id: str | None = field(default=None, metadata=facts(max_length=255))
    """Your own id for the job, at most 255 characters, returned with the job. No operation finds a job by it."""
    metadata: Mapping[str, Any] | None = None
    """Any JSON object of yours, returned with the job and in its webhooks."""
    codec: Codec
    """Video codec of the output."""
    resolution: Resolution
    """Height of the output in pixels, such as `1080p`."""
    fps: int = field(metadata=facts(minimum=1, maximum=240))
    """Frame rate of the output, in frames per second, from 1 to 240."""
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    """Container format of the output. Default: `mp4`."""
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    """Encoder speed. A slower preset takes more time and compresses better. Default: `fast`."""
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    """How high the bitrate of the output may be for its resolution. Default: `medium`."""
    passes: Passes | None = field(default=None, metadata=facts(default=1))
    """Number of encoding passes over the source. Default: `1`."""
    policy: Policy | None = field(default=None, metadata=facts(default="gpu_first"))
    """Which encoders may take the job. `gpu_first` falls back to a CPU, `gpu_only` does not. Default: `gpu_first`."""
    quality: Quality | None = None
    """Quality level of the output."""
    source_url: str | None = field(default=None, metadata=_URI)
    """URL to fetch the source from. The answer then has no upload URL. The signature of a presigned URL is a secret."""
    original_filename: str | None = None
    """File name of the source. The download name of the output is made from it."""
    source_s3: S3Source | None = None
    """An object in S3 or an S3-compatible store."""
    confirm: bool | None = field(default=None, metadata=facts(default=False))
    """Whether to reserve the tokens and queue the job at once. Default: `False`."""
    optimize: Optimize | None = None
    """With `vmaf`, the encoder aims for the score in `vmaf_target` rather than for a bitrate."""
    vmaf_target: float | None = field(default=None, metadata=_VMAF)
    """VMAF score to aim for, from 50 to 99; only with `optimize` set to `vmaf`."""


@model
class JobUpload(Model):
    """Where to upload the source. Anyone who has the presigned `url` can write to `key`."""

    url: str | None = field(default=None, metadata=_SIGNED)
    """Presigned URL to PUT the file to, without API credentials. Anyone who has it can upload: treat it as a secret."""
    key: str | None = None
    """Storage key that the file will have."""


@model
class JobOutput(Model):
    """Where the output is stored."""

    key: str | None = None
    """Storage key of the output."""
    public_url: str | None = None
    """Public URL of the output, if it has one."""


@model
class JobEstimate(Model):
    """Estimated cost of a job, in tokens (neu)."""

    neu: float | None = None
    """Estimated price, in tokens (neu)."""
    total_neu: float | None = None
    """Estimated total price, in tokens (neu)."""
    reserved: float | None = None
    """Tokens (neu) reserved for the job."""


@model
class JobCreateResponse(Model):
    """A job that was just created. `upload` is set if the job waits for its file."""

    job_id: str
    """Id of the job. Store it: no operation looks it up."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """Your own id for the job; `None` if the request had none."""
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    """Your own JSON object; `None` if the request had none."""
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name of the source; `None` while it is unknown."""
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name under which the output is downloaded; `None` while it is unknown."""
    status: str | None = None
    """Status of the job. Present only if the job was confirmed and queued at creation."""
    upload: JobUpload | None = field(metadata=_NULLABLE)
    """Where to upload the source; `None` if the request named a source."""
    output: JobOutput
    """Where the output is stored."""
    estimate: JobEstimate | None = None
    """Estimated cost of the job, in tokens (neu)."""


@model
class ProbeDurationResponse(Model):
    """Duration of the uploaded video."""

    duration_sec: float | None = None
    """Duration in seconds."""
    duration_minutes: float | None = None
    """Duration in minutes, the unit of prices."""


@model
class ApproveUnifiedRequest(Model):
    """Settings to approve a job with. Settings that are left out stay as they were at creation."""

    codec: Codec | None = None
    """Video codec of the output."""
    resolution: str | None = None
    """Height of the output, such as `1080p`."""
    fps: int | None = None
    """Frame rate of the output, in frames per second."""
    preset: Preset | None = None
    """Encoder speed. A slower preset takes more time and compresses better."""
    bitrate_tier: BitrateTier | None = None
    """How high the bitrate of the output may be for its resolution."""
    passes: Passes | None = None
    """Number of encoding passes over the source."""
    policy: Policy | None = None
    """Which encoders may take the job. `gpu_first` falls back to a CPU, `gpu_only` does not."""
    container: Container | None = None
    """Container format of the output."""
    quality: Quality | None = None
    """Quality level of the output."""
    optimize: Optimize | None = None
    """With `vmaf`, the encoder aims for the score in `vmaf_target` rather than for a bitrate."""
    vmaf_target: float | None = field(default=None, metadata=_VMAF)
    """VMAF score to aim for, from 50 to 99; only with `optimize` set to `vmaf`."""


@model
class ApproveEstimate(Model):
    """Estimated price of an approved job, in tokens (neu), and the duration of its source, in seconds."""

    per_minute_neu: float | None = None
    """Price per minute of video, in tokens (neu)."""
    duration_sec: float | None = None
    """Measured duration of the source, in seconds."""
    total_neu: float | None = None
    """Estimated total price of the job, in tokens (neu)."""
    reserved: float | None = None
    """Tokens (neu) reserved for the job."""


@model
class ApproveUnifiedResponse(Model):
    """The answer to `approveUnified`: the source is probed and the tokens are reserved. The job is not queued yet."""

    ok: bool | None = None
    """Whether the request succeeded."""
    estimate: ApproveEstimate | None = None
    """Estimated price of the job, and how it is calculated."""


@model
class ConfirmRequest(Model):
    """Last settings before a job is queued."""

    container: Container | None = None
    """Container format of the output."""
    quality: Quality | None = None
    """Quality level of the output."""
    optimize: Optimize | None = None
    """With `vmaf`, the encoder aims for the score in `vmaf_target` rather than for a bitrate."""
    vmaf_target: float | None = field(default=None, metadata=facts(minimum=1, maximum=100))
    """VMAF score to aim for, from 1 to 100; only with `optimize` set to `vmaf`. The bounds are wider than at
    creation."""


@model
class ConfirmResponse(Model):
    """The answer to `confirmJob`: the job is queued."""

    ok: bool | None = None
    """Whether the request succeeded."""


@model
class StatusResponse(Model):
    """Status of a job: `created`, `queued`, `running` (`pct` 0 to 100), `success`, `failed` or `canceled`."""

    id: str | None = None
    """Id of the job, called `job_id` elsewhere."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """Your own id for the job; `None` if the request had none."""
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    """Your own JSON object; `None` if the request had none."""
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name of the source; `None` while it is unknown."""
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name under which the output is downloaded; `None` while it is unknown."""
    status: str | None = None
    """Status of the job: `created`, `queued`, `running`, and at the end `success`, `failed` or `canceled`. The service
    may add others."""
    ingest: str | None = field(default=None, metadata=_NULLABLE)
    """How far the service has come with fetching the source itself; `None` if there is nothing to report."""
    output: JobOutput | None = field(default=None, metadata=_NULLABLE)
    """Where the output is stored; `None` until there is an output."""
    download_url: str | None = field(default=None, metadata=facts(nullable=True, signed=True))
    """Signed, temporary, private URL of the output; `None` until there is an output. Anyone who has it can download:
    treat it as a secret."""
    encoder: str | None = field(default=None, metadata=_NULLABLE)
    """Encoder that processes or processed the job; `None` until one is chosen."""
    pct: float | None = field(default=None, metadata=_NULLABLE)
    """Progress in percent, from 0 to 100; `None` if it is unknown."""
    created_at: datetime | None = field(default=None, metadata=_TIME)
    """When the job was created."""
    started_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When encoding started; `None` until then."""
    finished_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the job ended, whatever its outcome; `None` until then."""
    failure_message: str | None = field(default=None, metadata=_NULLABLE)
    """Why the job failed, in prose; `None` unless it failed."""


@model
class ErrorResponse(Model):
    """The body of every error answer; `code` is stable, `message` is prose."""

    code: str = field(
        metadata=facts(
            known=(
                "invalid_api_key",
                "api_key_expired",
                "user_not_found",
                "account_banned",
                "missing_required_scope",
                "invalid_request",
                "invalid_body",
                "invalid_url",
                "url_ingest_disabled",
                "url_host_blocked",
                "signed_url_required",
                "host_not_resolvable",
                "private_ip_blocked",
                "missing_content_length",
                "file_too_large",
                "unsupported_content_type",
                "probe_failed",
                "insufficient_tokens",
                "idempotency_conflict",
                "idempotency_in_progress",
                "rate_limit_exceeded",
                "not_found",
                "forbidden",
                "deprecated_dropbox",
                "google_drive_not_connected",
                "dropbox_not_connected",
                "no_video_files_found",
                "webhook_limit_exceeded",
                "webhook_not_found",
                "no_updates_provided",
                "output_not_available",
            )
        )
    )
    """Stable code of the error, for programs to branch on. The service may add others."""
    message: str
    """What went wrong, in prose. The wording may change."""
    issues: Any = None
    """With `invalid_body`, which fields are wrong, and why. The shape is not specified."""
    required_scope: str | None = None
    """With `missing_required_scope`, the scope that the API key lacks."""
    required: float | None = None
    """With `insufficient_tokens`, the tokens (neu) that the job needs."""
    available: float | None = None
    """With `insufficient_tokens`, the tokens (neu) that the account has available."""


# ---- bulk


@model
class BulkCreateSettings(Model):
    """Settings for all jobs of a bulk request; `dry_run` estimates and creates nothing, `confirm` queues."""

    fail_fast: bool | None = field(default=None, metadata=facts(default=False))
    """Whether to stop at the first job that is rejected. Default: `False`."""
    dry_run: bool | None = field(default=None, metadata=facts(default=False))
    """Whether to validate and estimate only, and create nothing. Default: `False`."""
    confirm: bool | None = field(default=None, metadata=facts(default=False))
    """Whether to reserve the tokens and queue the jobs at once. Default: `False`."""
    container: Container | None = None
    """Container format of the outputs."""
    quality: Quality | None = None
    """Quality level of the outputs."""
    optimize: Optimize | None = None
    """With `vmaf`, the encoder aims for the score in `vmaf_target` rather than for a bitrate."""
    vmaf_target: float | None = field(default=None, metadata=_VMAF)
    """VMAF score to aim for, from 50 to 99; only with `optimize` set to `vmaf`."""


@model
class BulkCreateRequest(Model):
    """Many jobs in one request."""

    jobs: Sequence[JobCreateRequest]
    """Jobs to create. The answer refers to each job by its index in this list. The maximum number of jobs is not
    specified."""
    settings: BulkCreateSettings | None = None
    """Settings for the whole batch."""


@model
class BulkItemEstimate(Model):
    """Estimated cost of one job of a bulk request, in tokens (neu)."""

    neu: float | None = None
    """Estimated price of the job, in tokens (neu)."""


@model
class BulkCreateItem(Model):
    """Outcome of one job of a bulk request: `job_id`, or `error`."""

    index: int | None = None
    """Index of the job in the request, from 0."""
    job_id: str | None = field(default=None, metadata=_UUID)
    """Id of the job, if it was created."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """Your own id for the job; `None` if the request had none."""
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    """Your own JSON object; `None` if the request had none."""
    status: str | None = None
    """Status of the job; the values are those of `StatusResponse`."""
    error: str | None = None
    """Why the job was not created."""
    estimate: BulkItemEstimate | None = None
    """Estimated cost of the job."""


@model
class BulkCreateResponse(Model):
    """Outcome of a bulk request, job by job, and its cost in tokens (neu)."""

    total_jobs: int | None = None
    """Number of jobs in the batch."""
    total_estimated_neu: float | None = None
    """Estimated price of the batch, in tokens (neu)."""
    reserved: float | None = None
    """Tokens (neu) reserved for the batch."""
    jobs: Sequence[BulkCreateItem] | None = None
    """One outcome for each job of the request."""


@model
class BulkStatusResponse(Model):
    """The jobs that were found, and the requested ids that are `missing`."""

    jobs: Sequence[StatusResponse] | None = None
    """The jobs that were found."""
    missing: Sequence[str] | None = None
    """Requested ids that belong to no job of this account."""


@model
class BulkConfirmSettings(Model):
    """Last settings before the jobs are queued."""

    container: Container | None = None
    """Container format of the outputs."""
    quality: Quality | None = None
    """Quality level of the outputs."""


@model
class BulkConfirmRequest(Model):
    """The jobs to queue, and settings for all of them."""

    job_ids: Sequence[str] = field(metadata=_UUID)
    """Ids of the jobs to queue."""
    settings: BulkConfirmSettings | None = None
    """Settings for all the jobs."""


@model
class BulkConfirmResponse(Model):
    """How many jobs were queued. `jobs` holds one object for each, as the service sends it."""

    queued: int | None = None
    """Number of jobs that were queued."""
    jobs: Sequence[Mapping[str, Any]] | None = None
    """One entry for each job. The fields of an entry are not specified."""


# ---- API keys


@model
class ApiKeyCreateRequest(Model):
    """A new API key: its name, its scopes, and the days until it expires."""

    name: str
    """Display name of the key."""
    scopes: Sequence[Scope] | None = None
    """What the key may do. Always list the scopes: what a key without them may do is not specified."""
    expires_in_days: int | None = field(default=None, metadata=facts(minimum=1, maximum=365))
    """Days until the key expires, from 1 to 365."""


@model
class ApiKeyResponse(Model):
    """An API key. Only the answer that creates the key has `key`."""

    id: str | None = field(default=None, metadata=_UUID)
    """Id of the key, for revoking it."""
    name: str | None = None
    """Display name of the key."""
    key: str | None = field(default=None, metadata=_SECRET)
    """The key itself. A secret; only the answer that creates the key has it."""
    prefix: str | None = None
    """First characters of the key, to recognise it by."""
    scopes: Sequence[str] | None = None
    """What the key may do."""
    expires_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the key expires; `None` if it does not."""
    created_at: datetime | None = field(default=None, metadata=_TIME)
    """When the key was created."""


@model
class ApiKeyListResponse(Model):
    """All API keys of the account."""

    keys: Sequence[ApiKeyResponse] | None = None
    """API keys of the account."""


# ---- webhooks


@model
class WebhookCreateRequest(Model):
    """A new webhook: its URL, and the events to send."""

    url: str = field(metadata=_URI)
    """URL to send the events to."""
    events: Sequence[WebhookEventName]
    """Events to send."""


@model
class WebhookUpdateRequest(Model):
    """Changes to a webhook. `is_active=True` switches it on again."""

    url: str | None = field(default=None, metadata=_URI)
    """New URL to send the events to."""
    events: Sequence[WebhookEventName] | None = None
    """Events to send from now on, in place of the previous ones."""
    is_active: bool | None = None
    """Whether events are sent. `True` switches a webhook on again."""


@model
class WebhookResponse(Model):
    """A webhook. Only the answer that creates the webhook has `secret`, which signs the deliveries."""

    id: str | None = field(default=None, metadata=_UUID)
    """Id of the webhook. Its deliveries carry it as `X-Webhook-Id`."""
    url: str | None = field(default=None, metadata=_SIGNED)
    """URL that the events are sent to."""
    events: Sequence[str] | None = None
    """Events that are sent. The service may add others."""
    secret: str | None = field(default=None, metadata=_SECRET)
    """Key of the HMAC-SHA256 that signs the deliveries. A secret; only the answer that creates the webhook has it."""
    is_active: bool | None = None
    """Whether events are sent. Ten failures in a row switch a webhook off."""
    failure_count: int | None = None
    """Number of failed deliveries in a row."""
    last_triggered_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When an event was last sent; `None` if never."""
    last_failed_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When a delivery last failed; `None` if never."""
    created_at: datetime | None = field(default=None, metadata=_TIME)
    """When the webhook was created."""


@model
class WebhookListResponse(Model):
    """All webhooks of the account."""

    webhooks: Sequence[WebhookResponse] | None = None
    """Webhooks of the account."""


@model
class WebhookDeliveryResponse(Model):
    """One attempt to deliver an event; `response_body` and `error` are cut at 2048 characters."""

    id: str | None = field(default=None, metadata=_UUID)
    """Id of the delivery attempt."""
    webhook_id: str | None = field(default=None, metadata=_UUID)
    """Id of the webhook."""
    event: str | None = None
    """Event that was sent; `webhook.test` for a test."""
    job_id: str | None = field(default=None, metadata=facts(format="uuid", nullable=True))
    """Id of the job that the event is about; `None` if there is none."""
    status: str | None = field(default=None, metadata=facts(known=("success", "failed")))
    """Outcome of the attempt."""
    status_code: int | None = field(default=None, metadata=_NULLABLE)
    """HTTP status of the receiver's answer; `None` if the receiver did not answer."""
    duration_ms: int | None = field(default=None, metadata=_NULLABLE)
    """Duration of the attempt, in milliseconds; `None` if it is unknown."""
    response_body: str | None = field(default=None, metadata=_NULLABLE)
    """Body of the receiver's answer, cut at 2048 characters; `None` if the receiver did not answer."""
    error: str | None = field(default=None, metadata=_NULLABLE)
    """Why the attempt failed, cut at 2048 characters; `None` if it did not fail."""
    attempt: int | None = None
    """Number of the attempt among those for the same event."""
    next_retry_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the event will be sent again; `None` if it will not."""
    retried_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the event was sent again after this attempt; `None` if it was not."""
    created_at: datetime | None = field(default=None, metadata=_TIME)
    """When the attempt was made."""


@model
class WebhookDeliveryListResponse(Model):
    """The latest delivery attempts, at most 50."""

    deliveries: Sequence[WebhookDeliveryResponse] | None = None
    """The attempts, at most 50."""


# ---- on-demand


@model
class S3Output(Model):
    """The object to write the encoded file to, in S3 or an S3-compatible store."""

    bucket: str
    """Name of the bucket."""
    key: str
    """Key of the object to write."""
    endpoint: str | None = field(default=None, metadata=_URI)
    """URL of an S3-compatible store. Without it, the bucket is in Amazon S3."""
    region: str | None = None
    """Region of the bucket."""
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    """Id of the access key to write with. Temporary credentials do not work: there is no field for a session token."""
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    """Secret access key. Write-only: no answer returns it."""
    force_path_style: bool | None = None
    """Whether the URL holds the bucket in its path instead of its host name, as many S3-compatible stores require."""


@model
class S3FolderSource(Model):
    """A prefix to read videos from, in S3 or an S3-compatible store."""

    bucket: str
    """Name of the bucket."""
    prefix: str | None = field(default=None, metadata=facts(default=""))
    """Prefix of the videos' keys. An empty prefix means the whole bucket. Default: `""`."""
    endpoint: str | None = field(default=None, metadata=_URI)
    """URL of an S3-compatible store. Without it, the bucket is in Amazon S3."""
    region: str | None = None
    """Region of the bucket."""
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    """Id of the access key to read with. Temporary credentials do not work: there is no field for a session token."""
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    """Secret access key. Write-only: no answer returns it."""
    force_path_style: bool | None = field(default=None, metadata=facts(default=True))
    """Whether the URL holds the bucket in its path instead of its host name, as many S3-compatible stores require.
    Default: `True`."""


@model
class S3FolderOutput(Model):
    """A prefix to write encoded files under; the source's file name is appended."""

    bucket: str
    """Name of the bucket."""
    prefix: str | None = field(default=None, metadata=facts(default="outputs/"))
    """Prefix of the outputs' keys. The file name of the source is appended to it. Default: `outputs/`."""
    endpoint: str | None = field(default=None, metadata=_URI)
    """URL of an S3-compatible store. Without it, the bucket is in Amazon S3."""
    region: str | None = None
    """Region of the bucket."""
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    """Id of the access key to write with. Temporary credentials do not work: there is no field for a session token."""
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    """Secret access key. Write-only: no answer returns it."""
    force_path_style: bool | None = field(default=None, metadata=facts(default=True))
    """Whether the URL holds the bucket in its path instead of its host name, as many S3-compatible stores require.
    Default: `True`."""


@model
class GoogleDriveFolderSource(Model):
    """A Google Drive folder to read videos from."""

    folder_id: str
    """Id of the Google Drive folder, as in the folder's URL."""
    access_token: str | None = field(default=None, metadata=_SECRET)
    """OAuth access token for Google Drive. A secret, write-only."""
    refresh_token: str | None = field(default=None, metadata=_SECRET)
    """OAuth refresh token for Google Drive. A secret, write-only."""


@model
class GoogleDriveOutput(Model):
    """A Google Drive folder to write the encoded file to."""

    folder_id: str
    """Id of the Google Drive folder, as in the folder's URL."""
    file_name: str | None = None
    """Name of the file to write."""
    access_token: str | None = field(default=None, metadata=_SECRET)
    """OAuth access token for Google Drive. A secret, write-only."""
    refresh_token: str | None = field(default=None, metadata=_SECRET)
    """OAuth refresh token for Google Drive. A secret, write-only."""


@model
class DropboxPath(Model):
    """A Dropbox path. The service no longer offers Dropbox: it answers 410 `deprecated_dropbox`."""

    path: str | None = None
    """Path in Dropbox."""
    access_token: str | None = field(default=None, metadata=_SECRET)
    """Access token for Dropbox. A secret, write-only."""


@model
class DropboxFolderOutput(Model):
    """A Dropbox folder. The service no longer offers Dropbox: it answers 410 `deprecated_dropbox`."""

    path: str | None = None
    """Path in Dropbox."""


@model
class OnDemandEncodeRequest(Model):
    """A job to encode the video at `source_url`, queued at once and without an upload."""

    source_url: str = field(metadata=_URI)
    """URL to fetch the source from. The signature of a presigned URL is a secret."""
    external_id: str | None = field(default=None, metadata=facts(max_length=255))
    """Your own id for the job, at most 255 characters, returned with the job. No operation finds a job by it."""
    metadata: Mapping[str, Any] | None = None
    """Any JSON object of yours, returned with the job and in its webhooks."""
    codec: Codec | None = field(default=None, metadata=facts(default="h264"))
    """Video codec of the output. Default: `h264`."""
    resolution: OnDemandResolution | None = field(default=None, metadata=facts(default="1080p"))
    """Height of the output in pixels, such as `1080p`. Default: `1080p`."""
    fps: int | None = field(default=None, metadata=facts(minimum=1, maximum=120, default=30))
    """Frame rate of the output, in frames per second, from 1 to 120. Default: `30`."""
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    """Encoder speed. A slower preset takes more time and compresses better. Default: `fast`."""
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    """How high the bitrate of the output may be for its resolution. Default: `medium`."""
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    """Container format of the output. Default: `mp4`."""
    quality: Quality | None = field(default=None, metadata=facts(default="better"))
    """Quality level of the output. Default: `better`."""
    priority: Priority | None = field(default=None, metadata=facts(default="normal"))
    """Priority in the queue. A job costs 1.5 times the base price at `normal`, and 2 times at `high`. Default:
    `normal`."""
    output_expiry: int | None = field(default=None, metadata=facts(minimum=3600, maximum=604800, default=86400))
    """Seconds for which the output can be downloaded, from 3600 (an hour) to 604800 (a week). Default: `86400`."""
    webhook: str | None = field(default=None, metadata=_URI)
    """URL for one callback when the job ends. The callback is unsigned and best effort: treat it as a hint, and read
    the status."""
    output_s3: S3Output | None = None
    """An object to write the output to, in S3 or an S3-compatible store."""
    output_google_drive: GoogleDriveOutput | None = None
    """A Google Drive folder to write outputs to."""
    output_dropbox: DropboxPath | None = None
    """No longer supported; the service answers 410 `deprecated_dropbox`."""


@model
class OnDemandPricing(Model):
    """Price of an on-demand job, in tokens (neu). `multiplier` applies to the base price."""

    base_per_minute: float | None = None
    """Base price per minute of video, in tokens (neu)."""
    on_demand_per_minute: float | None = None
    """On-demand price per minute of video, in tokens (neu)."""
    multiplier: float | None = None
    """Factor from the base price to the on-demand price; 1.5 at normal priority, 2 at high priority."""
    total_neu: float | None = None
    """Estimated total price of the job, in tokens (neu)."""
    reserved: float | None = None
    """Tokens (neu) reserved for the job."""


@model
class OnDemandEncodeResponse(Model):
    """An on-demand job that was just queued."""

    job_id: str = field(metadata=_UUID)
    """Id of the job. Store it: no operation looks it up."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """Your own id for the job; `None` if the request had none."""
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    """Your own JSON object; `None` if the request had none."""
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name of the source; `None` while it is unknown."""
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name under which the output is downloaded; `None` while it is unknown."""
    status: str
    """Status of the job; the values are those of `StatusResponse`."""
    estimated_duration: int | None = None
    """Estimated duration, in seconds."""
    pricing: OnDemandPricing | None = None
    """Price of the job, and how it is calculated."""
    status_url: str
    """Where to read the status of the job, as `onDemandStatus` does."""
    webhook: str | None = field(default=None, metadata=facts(nullable=True, signed=True))
    """URL that the callback will go to; `None` if the request had none."""


@model
class OnDemandDestination(Model):
    """Where the output went: `type` is `cdn`, `s3` (`bucket`, `key`) or `google-drive` (`folder_id`, `file_name`)."""

    type: str | None = field(default=None, metadata=facts(known=("cdn", "s3", "google-drive")))
    """Kind of destination."""
    bucket: str | None = None
    """Name of the bucket."""
    key: str | None = None
    """Key of the object."""
    folder_id: str | None = None
    """Id of the Google Drive folder, as in the folder's URL."""
    file_name: str | None = field(default=None, metadata=_NULLABLE)
    """Name of the file; `None` while it is unknown."""


@model
class OnDemandStatusResponse(Model):
    """Status of an on-demand job. `progress` is in percent, `expires_in` in seconds."""

    job_id: str | None = field(default=None, metadata=_UUID)
    """Id of the job."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """Your own id for the job; `None` if the request had none."""
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    """Your own JSON object; `None` if the request had none."""
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name of the source; `None` while it is unknown."""
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    """File name under which the output is downloaded; `None` while it is unknown."""
    status: str | None = None
    """Status of the job; the values are those of `StatusResponse`."""
    progress: float | None = field(default=None, metadata=_NULLABLE)
    """Progress in percent, from 0 to 100; `None` if it is unknown."""
    encoder: str | None = field(default=None, metadata=_NULLABLE)
    """Encoder that processes or processed the job; `None` until one is chosen."""
    download_url: str | None = field(default=None, metadata=facts(nullable=True, signed=True))
    """Signed, temporary, private URL of the output; `None` until there is an output. Anyone who has it can download:
    treat it as a secret."""
    expires_in: int | None = field(default=None, metadata=_NULLABLE)
    """Seconds for which `download_url` stays valid; `None` if there is none."""
    destination: OnDemandDestination | None = field(default=None, metadata=_NULLABLE)
    """Where the output goes; `None` while it is unknown. `type` says which other fields are set."""
    created_at: datetime | None = field(default=None, metadata=_TIME)
    """When the job was created."""
    started_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When encoding started; `None` until then."""
    finished_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    """When the job ended, whatever its outcome; `None` until then."""
    failure_message: str | None = field(default=None, metadata=_NULLABLE)
    """Why the job failed, in prose; `None` unless it failed."""


@model
class OnDemandFolderIngestRequest(Model):
    """A folder to encode: one job for each video, at most `max_files`."""

    external_id_prefix: str | None = field(default=None, metadata=facts(max_length=200))
    """Prefix of each job's `external_id`, which is the prefix, a colon and the file name. At most 200 characters."""
    metadata: Mapping[str, Any] | None = None
    """Any JSON object of yours, returned with each job and in its webhooks."""
    codec: Codec | None = field(default=None, metadata=facts(default="h264"))
    """Video codec of the outputs. Default: `h264`."""
    resolution: Resolution | None = field(default=None, metadata=facts(default="1080p"))
    """Height of the outputs in pixels, such as `1080p`. Default: `1080p`."""
    fps: int | None = field(default=None, metadata=facts(minimum=1, maximum=120, default=30))
    """Frame rate of the outputs, in frames per second, from 1 to 120. Default: `30`."""
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    """Encoder speed. A slower preset takes more time and compresses better. Default: `fast`."""
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    """How high the bitrate of an output may be for its resolution. Default: `medium`."""
    passes: int | None = field(default=None, metadata=facts(minimum=1, maximum=2, default=1))
    """Number of encoding passes over each source, 1 or 2. Default: `1`."""
    optimize: Optimize | None = field(default=None, metadata=facts(default="none"))
    """With `vmaf`, the encoder aims for the score in `vmaf_target` rather than for a bitrate. Default: `none`."""
    vmaf_target: int | None = field(default=None, metadata=_VMAF)
    """VMAF score to aim for, a whole number from 50 to 99; only with `optimize` set to `vmaf`."""
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    """Container format of the outputs. Default: `mp4`."""
    quality: Quality | None = field(default=None, metadata=facts(default="better"))
    """Quality level of the outputs. Default: `better`."""
    priority: Priority | None = field(default=None, metadata=facts(default="normal"))
    """Priority in the queue. A job costs 1.5 times the base price at `normal`, and 2 times at `high`. Default:
    `normal`."""
    max_files: int | None = field(default=None, metadata=facts(minimum=1, maximum=1000))
    """Maximum number of files to queue, at most 1000. A later request cannot continue where this one stopped."""
    source_s3: S3FolderSource | None = None
    """A prefix to read videos from, in S3 or an S3-compatible store."""
    source_google_drive: GoogleDriveFolderSource | None = None
    """A Google Drive folder to read videos from."""
    source_dropbox: DropboxPath | None = None
    """No longer supported; the service answers 410 `deprecated_dropbox`."""
    output_destination: OutputDestination | None = field(default=None, metadata=facts(default="cdn"))
    """Where the outputs go. `cdn` keeps them for download, `s3` writes them as `output_s3` says, `google-drive` as
    `output_google_drive` says. Default: `cdn`."""
    output_s3: S3FolderOutput | None = None
    """A prefix to write outputs under, in S3 or an S3-compatible store."""
    output_google_drive: GoogleDriveOutput | None = None
    """A Google Drive folder to write outputs to."""
    output_dropbox: DropboxFolderOutput | None = None
    """No longer supported; the service answers 410 `deprecated_dropbox`."""


@model
class OnDemandFolderIngestItem(Model):
    """One file of the folder, and its job."""

    job_id: str | None = field(default=None, metadata=_UUID)
    """Id of the job."""
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    """The request's `external_id_prefix`, a colon and the file name; `None` if the request had no prefix."""
    file_name: str | None = None
    """Name of the source file."""


@model
class OnDemandFolderIngestResponse(Model):
    """The jobs that were queued from a folder."""

    message: str | None = None
    """What was done, in prose."""
    jobs: Sequence[OnDemandFolderIngestItem] | None = None
    """One entry for each file that was queued."""


@model
class OnDemandCancelResponse(Model):
    """The answer to `onDemandCancel`: how many tokens (neu) were released."""

    ok: bool | None = None
    """Whether the request succeeded."""
    released: float | None = None
    """Reserved tokens (neu) that are available again."""


# ---- chunked upload


@model
class StreamInitResponse(Model):
    """An open chunked upload."""

    ok: bool | None = None
    """Whether the request succeeded."""
    upload_id: str | None = None
    """Id of the multipart upload at the storage. The operations on the upload do not need it."""
    input_key: str | None = None
    """Storage key that the complete source will have."""


@model
class StreamPart(Model):
    """One part of a chunked upload, with the ETag that the storage gave it."""

    part_number: int | None = None
    """The `index` that the part was uploaded as, from 1 to 10000."""
    etag: str | None = None
    """The storage's ETag of the part."""


@model
class StreamFinalizeRequest(Model):
    """The parts that make up the file."""

    parts: Sequence[StreamPart] | None = None
    """The parts, each with the ETag that the storage gave it."""


# ---- public jobs, without authentication


@model
class PublicJobCreateRequest(Model):
    """A trial job, without an account: at most 720p and 60 frames per second."""

    codec: Codec
    """Video codec of the output."""
    resolution: PublicResolution
    """Height of the output in pixels, such as `1080p`."""
    fps: int = field(metadata=facts(minimum=1, maximum=60))
    """Frame rate of the output, in frames per second, from 1 to 60."""
    container: Container | None = None
    """Container format of the output."""
    source_url: str | None = field(default=None, metadata=_URI)
    """URL to fetch the source from. The answer then has no upload URL."""
