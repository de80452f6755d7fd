"""What type checkers make of the public API; never run, only checked by mypy and pyright.

Each `type: ignore` marks a mistake that must be reported: if it no longer is, the comment itself is an error.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, assert_type

import convertrilo
from convertrilo import (
    APIError,
    AsyncClient,
    BulkCreateRequest,
    BulkCreateSettings,
    Clock,
    ConvertriloError,
    DecodeError,
    IngestProgress,
    IngestReport,
    IngestRow,
    JobCreateRequest,
    JobCreateResponse,
    JobUpload,
    Journal,
    MemoryDedupe,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    Operation,
    OutcomeUnknownError,
    RateLimitError,
    RetryPolicy,
    S3FolderSource,
    S3Source,
    SQLiteDedupe,
    StatusResponse,
    SubmitProgress,
    SubmittedJob,
    ValidationError,
    WebhookCreateRequest,
    WebhookReceiver,
    WebhookUpdateRequest,
    ingest_folder,
    reconcile,
)
from convertrilo.codec import from_request, read_answer, to_wire
from convertrilo.dask import DaskEngine
from convertrilo.dedupe import DedupeStore
from convertrilo.errors import Issue, api_error_class
from convertrilo.journal import Entry
from convertrilo.models import (
    BulkCreateItem,
    BulkCreateResponse,
    BulkStatusResponse,
    ConfirmRequest,
    OnDemandCancelResponse,
    OnDemandFolderIngestResponse,
    OnDemandStatusResponse,
    ProbeDurationResponse,
    TokenBalanceResponse,
    WebhookResponse,
)
from convertrilo.operations import CANCEL_JOB, CREATE_JOB, JOB_STATUS, OPERATIONS
from convertrilo.reconciliation import Reconciliation
from convertrilo.sandbox import Sandbox, VirtualClock

# ---- making models


def models_are_made_of_keywords() -> None:
    job = JobCreateRequest(codec="av1", resolution="720p", fps=24)
    assert_type(job, JobCreateRequest)
    JobCreateRequest(
        codec="h264",
        resolution="4320p",
        fps=30,
        container="mkv",
        passes=2,
        vmaf_target=93,
        source_s3=S3Source(bucket="b", key="k"),
        metadata={"a": [1, {"b": None}]},
        extra={"hdr": True},
    )
    JobCreateRequest(codec="av1", resolution="720p", fps=24, container=None)  # None is "not set"
    BulkCreateRequest(jobs=[job])
    BulkCreateRequest(jobs=(job, job))
    WebhookUpdateRequest()
    WebhookCreateRequest(url="https://a.example", events=["job.completed", "job.failed"])


def mistakes_in_making_models_are_found() -> None:
    JobCreateRequest()  # type: ignore[call-arg]
    JobCreateRequest(codec="av1", resolution="720p")  # type: ignore[call-arg]
    JobCreateRequest("av1", "720p", 24)  # type: ignore[call-arg, arg-type]
    JobCreateRequest(codec="vp9", resolution="720p", fps=24)  # type: ignore[arg-type]
    JobCreateRequest(codec="av1", resolution="720", fps=24)  # type: ignore[arg-type]
    JobCreateRequest(codec="av1", resolution="720p", fps="24")  # type: ignore[arg-type]
    JobCreateRequest(codec="av1", resolution="720p", fps=24, passes=3)  # type: ignore[arg-type]
    JobCreateRequest(codec="av1", resolution="720p", fps=24, hdr=True)  # type: ignore[call-arg]
    JobCreateRequest(codec="av1", resolution="720p", fps=24, sourceUrl="https://a.example")  # type: ignore[call-arg]
    JobCreateRequest(codec="av1", resolution="720p", fps=24, source_s3={"bucket": "b"})  # type: ignore[arg-type]
    OnDemandEncodeRequest(source_url="https://a.example", resolution="4320p")  # type: ignore[arg-type]
    BulkCreateRequest(jobs=JobCreateRequest(codec="av1", resolution="720p", fps=24))  # type: ignore[arg-type]
    WebhookCreateRequest(url="https://a.example", events=["webhook.test"])  # type: ignore[list-item]


def models_are_frozen(job: JobCreateRequest) -> None:
    job.fps = 30  # type: ignore[misc]
    job.hdr = True  # type: ignore[attr-defined]


# ---- reading models


def fields_have_their_types(job: JobCreateRequest, made: JobCreateResponse, status: StatusResponse) -> None:
    assert_type(job.codec, Literal["h264", "h265", "av1"])
    assert_type(job.fps, int)
    assert_type(job.passes, Literal[1, 2] | None)
    assert_type(job.metadata, Mapping[str, Any] | None)
    assert_type(job.extra, Mapping[str, Any])
    assert_type(made.job_id, str)
    assert_type(made.upload, JobUpload | None)
    assert_type(status.status, str | None)
    assert_type(status.pct, float | None)
    assert_type(status.created_at, datetime | None)
    repr(made.upload.url)  # type: ignore[union-attr]
    repr(status.created_at.year)  # type: ignore[union-attr]


def lists_are_read_only(answer: BulkCreateResponse) -> None:
    assert_type(answer.jobs, Sequence[BulkCreateItem] | None)
    if answer.jobs:
        assert_type(answer.jobs[0].job_id, str | None)
        answer.jobs.append(answer.jobs[0])  # type: ignore[attr-defined]


# ---- the codec and the table


def the_codec_returns_what_was_asked_for(job: JobCreateRequest) -> None:
    assert_type(to_wire(job), dict[str, Any])
    assert_type(read_answer(StatusResponse, b"{}"), StatusResponse)
    assert_type(from_request(JobCreateRequest, {}), JobCreateRequest)
    read_answer(dict, b"{}")  # type: ignore[type-var]
    to_wire({})  # type: ignore[arg-type]


def rows_know_their_answers() -> None:
    assert_type(CREATE_JOB, Operation[JobCreateResponse])
    assert_type(JOB_STATUS, Operation[StatusResponse])
    assert_type(CANCEL_JOB, Operation[None])
    assert_type(OPERATIONS, Mapping[str, Operation[Any]])
    CREATE_JOB.id = "other"  # type: ignore[misc]


# ---- the client


async def methods_return_their_models(client: AsyncClient, job: JobCreateRequest) -> None:
    assert_type(await client.create_job(job), JobCreateResponse)
    assert_type(await client.create_job(job, operation="holiday"), JobCreateResponse)
    assert_type(await client.create_job({"codec": "av1", "resolution": "720p", "fps": 24}), JobCreateResponse)
    assert_type(await client.create_jobs_bulk(BulkCreateRequest(jobs=[job]), idempotency_key="k"), BulkCreateResponse)
    assert_type(await client.job_status("id"), StatusResponse)
    assert_type(await client.find_job("id"), StatusResponse | OnDemandStatusResponse)
    assert_type(await client.bulk_status(["id"]), BulkStatusResponse)
    assert_type(await client.probe_duration("id"), ProbeDurationResponse)
    assert_type(await client.get_balance(), TokenBalanceResponse)
    assert_type(await client.on_demand_encode({"sourceUrl": "https://a.example"}), OnDemandEncodeResponse)
    assert_type(await client.on_demand_ingest_folder({}), OnDemandFolderIngestResponse)
    assert_type(await client.on_demand_cancel("id"), OnDemandCancelResponse)
    assert_type(await client.update_webhook("id", WebhookUpdateRequest(is_active=True)), WebhookResponse)
    assert_type(await client.confirm_public_job("id", ConfirmRequest(container="mp4")), None)
    assert_type(await client.upload_chunk("id", 1, b""), None)
    async with client as entered:
        assert_type(entered, AsyncClient)
    assert_type(client.with_options(retry=RetryPolicy.none(), timeout=3), AsyncClient)


async def mistakes_in_calls_are_found(client: AsyncClient, job: JobCreateRequest) -> None:
    await client.create_job()  # type: ignore[call-arg]
    await client.create_job(ConfirmRequest())  # type: ignore[arg-type]
    await client.create_job(job, "key")  # type: ignore[call-arg]
    await client.create_job(job, key="k")  # type: ignore[call-arg]
    await client.confirm_job("id", ConfirmRequest(), operation="holiday")  # type: ignore[call-arg]
    await client.job_status(7)  # type: ignore[arg-type]
    await client.job_status(None)  # type: ignore[arg-type]
    await client.upload_chunk("id", "1", b"")  # type: ignore[arg-type]
    await client.encode(job)  # type: ignore[attr-defined]
    AsyncClient("key", "https://a.example")  # type: ignore[call-arg, arg-type]


def a_client_takes_tokens_in_three_ways() -> None:
    async def fresh() -> str:
        return "token"

    AsyncClient("key")
    AsyncClient(get_token=lambda: "token")
    AsyncClient(get_token=fresh)
    AsyncClient(get_token="token")  # type: ignore[arg-type]


# ---- flows


def one_clock_serves_them_all() -> None:
    clock: Clock = VirtualClock()
    AsyncClient(clock=clock)
    Journal("jobs.db", clock=clock)
    Sandbox(clock=clock)
    SQLiteDedupe("webhooks.db", clock=clock)
    WebhookReceiver("secret", print, clock=clock)
    AsyncClient(clock=time)  # type: ignore[arg-type]


async def journals_and_stores_say_what_they_hold(client: AsyncClient, journal: Journal, store: DedupeStore) -> None:
    async for entry in journal.pending():
        assert_type(entry, Entry)
        assert_type(entry.answer, bytes | None)
    assert_type(await reconcile(client, journal, print, dedupe=store), Reconciliation)
    assert_type(await store.claim(("job", "job.completed")), Literal["mine", "done", "busy"])
    for own in (MemoryDedupe(), SQLiteDedupe("webhooks.db")):
        store = own


async def submitted_jobs_say_what_became_of_them(client: AsyncClient, job: JobCreateRequest) -> None:
    async for submitted in client.submit_jobs([job, {"codec": "av1", "resolution": "720p", "fps": 24}]):
        assert_type(submitted, SubmittedJob)
        assert_type(submitted.job_id, str | None)
        assert_type(submitted.error, ConvertriloError | None)
        assert_type(submitted.estimate, float | None)
    client.submit_jobs(job for _ in range(3))
    client.submit_jobs(job)  # type: ignore[arg-type]
    client.submit_jobs([job], settings=BulkCreateSettings(confirm=True), on_progress=_show)


def _show(progress: SubmitProgress) -> None:
    assert_type(progress.submitted, int)


async def a_folder_becomes_a_report(client: AsyncClient, job: JobCreateRequest) -> None:
    report = await ingest_folder(client, "s3://films/2026/", job, journal="run.db", wait=True, on_progress=_show_ingest)
    assert_type(report, IngestReport)
    assert_type(report.succeeded, int)
    async for row in report.rows():
        assert_type(row, IngestRow)
        assert_type(row.job_id, str | None)
    await report.write("out.csv")
    await ingest_folder(client, S3FolderSource(bucket="films"), {"codec": "av1"}, journal=Journal("run.db"))
    await ingest_folder(client, "s3://films", job, journal="run.db", engine=DaskEngine("tcp://scheduler:8786"))
    await ingest_folder(client, "s3://films", job)  # type: ignore[call-arg]
    await ingest_folder(client, "s3://films", job, journal="run.db", engine="tcp://x")  # type: ignore[arg-type]


def _show_ingest(progress: IngestProgress) -> None:
    assert_type(progress.is_listed, bool)


# ---- errors


def errors_have_their_attributes(error: ConvertriloError) -> None:
    assert_type(error.operation, str | None)
    assert_type(error.idempotency_key, str | None)
    assert_type(error.attempts, int)
    repr(error.status)  # type: ignore[attr-defined]
    if isinstance(error, APIError):
        assert_type(error.status, int)
        assert_type(error.code, str)
        assert_type(error.required_scope, str | None)
        assert_type(error.available, float | None)
    if isinstance(error, RateLimitError):
        assert_type(error.retry_after, float | None)
    if isinstance(error, ValidationError):
        assert_type(error.issues, tuple[Issue, ...])
    if isinstance(error, DecodeError):
        assert_type(error.start, bytes)
    if isinstance(error, OutcomeUnknownError):
        assert_type(error.find_out, str)
    assert_type(api_error_class(404, "not_found"), type[APIError])


def the_package_has_a_version() -> None:
    assert_type(convertrilo.__version__, str)
    assert_type(convertrilo.derive_key("createJob", {}), str)
