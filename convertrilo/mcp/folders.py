"""The tool `ingest_folder`: a dry run, and after its confirmation one job for each video."""

import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import anyio

from convertrilo._clock import Clock
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request
from convertrilo.errors import ConfigurationError, Issue, ValidationError
from convertrilo.idempotency import strip_credentials
from convertrilo.ingest import IngestProgress, IngestReport, IngestRow, ingest_folder
from convertrilo.ingest.report import read_report
from convertrilo.journal import Journal
from convertrilo.mcp.calls import Arguments, CallProgress, ReportProgress, run_with_progress
from convertrilo.mcp.storage import StorageProfile, resolve_storage_profiles
from convertrilo.models import S3FolderSource

SHOWN = 50
"""The maximum number of objects in an answer."""

WAIT_MS = 1_800_000
"""The default wait, in milliseconds."""

_CONFIRMED_ARGUMENTS = ("sourceS3", "job", "include", "exclude", "maxFiles")
"""The arguments that must be the same in a dry run and its confirmation."""


async def ingest(
    client: AsyncClient,
    clock: Clock,
    folders: Path,
    profiles: Mapping[str, StorageProfile],
    arguments: Arguments,
    report: ReportProgress,
) -> dict[str, Any]:
    """Run the tool, and return its result.

    Args:
        client: The client.
        clock: The client's clock.
        folders: The directory that holds a journal for each S3 folder.
        profiles: The storage profiles. Without a profile the folder is listed anonymously: an agent must not use the
            machine's own credentials.
        arguments: The tool's arguments.
        report: Reports the progress.

    Raises:
        ValidationError: The confirmation does not belong to these arguments.
        ConvertriloError: An error of `ingest_folder`.
    """
    asked = {name: arguments[name] for name in _CONFIRMED_ARGUMENTS if name in arguments}
    confirmed = _confirmed(asked, arguments["confirmation"]) if "confirmation" in arguments else None
    wire = resolve_storage_profiles(profiles, asked)
    journal = Journal(await _path(folders, wire), clock=clock)

    async def work(on_progress: Callable[[CallProgress], None]) -> IngestReport:
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
            on_progress=lambda at: on_progress(_progress(at)),
        )

    async with journal:
        before = await read_report(journal)
        ingested = await run_with_progress(report, work)
        result = await _result(ingested)
    if confirmed is not None:
        result["replayed"] = ingested.submitted == before.submitted
    elif ingested.listed > ingested.submitted + ingested.refused:
        result["confirmation"] = _confirmation(asked, ingested.listed)
    return result


def _confirmation(asked: Mapping[str, Any], listed: int) -> str:
    """Return the confirmation of these arguments and this number of objects."""
    text = json.dumps([asked, listed], sort_keys=True)
    return f"{listed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _confirmed(asked: Mapping[str, Any], confirmation: str) -> int:
    """Check a confirmation, and return how many objects it covers."""
    listed, _, _ = confirmation.partition("-")
    if not listed.isdecimal() or confirmation != _confirmation(asked, int(listed)):
        issue = "was not returned by a dry run with these arguments; omit it to make a dry run"
        raise ValidationError("arguments", [Issue("confirmation", issue)])
    return int(listed)


async def _path(folders: Path, wire: Mapping[str, Any]) -> Path:
    """Return the journal file for a folder and a job template."""
    which = json.dumps([strip_credentials(wire["sourceS3"]), wire["job"]], sort_keys=True)
    try:
        await anyio.Path(folders).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folders} for the journals cannot be created: {error.strerror}"
        ) from error
    return folders / f"{hashlib.sha256(which.encode()).hexdigest()[:16]}.db"


def _progress(at: IngestProgress) -> CallProgress:
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
    """Return at most `SHOWN` rows, problems first."""
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
    facts = {"key": row.key, "status": row.status, "jobId": row.job_id, "output": row.output, "error": row.error}
    return {**{name: value for name, value in facts.items() if value is not None}, "estimatedNeu": row.estimate}
