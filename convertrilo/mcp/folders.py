"""The tool `ingest_folder`: a dry run; and then, confirmed by what that gave, a job for each video, once."""

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import anyio

from convertrilo._base_client import engine_of
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request
from convertrilo.errors import ConfigurationError, Issue, ValidationError
from convertrilo.idempotency import strip_credentials
from convertrilo.ingest import IngestProgress, IngestReport, IngestRow, ingest_folder
from convertrilo.ingest.report import read_report
from convertrilo.journal import Journal
from convertrilo.mcp.calls import Arguments, Progress, Tell, passing_on
from convertrilo.mcp.storage import Profile, with_credentials
from convertrilo.models import S3FolderSource

SHOWN = 50
WAIT_MS = 1_800_000

_ASKED = ("sourceS3", "job", "include", "exclude", "maxFiles")
"""What a dry run and its confirmation have in common."""


async def ingest(
    client: AsyncClient, folders: Path, profiles: Mapping[str, Profile], arguments: Arguments, tell: Tell
) -> dict[str, Any]:
    """Do what the tool does.

    Args:
        client: Whom to ask.
        folders: Where each folder's journal is kept.
        profiles: Where credentials come from. Without a profile the folder is read as nobody: what the machine itself
            has credentials for is none of an agent's business.
        arguments: What the agent asks for.
        tell: Told how far it is.

    Raises:
        ValidationError: The confirmation is not that of these arguments.
        ConvertriloError: As `ingest_folder` raises it.
    """
    asked = {name: arguments[name] for name in _ASKED if name in arguments}
    confirmed = _confirmed(asked, arguments["confirmation"]) if "confirmation" in arguments else None
    wire = with_credentials(profiles, asked)
    journal = Journal(await _path(folders, wire), clock=engine_of(client)[0].clock)

    async def work(hear: Callable[[Progress], object]) -> IngestReport:
        return await ingest_folder(
            client,
            from_request(S3FolderSource, wire["sourceS3"]),
            wire["job"],
            journal=journal,
            include=wire.get("include"),
            exclude=wire.get("exclude", ()),
            max_files=wire.get("maxFiles") if confirmed is None else confirmed,
            anonymous="storageProfile" not in asked["sourceS3"],
            wait=arguments.get("wait", False),
            timeout=arguments.get("timeoutMs", WAIT_MS) / 1000,
            dry_run=confirmed is None,
            on_progress=lambda each: hear(_progress(each)),
        )

    async with journal:
        before = await read_report(journal)
        report = await passing_on(tell, work)
        result = await _result(report)
    if confirmed is not None:
        result["replayed"] = report.submitted == before.submitted
    elif report.listed > report.submitted + report.refused:
        result["confirmation"] = _confirmation(asked, report.listed)
    return result


def _confirmation(asked: Mapping[str, Any], listed: int) -> str:
    """Return what says that these arguments, and so many objects, are what is wanted."""
    text = json.dumps([asked, listed], sort_keys=True)
    return f"{listed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _confirmed(asked: Mapping[str, Any], confirmation: str) -> int:
    """Return how many objects a confirmation is for."""
    listed, _, _ = confirmation.partition("-")
    if not listed.isdecimal() or confirmation != _confirmation(asked, int(listed)):
        issue = "is not what a dry run with these very arguments gave; leave it out to make one"
        raise ValidationError("arguments", [Issue("confirmation", issue)])
    return int(listed)


async def _path(folders: Path, wire: Mapping[str, Any]) -> Path:
    """Return where the journal of a folder, and of what is made of it, is kept."""
    which = json.dumps([strip_credentials(wire["sourceS3"]), wire["job"]], sort_keys=True)
    try:
        await anyio.Path(folders).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"there can be no folder {folders} for the journals: {error.strerror}") from error
    return folders / f"{hashlib.sha256(which.encode()).hexdigest()[:16]}.db"


def _progress(at: IngestProgress) -> Progress:
    words = f"{at.listed} found, {at.submitted} submitted, {at.succeeded} succeeded, {at.failed} failed"
    return at.listed + at.submitted + at.succeeded + at.failed, None, words


async def _result(report: IngestReport) -> dict[str, Any]:
    objects = await _objects(report)
    return {
        "dryRun": report.dry_run,
        "listed": report.listed,
        "passedOver": report.passed_over,
        "submitted": report.submitted,
        "succeeded": report.succeeded,
        "failed": report.failed,
        "canceled": report.canceled,
        "refused": report.refused,
        "unknown": report.unknown,
        "unfinished": report.unfinished,
        "bytes": report.size,
        "estimatedNeu": report.estimated,
        "reservedNeu": report.reserved,
        "objects": [_object(row) for row in objects],
        "more": report.listed > len(objects),
    }


async def _objects(report: IngestReport) -> list[IngestRow]:
    """Return some rows: those that went wrong before the others."""
    wrong: list[IngestRow] = []
    others: list[IngestRow] = []
    problems = min(report.refused + report.unknown + report.failed + report.canceled, SHOWN)
    async with aclosing(cast("AsyncGenerator[IngestRow]", report.rows())) as rows:
        async for row in rows:
            chosen = wrong if row.status in ("refused", "unknown", "failed", "canceled") else others
            if len(chosen) < SHOWN:
                chosen.append(row)
            if len(wrong) >= problems and len(wrong) + len(others) >= SHOWN:
                break
    return (wrong + others)[:SHOWN]


def _object(row: IngestRow) -> dict[str, Any]:
    told = {"key": row.key, "status": row.status, "jobId": row.job_id, "output": row.output, "error": row.error}
    return {**{name: value for name, value in told.items() if value is not None}, "estimatedNeu": row.estimate}
