"""The table of tools: name, description, schemas, and whether the tool changes anything."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from convertrilo.mcp.calls import Arguments, ReportProgress
from convertrilo.mcp.folders import WAIT_MS
from convertrilo.mcp.schemas import Schema, answer_schema, object_schema, request_schema
from convertrilo.mcp.storage import StorageProfile
from convertrilo.mcp.toolbox import EXTRA_SETTINGS, LISTED, Toolbox
from convertrilo.models import (
    ApproveUnifiedRequest,
    BulkCreateRequest,
    BulkCreateResponse,
    JobCreateRequest,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    OnDemandStatusResponse,
    S3FolderSource,
    StatusResponse,
    TokenBalanceResponse,
)


@attrs.frozen(kw_only=True)
class Tool:
    """One row of the table."""

    name: str
    title: str
    description: str
    takes: Schema
    """The schema of the arguments."""
    gives: Schema
    """The schema of the result."""
    run: Callable[[Toolbox, Arguments, ReportProgress], Awaitable[dict[str, Any]]]
    reads_only: bool = False
    destroys: bool = False
    on_the_network: bool = True
    """Whether the tool talks to the service."""


_JOB_ID: Schema = {
    "type": "string",
    "minLength": 1,
    "description": "The job's id, from the result of the tool that made it.",
}
_TIMEOUT: Schema = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": 86_400_000,
    "default": WAIT_MS,
    "description": "Longest wait, in milliseconds.",
}
_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": "^[!-~]([ -~]*[!-~])?$",
    "description": "Your own key for this call. Repeating a key returns the same job. Without a key, the other "
    "arguments identify the job: the same arguments are the same job. To make the same job again, use another key.",
}
_REPLAYED: dict[str, Schema] = {
    "replayed": {
        "type": "boolean",
        "description": "Whether an earlier call sent this request; if so, nothing new was made, and this is the "
        "answer to that call.",
    },
    "idempotencyKey": {"type": "string", "description": "The key that the request was sent with."},
    "firstSentAt": {"type": "string", "description": "When the request was first sent."},
}
_NOTHING_TWICE = (
    "Repeating a call with the same arguments, even after a crash, makes no second job and sets `replayed`."
)


_COUNTS = {
    "listed": "Videos found, in all calls.",
    "passedOver": "Other objects that this call found.",
    "submitted": "Videos that have a job.",
    "succeeded": "Jobs known to have succeeded.",
    "failed": "Jobs known to have failed.",
    "canceled": "Jobs known to be canceled.",
    "refused": "Videos that cannot be encoded and have no job; `objects` says why.",
    "unknown": "Videos that may or may not have a job, because an answer was lost; `objects` has details.",
    "unfinished": "Jobs that have not ended, as far as known.",
    "bytes": "Size of all videos, in bytes.",
    "estimatedNeu": "Estimated price of all videos, in tokens.",
}
_FOLDER_ANSWER: Schema = {
    "type": "object",
    "properties": {
        "dryRun": {"type": "boolean", "description": "Whether this was a dry run, which makes no job."},
        **{name: {"type": "number", "description": text} for name, text in _COUNTS.items()},
        "reservedNeu": {"type": ["number", "null"], "description": "Tokens reserved for the jobs, if known."},
        "objects": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Some of the videos, those with problems first.",
        },
        "more": {"type": "boolean", "description": "Whether there are more videos than `objects` lists."},
        "confirmation": {"type": "string", "description": "Pass this in the next call to encode the new videos."},
        "replayed": {"type": "boolean", "description": "Whether all videos had their jobs before this call."},
    },
    "required": ["dryRun", *_COUNTS, "reservedNeu", "objects", "more"],
}


def _folder_schema(profiles: list[str]) -> Schema:
    """Return the schema of `ingest_folder`: a folder, and a job without the fields that each object sets."""
    source, job = request_schema(S3FolderSource, profiles), request_schema(JobCreateRequest, profiles)
    del source["properties"]["endpoint"]  # this machine lists the folder: only at the endpoints of storage profiles
    for name in ("externalId", "sourceUrl", "sourceS3", "originalFilename", "confirm"):
        del job["properties"][name]
    patterns = {"type": "array", "items": {"type": "string"}}
    wait = {"type": "boolean", "default": False, "description": "Whether to wait until all jobs have ended."}
    files = {"type": "integer", "minimum": 1, "description": "Most videos to encode."}
    further: dict[str, Schema] = {
        "sourceS3": source,
        "job": job,
        "include": {
            **patterns,
            "description": "Patterns that keys must match, such as `*.mov`; the default matches video files.",
        },
        "exclude": {**patterns, "description": "Patterns that keys must not match."},
        "maxFiles": files,
        "confirmation": {
            "type": "string",
            "description": "The confirmation that the dry run with the same arguments returned.",
        },
        "wait": wait,
        "timeoutMs": _TIMEOUT,
    }
    return object_schema(further, ["sourceS3", "job"])


def tools(profiles: Mapping[str, StorageProfile]) -> list[Tool]:
    """Return the tools, for a server with these storage profiles."""
    names = sorted(profiles)
    encode = request_schema(OnDemandEncodeRequest, names)
    settings = request_schema(ApproveUnifiedRequest, names)
    encode["properties"] |= {name: settings["properties"][name] for name in EXTRA_SETTINGS} | {"idempotencyKey": _KEY}
    bulk = request_schema(BulkCreateRequest, names)
    bulk["properties"]["idempotencyKey"] = _KEY
    wait = {
        "jobId": _JOB_ID,
        "timeoutMs": _TIMEOUT,
        "pollIntervalMs": {
            "type": "number",
            "exclusiveMinimum": 0,
            "deprecated": True,
            "description": "Has no effect: the job's progress decides how often its status is read.",
        },
    }
    limit = {
        "type": "integer",
        "minimum": 1,
        "maximum": 200,
        "default": LISTED,
        "description": "Most operations to list.",
    }
    job = answer_schema(StatusResponse, OnDemandStatusResponse, also={"jobId": {"type": "string"}})
    return [
        Tool(
            name="create_encode_job",
            title="Encode a video from a URL",
            description="Encode the video at a URL. Makes an on-demand job, which is queued and costs tokens at once. "
            f"The answer has its jobId; call wait_for_job next. {_NOTHING_TWICE}",
            takes=encode,
            gives=answer_schema(OnDemandEncodeResponse, also=_REPLAYED),
            run=Toolbox.create_encode_job,
        ),
        Tool(
            name="get_job_status",
            title="Read a job's status",
            description="Read a job's status: created, queued, running, success, failed or canceled. After success the "
            "answer has a downloadUrl, or the output is at the destination that the job named.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives=job,
            run=Toolbox.get_job_status,
            reads_only=True,
        ),
        Tool(
            name="wait_for_job",
            title="Wait for a job",
            description="Wait until a job has ended (success, failed or canceled) and read its status. Sends progress "
            "notifications. If the wait ends early, the job keeps running and can be waited for again.",
            takes=object_schema(wait, ["jobId"]),
            gives=job,
            run=Toolbox.wait_for_job,
            reads_only=True,
        ),
        Tool(
            name="cancel_job",
            title="Cancel a job",
            description="Cancel a job. A job that has ended is not changed. The answer has the job's status.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives={
                "type": "object",
                "properties": {
                    "jobId": {"type": "string"},
                    "canceled": {"type": "boolean", "description": "Whether the job is canceled now."},
                    "status": {"type": ["string", "null"]},
                    "released": {"type": ["number", "null"], "description": "Tokens that were released."},
                },
                "required": ["jobId", "canceled"],
            },
            run=Toolbox.cancel_job,
            destroys=True,
        ),
        Tool(
            name="get_token_balance",
            title="Read the token balance",
            description="Read the account's tokens: available, and reserved for jobs that have not ended.",
            takes=object_schema({}),
            gives=answer_schema(TokenBalanceResponse, also={}),
            run=Toolbox.get_token_balance,
            reads_only=True,
        ),
        Tool(
            name="create_jobs_bulk",
            title="Make many jobs",
            description="Make many jobs in one call; the answer has an outcome for each job. settings.dryRun only "
            "estimates the price. settings.confirm queues the jobs at once; without it they cost nothing yet. "
            f"{_NOTHING_TWICE} To retry failed jobs, make a new call with only those.",
            takes=bulk,
            gives=answer_schema(BulkCreateResponse, also=_REPLAYED),
            run=Toolbox.create_jobs_bulk,
        ),
        Tool(
            name="ingest_folder",
            title="Encode a folder in S3",
            description="Encode every video of a folder in S3. A call without `confirmation` is a dry run: it lists "
            "the folder, estimates the price, makes no job, and returns a `confirmation`. Show the user the result. "
            "Then call again with the same arguments and the confirmation to make and queue the jobs. Repeating that "
            "call makes no second job. `wait` waits until the jobs have ended. New files need another dry run.",
            takes=_folder_schema(names),
            gives=_FOLDER_ANSWER,
            run=Toolbox.ingest_folder,
        ),
        Tool(
            name="list_pending_operations",
            title="List operations without an answer",
            description="List the operations that were sent and have no answer, from this server's own record, for "
            "example after a crash. `pending`: call the tool again with the same arguments to get the answer; this "
            "makes no second job. `unknown`: the operation is too old to repeat safely, and only the user can find out "
            "whether it happened.",
            takes=object_schema({"limit": limit}),
            gives={
                "type": "object",
                "properties": {
                    "operations": {"type": "array", "items": {"type": "object"}},
                    "more": {"type": "boolean", "description": "Whether there are more operations than listed."},
                },
                "required": ["operations", "more"],
            },
            run=Toolbox.list_pending_operations,
            reads_only=True,
            on_the_network=False,
        ),
    ]
