"""The contract's schemas as frozen attrs classes, validated when they are made.

Fields are snake_case here; `codec` alone knows their names on the wire. In a request, `None` means "not set", and what
is not set is not sent. In an answer, `None` means absent or null. Every class takes `extra={...}`, wire-shaped fields
that this version does not know, and shows those of an answer as `.extra`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from attrs import field

from convertrilo._model import Model, facts, model

# ---- the values that the contract allows

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
"""The statuses after which a job does not change any more."""


# ---- facts that many fields share

_NULLABLE = facts(nullable=True)
_SECRET = facts(secret=True)
_PASSWORD = facts(secret=True, format="password")
_UUID = facts(format="uuid")  # an annotation only: nothing promises that every id is one
_URI = facts(format="uri", signed=True)
_SIGNED = facts(signed=True)
_TIME = facts(format="date-time")
_NULLABLE_TIME = facts(format="date-time", nullable=True)
_VMAF = facts(minimum=50, maximum=99)


# ---- auth and tokens


@model
class AuthLoginRequest(Model):
    """E-mail address and password (at least 8 characters), for `login`."""

    email: str = field(metadata=facts(format="email"))
    password: str = field(metadata=facts(secret=True, min_length=8))


@model
class AuthLoginResponse(Model):
    """The bearer token to work with, and the one to renew it with."""

    access_token: str | None = field(default=None, metadata=_SECRET)
    refresh_token: str | None = field(default=None, metadata=_SECRET)


@model
class TokenBalanceResponse(Model):
    """What the account has, in tokens (neu)."""

    available: float | None = None
    reserved: float | None = None
    trial_grant_remaining: float | None = None
    trial_expires_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)


@model
class TokenReserveRequest(Model):
    """How many tokens (neu) to reserve for a job, or to release from it."""

    job_id: str = field(metadata=_UUID)
    amount: int = field(metadata=facts(minimum=1))


@model
class TokenDeductRequest(Model):
    """How many tokens (neu) to spend on a job."""

    job_id: str = field(metadata=_UUID)
    amount: int = field(metadata=facts(minimum=1))


# ---- jobs


@model
class S3Source(Model):
    """An object in S3 or an S3-compatible store (`endpoint`, `force_path_style`)."""

    bucket: str | None = None
    key: str | None = None
    endpoint: str | None = field(default=None, metadata=_SIGNED)
    region: str | None = None
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    secret_access_key: str | None = field(default=None, metadata=_SECRET)
    force_path_style: bool | None = None


@model
class JobCreateRequest(Model):
    """A job to encode one video: uploaded, or fetched from `source_url` or `source_s3`."""

    external_id: str | None = field(default=None, metadata=facts(max_length=255))
    metadata: Mapping[str, Any] | None = None
    codec: Codec
    resolution: Resolution
    fps: int = field(metadata=facts(minimum=1, maximum=240))
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    passes: Passes | None = field(default=None, metadata=facts(default=1))
    policy: Policy | None = field(default=None, metadata=facts(default="gpu_first"))
    quality: Quality | None = None
    source_url: str | None = field(default=None, metadata=_URI)
    original_filename: str | None = None
    source_s3: S3Source | None = None
    confirm: bool | None = field(default=None, metadata=facts(default=False))
    optimize: Optimize | None = None
    vmaf_target: float | None = field(default=None, metadata=_VMAF)


@model
class JobUpload(Model):
    """Where to PUT the file: a presigned `url`, which is itself the permission to write `key`."""

    url: str | None = field(default=None, metadata=_SIGNED)
    key: str | None = None


@model
class JobOutput(Model):
    """Where the encoded file will be."""

    key: str | None = None
    public_url: str | None = None


@model
class JobEstimate(Model):
    """What the job is expected to cost, in tokens (neu)."""

    neu: float | None = None
    total_neu: float | None = None
    reserved: float | None = None


@model
class JobCreateResponse(Model):
    """A job that exists now; `upload` is there when it waits for its file."""

    job_id: str
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    status: str | None = None
    upload: JobUpload | None = field(metadata=_NULLABLE)
    output: JobOutput
    estimate: JobEstimate | None = None


@model
class ProbeDurationResponse(Model):
    """How long the uploaded video is."""

    duration_sec: float | None = None
    duration_minutes: float | None = None


@model
class ApproveUnifiedRequest(Model):
    """Settings to approve a job with; what is not set stays as it was created."""

    codec: Codec | None = None
    resolution: str | None = None
    fps: int | None = None
    preset: Preset | None = None
    bitrate_tier: BitrateTier | None = None
    passes: Passes | None = None
    policy: Policy | None = None
    container: Container | None = None
    quality: Quality | None = None
    optimize: Optimize | None = None
    vmaf_target: float | None = field(default=None, metadata=_VMAF)


@model
class ApproveEstimate(Model):
    """What an approved job costs (tokens, neu) and for how many seconds of video."""

    per_minute_neu: float | None = None
    duration_sec: float | None = None
    total_neu: float | None = None
    reserved: float | None = None


@model
class ApproveUnifiedResponse(Model):
    """The answer to `approveUnified`: the job is probed and its tokens are reserved; it is not queued yet."""

    ok: bool | None = None
    estimate: ApproveEstimate | None = None


@model
class ConfirmRequest(Model):
    """Last settings before a job is queued."""

    container: Container | None = None
    quality: Quality | None = None
    optimize: Optimize | None = None
    vmaf_target: float | None = field(default=None, metadata=facts(minimum=1, maximum=100))


@model
class ConfirmResponse(Model):
    """The answer to `confirmJob`: the job is queued."""

    ok: bool | None = None


@model
class StatusResponse(Model):
    """Where a job stands: `created`, `queued`, `running` (`pct` 0 to 100), `success`, `failed` or `canceled`."""

    id: str | None = None
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    status: str | None = None
    ingest: str | None = field(default=None, metadata=_NULLABLE)
    output: JobOutput | None = field(default=None, metadata=_NULLABLE)
    download_url: str | None = field(default=None, metadata=facts(nullable=True, signed=True))
    encoder: str | None = field(default=None, metadata=_NULLABLE)
    pct: float | None = field(default=None, metadata=_NULLABLE)
    created_at: datetime | None = field(default=None, metadata=_TIME)
    started_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    finished_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    failure_message: str | None = field(default=None, metadata=_NULLABLE)


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
    message: str
    issues: Any = None
    required_scope: str | None = None
    required: float | None = None
    available: float | None = None


# ---- bulk


@model
class BulkCreateSettings(Model):
    """Settings for all jobs of a bulk request; `dry_run` estimates and creates nothing, `confirm` queues."""

    fail_fast: bool | None = field(default=None, metadata=facts(default=False))
    dry_run: bool | None = field(default=None, metadata=facts(default=False))
    confirm: bool | None = field(default=None, metadata=facts(default=False))
    container: Container | None = None
    quality: Quality | None = None
    optimize: Optimize | None = None
    vmaf_target: float | None = field(default=None, metadata=_VMAF)


@model
class BulkCreateRequest(Model):
    """Many jobs in one request."""

    jobs: Sequence[JobCreateRequest]
    settings: BulkCreateSettings | None = None


@model
class BulkItemEstimate(Model):
    """What one job of a bulk request is expected to cost, in tokens (neu)."""

    neu: float | None = None


@model
class BulkCreateItem(Model):
    """How one job of a bulk request fared: `job_id`, or `error`."""

    index: int | None = None
    job_id: str | None = field(default=None, metadata=_UUID)
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    status: str | None = None
    error: str | None = None
    estimate: BulkItemEstimate | None = None


@model
class BulkCreateResponse(Model):
    """How a bulk request fared, job by job, and its cost in tokens (neu)."""

    total_jobs: int | None = None
    total_estimated_neu: float | None = None
    reserved: float | None = None
    jobs: Sequence[BulkCreateItem] | None = None


@model
class BulkStatusResponse(Model):
    """The jobs asked for, and the ids that are `missing`."""

    jobs: Sequence[StatusResponse] | None = None
    missing: Sequence[str] | None = None


@model
class BulkConfirmSettings(Model):
    """Last settings before the jobs are queued."""

    container: Container | None = None
    quality: Quality | None = None


@model
class BulkConfirmRequest(Model):
    """Which jobs to queue."""

    job_ids: Sequence[str] = field(metadata=_UUID)
    settings: BulkConfirmSettings | None = None


@model
class BulkConfirmResponse(Model):
    """How many jobs were queued; `jobs` holds one object for each, as the service sends it."""

    queued: int | None = None
    jobs: Sequence[Mapping[str, Any]] | None = None


# ---- API keys


@model
class ApiKeyCreateRequest(Model):
    """A new API key: its name, what it may do, and for how many days."""

    name: str
    scopes: Sequence[Scope] | None = None
    expires_in_days: int | None = field(default=None, metadata=facts(minimum=1, maximum=365))


@model
class ApiKeyResponse(Model):
    """An API key; `key` itself is there on creation only."""

    id: str | None = field(default=None, metadata=_UUID)
    name: str | None = None
    key: str | None = field(default=None, metadata=_SECRET)
    prefix: str | None = None
    scopes: Sequence[str] | None = None
    expires_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    created_at: datetime | None = field(default=None, metadata=_TIME)


@model
class ApiKeyListResponse(Model):
    """All API keys of the account."""

    keys: Sequence[ApiKeyResponse] | None = None


# ---- webhooks


@model
class WebhookCreateRequest(Model):
    """Where to send which events."""

    url: str = field(metadata=_URI)
    events: Sequence[WebhookEventName]


@model
class WebhookUpdateRequest(Model):
    """What to change of a webhook; `is_active=True` switches one on again."""

    url: str | None = field(default=None, metadata=_URI)
    events: Sequence[WebhookEventName] | None = None
    is_active: bool | None = None


@model
class WebhookResponse(Model):
    """A webhook; `secret`, which its deliveries are signed with, is there on creation only."""

    id: str | None = field(default=None, metadata=_UUID)
    url: str | None = field(default=None, metadata=_SIGNED)
    events: Sequence[str] | None = None
    secret: str | None = field(default=None, metadata=_SECRET)
    is_active: bool | None = None
    failure_count: int | None = None
    last_triggered_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    last_failed_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    created_at: datetime | None = field(default=None, metadata=_TIME)


@model
class WebhookListResponse(Model):
    """All webhooks of the account."""

    webhooks: Sequence[WebhookResponse] | None = None


@model
class WebhookDeliveryResponse(Model):
    """One attempt to deliver an event; `response_body` and `error` are cut at 2048 characters."""

    id: str | None = field(default=None, metadata=_UUID)
    webhook_id: str | None = field(default=None, metadata=_UUID)
    event: str | None = None
    job_id: str | None = field(default=None, metadata=facts(format="uuid", nullable=True))
    status: str | None = field(default=None, metadata=facts(known=("success", "failed")))
    status_code: int | None = field(default=None, metadata=_NULLABLE)
    duration_ms: int | None = field(default=None, metadata=_NULLABLE)
    response_body: str | None = field(default=None, metadata=_NULLABLE)
    error: str | None = field(default=None, metadata=_NULLABLE)
    attempt: int | None = None
    next_retry_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    retried_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    created_at: datetime | None = field(default=None, metadata=_TIME)


@model
class WebhookDeliveryListResponse(Model):
    """The last attempts to deliver, at most 50."""

    deliveries: Sequence[WebhookDeliveryResponse] | None = None


# ---- on-demand


@model
class S3Output(Model):
    """The object to write the encoded file to, in S3 or an S3-compatible store."""

    bucket: str
    key: str
    endpoint: str | None = field(default=None, metadata=_URI)
    region: str | None = None
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    force_path_style: bool | None = None


@model
class S3FolderSource(Model):
    """A prefix to read videos from, in S3 or an S3-compatible store."""

    bucket: str
    prefix: str | None = field(default=None, metadata=facts(default=""))
    endpoint: str | None = field(default=None, metadata=_URI)
    region: str | None = None
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    force_path_style: bool | None = field(default=None, metadata=facts(default=True))


@model
class S3FolderOutput(Model):
    """A prefix to write encoded files under; the source's file name is appended."""

    bucket: str
    prefix: str | None = field(default=None, metadata=facts(default="outputs/"))
    endpoint: str | None = field(default=None, metadata=_URI)
    region: str | None = None
    access_key_id: str | None = field(default=None, metadata=_SECRET)
    secret_access_key: str | None = field(default=None, metadata=_PASSWORD)
    force_path_style: bool | None = field(default=None, metadata=facts(default=True))


@model
class GoogleDriveFolderSource(Model):
    """A Google Drive folder to read videos from."""

    folder_id: str
    access_token: str | None = field(default=None, metadata=_SECRET)
    refresh_token: str | None = field(default=None, metadata=_SECRET)


@model
class GoogleDriveOutput(Model):
    """A Google Drive folder to write the encoded file to."""

    folder_id: str
    file_name: str | None = None
    access_token: str | None = field(default=None, metadata=_SECRET)
    refresh_token: str | None = field(default=None, metadata=_SECRET)


@model
class DropboxPath(Model):
    """A Dropbox path. The service no longer offers Dropbox: it answers 410 `deprecated_dropbox`."""

    path: str | None = None
    access_token: str | None = field(default=None, metadata=_SECRET)


@model
class DropboxFolderOutput(Model):
    """A Dropbox folder. The service no longer offers Dropbox: it answers 410 `deprecated_dropbox`."""

    path: str | None = None


@model
class OnDemandEncodeRequest(Model):
    """Encode the video at `source_url` at once, without an upload; `output_expiry` is in seconds."""

    source_url: str = field(metadata=_URI)
    external_id: str | None = field(default=None, metadata=facts(max_length=255))
    metadata: Mapping[str, Any] | None = None
    codec: Codec | None = field(default=None, metadata=facts(default="h264"))
    resolution: OnDemandResolution | None = field(default=None, metadata=facts(default="1080p"))
    fps: int | None = field(default=None, metadata=facts(minimum=1, maximum=120, default=30))
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    quality: Quality | None = field(default=None, metadata=facts(default="better"))
    priority: Priority | None = field(default=None, metadata=facts(default="normal"))
    output_expiry: int | None = field(default=None, metadata=facts(minimum=3600, maximum=604800, default=86400))
    webhook: str | None = field(default=None, metadata=_URI)
    output_s3: S3Output | None = None
    output_google_drive: GoogleDriveOutput | None = None
    output_dropbox: DropboxPath | None = None


@model
class OnDemandPricing(Model):
    """What an on-demand job costs, in tokens (neu); `multiplier` is on the base price."""

    base_per_minute: float | None = None
    on_demand_per_minute: float | None = None
    multiplier: float | None = None
    total_neu: float | None = None
    reserved: float | None = None


@model
class OnDemandEncodeResponse(Model):
    """An on-demand job that is queued; `estimated_duration` is in seconds."""

    job_id: str = field(metadata=_UUID)
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    status: str
    estimated_duration: int | None = None
    pricing: OnDemandPricing | None = None
    status_url: str
    webhook: str | None = field(default=None, metadata=facts(nullable=True, signed=True))


@model
class OnDemandDestination(Model):
    """Where the output went: `type` is `cdn`, `s3` (`bucket`, `key`) or `google-drive` (`folder_id`, `file_name`)."""

    type: str | None = field(default=None, metadata=facts(known=("cdn", "s3", "google-drive")))
    bucket: str | None = None
    key: str | None = None
    folder_id: str | None = None
    file_name: str | None = field(default=None, metadata=_NULLABLE)


@model
class OnDemandStatusResponse(Model):
    """Where an on-demand job stands; `progress` is 0 to 100, `expires_in` seconds of life left in `download_url`."""

    job_id: str | None = field(default=None, metadata=_UUID)
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    metadata: Mapping[str, Any] | None = field(default=None, metadata=_NULLABLE)
    source_filename: str | None = field(default=None, metadata=_NULLABLE)
    output_filename: str | None = field(default=None, metadata=_NULLABLE)
    status: str | None = None
    progress: float | None = field(default=None, metadata=_NULLABLE)
    encoder: str | None = field(default=None, metadata=_NULLABLE)
    download_url: str | None = field(default=None, metadata=facts(nullable=True, signed=True))
    expires_in: int | None = field(default=None, metadata=_NULLABLE)
    destination: OnDemandDestination | None = field(default=None, metadata=_NULLABLE)
    created_at: datetime | None = field(default=None, metadata=_TIME)
    started_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    finished_at: datetime | None = field(default=None, metadata=_NULLABLE_TIME)
    failure_message: str | None = field(default=None, metadata=_NULLABLE)


@model
class OnDemandFolderIngestRequest(Model):
    """Encode every video of one folder, at most `max_files`; external ids are `external_id_prefix:file name`."""

    external_id_prefix: str | None = field(default=None, metadata=facts(max_length=200))
    metadata: Mapping[str, Any] | None = None
    codec: Codec | None = field(default=None, metadata=facts(default="h264"))
    resolution: Resolution | None = field(default=None, metadata=facts(default="1080p"))
    fps: int | None = field(default=None, metadata=facts(minimum=1, maximum=120, default=30))
    preset: Preset | None = field(default=None, metadata=facts(default="fast"))
    bitrate_tier: BitrateTier | None = field(default=None, metadata=facts(default="medium"))
    passes: int | None = field(default=None, metadata=facts(minimum=1, maximum=2, default=1))
    optimize: Optimize | None = field(default=None, metadata=facts(default="none"))
    vmaf_target: int | None = field(default=None, metadata=_VMAF)
    container: Container | None = field(default=None, metadata=facts(default="mp4"))
    quality: Quality | None = field(default=None, metadata=facts(default="better"))
    priority: Priority | None = field(default=None, metadata=facts(default="normal"))
    max_files: int | None = field(default=None, metadata=facts(minimum=1, maximum=1000))
    source_s3: S3FolderSource | None = None
    source_google_drive: GoogleDriveFolderSource | None = None
    source_dropbox: DropboxPath | None = None
    output_destination: OutputDestination | None = field(default=None, metadata=facts(default="cdn"))
    output_s3: S3FolderOutput | None = None
    output_google_drive: GoogleDriveOutput | None = None
    output_dropbox: DropboxFolderOutput | None = None


@model
class OnDemandFolderIngestItem(Model):
    """One file of the folder, and its job."""

    job_id: str | None = field(default=None, metadata=_UUID)
    external_id: str | None = field(default=None, metadata=_NULLABLE)
    file_name: str | None = None


@model
class OnDemandFolderIngestResponse(Model):
    """The jobs that were queued for a folder."""

    message: str | None = None
    jobs: Sequence[OnDemandFolderIngestItem] | None = None


@model
class OnDemandCancelResponse(Model):
    """The answer to `onDemandCancel`: how many tokens (neu) were released."""

    ok: bool | None = None
    released: float | None = None


# ---- chunked upload


@model
class StreamInitResponse(Model):
    """A chunked upload that is open."""

    ok: bool | None = None
    upload_id: str | None = None
    input_key: str | None = None


@model
class StreamPart(Model):
    """One part of a chunked upload, and the ETag it was stored under."""

    part_number: int | None = None
    etag: str | None = None


@model
class StreamFinalizeRequest(Model):
    """The parts that make up the file."""

    parts: Sequence[StreamPart] | None = None


# ---- public jobs, without authentication


@model
class PublicJobCreateRequest(Model):
    """A small job for anybody."""

    codec: Codec
    resolution: PublicResolution
    fps: int = field(metadata=facts(minimum=1, maximum=60))
    container: Container | None = None
    source_url: str | None = field(default=None, metadata=_URI)
