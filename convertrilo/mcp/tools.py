"""The tools, each declared once: what it is called, what it takes and gives, and whether it changes anything."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from convertrilo.mcp.calls import Arguments, Tell
from convertrilo.mcp.folders import WAIT_MS
from convertrilo.mcp.schemas import Schema, answer_schema, object_schema, request_schema
from convertrilo.mcp.storage import Profile
from convertrilo.mcp.toolbox import LISTED, PASSED_ON, Toolbox
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
    """One row: everything that is particular to a tool."""

    name: str
    title: str
    description: str
    takes: Schema
    gives: Schema
    run: Callable[[Toolbox, Arguments, Tell], Awaitable[dict[str, Any]]]
    reads_only: bool = False
    destroys: bool = False
    on_the_network: bool = True


_JOB_ID: Schema = {"type": "string", "minLength": 1, "description": "The job's id, as the tool that made it answered."}
_TIMEOUT: Schema = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": 86_400_000,
    "default": WAIT_MS,
    "description": "Milliseconds to wait at most.",
}
_KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": "^[!-~]([ -~]*[!-~])?$",
    "description": "Your own name for what is to be done once. Without one, the other arguments are its identity: the "
    "same arguments again are the same job. Give another key to have the same made once more.",
}
_REPLAYED: dict[str, Schema] = {
    "replayed": {
        "type": "boolean",
        "description": "Whether an earlier call began this: then this is that call's answer, and nothing new was made.",
    },
    "idempotencyKey": {"type": "string", "description": "The key that it was sent under."},
    "firstSentAt": {"type": "string", "description": "When it was sent first."},
}
_NOTHING_TWICE = (
    "Repeating a call with the same arguments, even after a crash, makes nothing twice: `replayed` is then true."
)


_COUNTS = {
    "listed": "Videos that were found, in all calls.",
    "passedOver": "Other objects that this call has seen.",
    "submitted": "Videos that have a job.",
    "succeeded": "Jobs that are known to have succeeded.",
    "failed": "Jobs that are known to have failed.",
    "canceled": "Jobs that are known to be canceled.",
    "refused": "Videos that have no job because something is wrong; `objects` says what.",
    "unknown": "Videos that may have a job or not, because its answer is lost; `objects` says more.",
    "unfinished": "Jobs whose end is not known.",
    "bytes": "Size of all videos.",
    "estimatedNeu": "Estimated price of all of them, in tokens.",
}
_FOLDER_ANSWER: Schema = {
    "type": "object",
    "properties": {
        "dryRun": {"type": "boolean", "description": "Whether nothing was made."},
        **{name: {"type": "number", "description": text} for name, text in _COUNTS.items()},
        "reservedNeu": {"type": ["number", "null"], "description": "Tokens that are reserved for the jobs, if known."},
        "objects": {"type": "array", "items": {"type": "object"}, "description": "Some of the videos, bad ones first."},
        "more": {"type": "boolean", "description": "Whether there are more than `objects` shows."},
        "confirmation": {"type": "string", "description": "To be given back to have the new ones encoded."},
        "replayed": {"type": "boolean", "description": "Whether all of them had their jobs before this call."},
    },
    "required": ["dryRun", *_COUNTS, "reservedNeu", "objects", "more"],
}


def _folder_schema(profiles: list[str]) -> Schema:
    """Return what `ingest_folder` takes: a folder, and a job without what each object brings itself."""
    source, job = request_schema(S3FolderSource, profiles), request_schema(JobCreateRequest, profiles)
    del source["properties"]["endpoint"]  # listed from this machine, so at places only that the user has named
    for name in ("externalId", "sourceUrl", "sourceS3", "originalFilename", "confirm"):
        del job["properties"][name]
    patterns = {"type": "array", "items": {"type": "string"}}
    wait = {"type": "boolean", "default": False, "description": "Whether to wait until all jobs have ended."}
    files = {"type": "integer", "minimum": 1, "description": "Most videos to take."}
    further: dict[str, Schema] = {
        "sourceS3": source,
        "job": job,
        "include": {**patterns, "description": "Patterns that keys must match (`*.mov`); by default those of videos."},
        "exclude": {**patterns, "description": "Patterns that keys must not match."},
        "maxFiles": files,
        "confirmation": {"type": "string", "description": "What the dry run with the same arguments gave."},
        "wait": wait,
        "timeoutMs": _TIMEOUT,
    }
    return object_schema(further, ["sourceS3", "job"])


def tools(profiles: Mapping[str, Profile]) -> list[Tool]:
    """Return the tools, for the storage profiles that there are."""
    names = sorted(profiles)
    encode = request_schema(OnDemandEncodeRequest, names)
    settings = request_schema(ApproveUnifiedRequest, names)
    encode["properties"] |= {name: settings["properties"][name] for name in PASSED_ON} | {"idempotencyKey": _KEY}
    bulk = request_schema(BulkCreateRequest, names)
    bulk["properties"]["idempotencyKey"] = _KEY
    wait = {
        "jobId": _JOB_ID,
        "timeoutMs": _TIMEOUT,
        "pollIntervalMs": {
            "type": "number",
            "exclusiveMinimum": 0,
            "deprecated": True,
            "description": "Has no effect: how often the status is read follows the job's progress.",
        },
    }
    limit = {"type": "integer", "minimum": 1, "maximum": 200, "default": LISTED, "description": "Most to list."}
    job = answer_schema(StatusResponse, OnDemandStatusResponse, also={"jobId": {"type": "string"}})
    return [
        Tool(
            name="create_encode_job",
            title="Encode a video from a URL",
            description="Encode the video at a URL: makes an on-demand job, which is queued and costs tokens at once. "
            f"The answer has its jobId; use wait_for_job next. {_NOTHING_TWICE}",
            takes=encode,
            gives=answer_schema(OnDemandEncodeResponse, also=_REPLAYED),
            run=Toolbox.create_encode_job,
        ),
        Tool(
            name="get_job_status",
            title="Read a job's status",
            description="Read where a job stands: created, queued, running, success, failed or canceled. After success "
            "it has a downloadUrl, or the output is where it was to be put.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives=job,
            run=Toolbox.get_job_status,
            reads_only=True,
        ),
        Tool(
            name="wait_for_job",
            title="Wait for a job",
            description="Wait until a job has ended (success, failed or canceled) and read its status, with progress "
            "notifications meanwhile. Ending the wait does not end the job; it can be waited for again.",
            takes=object_schema(wait, ["jobId"]),
            gives=job,
            run=Toolbox.wait_for_job,
            reads_only=True,
        ),
        Tool(
            name="cancel_job",
            title="Cancel a job",
            description="Cancel a job. One that has ended stays as it is; the answer says what its status is now.",
            takes=object_schema({"jobId": _JOB_ID}, ["jobId"]),
            gives={
                "type": "object",
                "properties": {
                    "jobId": {"type": "string"},
                    "canceled": {"type": "boolean", "description": "Whether the job is canceled now."},
                    "status": {"type": ["string", "null"]},
                    "released": {"type": ["number", "null"], "description": "Tokens that it no longer holds."},
                },
                "required": ["jobId", "canceled"],
            },
            run=Toolbox.cancel_job,
            destroys=True,
        ),
        Tool(
            name="get_token_balance",
            title="Read the token balance",
            description="Read what the account has, in tokens: available, and reserved for jobs that have not ended.",
            takes=object_schema({}),
            gives=answer_schema(TokenBalanceResponse, also={}),
            run=Toolbox.get_token_balance,
            reads_only=True,
        ),
        Tool(
            name="create_jobs_bulk",
            title="Make many jobs",
            description="Make many jobs in one call; each has an outcome of its own in the answer. With "
            "settings.dryRun it only estimates the price; settings.confirm queues the jobs at once, and without it "
            f"they cost nothing yet. {_NOTHING_TWICE} Jobs that failed are sent again in a new call with those only.",
            takes=bulk,
            gives=answer_schema(BulkCreateResponse, also=_REPLAYED),
            run=Toolbox.create_jobs_bulk,
        ),
        Tool(
            name="ingest_folder",
            title="Encode a folder in S3",
            description="Encode every video of a folder in S3. Without `confirmation` it is a dry run: lists the "
            "folder, estimates the price, makes nothing, and gives a `confirmation`. Show the user what it found; then "
            "call again with the same arguments and that confirmation, and the jobs are made and queued. Repeating "
            "that makes nothing twice; with `wait` it follows the jobs to their end. For files that have come since, "
            "make another dry run.",
            takes=_folder_schema(names),
            gives=_FOLDER_ANSWER,
            run=Toolbox.ingest_folder,
        ),
        Tool(
            name="list_pending_operations",
            title="List what has no answer yet",
            description="List what was sent and has no answer yet, from this server's own record, for example after a "
            "crash. `pending`: call its tool again with the same arguments to get the answer; that makes no second "
            "job. `unknown`: that is too long ago, and only the user can find out whether it happened.",
            takes=object_schema({"limit": limit}),
            gives={
                "type": "object",
                "properties": {
                    "operations": {"type": "array", "items": {"type": "object"}},
                    "more": {"type": "boolean", "description": "Whether there are more than were listed."},
                },
                "required": ["operations", "more"],
            },
            run=Toolbox.list_pending_operations,
            reads_only=True,
            on_the_network=False,
        ),
    ]
