"""One run over a folder: it finds objects, submits and follows jobs, all at once; the journal records each step."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import anyio
import attrs

from convertrilo._base_client import BaseClient
from convertrilo._tasks import TaskFunction, run_all
from convertrilo.bulk.results import SubmittedJob
from convertrilo.ingest.finding import ObjectFinder
from convertrilo.ingest.following import follow_jobs
from convertrilo.ingest.objects import S3Object
from convertrilo.ingest.progress import OnIngest, ProgressTracker, SubmittedSignal
from convertrilo.ingest.remote import RemoteRunner
from convertrilo.ingest.report import IngestReport, read_report
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.ingest.submission import RESULTS, JobRequests, ResultRecorder, submit
from convertrilo.journal import Journal, folders
from convertrilo.models import BulkCreateSettings, JobCreateRequest

_PAGES_AHEAD = 4
"""The number of pages by which the listing may be ahead of the submission."""


async def run_folder(
    client: BaseClient,
    folder: S3Folder,
    template: JobCreateRequest,
    journal: Journal,
    runner: RemoteRunner | None,
    on_progress: OnIngest | None,
    *,
    is_wanted: Callable[[S3Object], bool],
    manifest: str | os.PathLike[str] | None,
    max_files: int | None,
    dry_run: bool,
    batch_size: int,
    concurrency: int,
    timeout: float | None,
) -> IngestReport:
    """Find the objects of a folder and submit their jobs; follow the jobs if a timeout in seconds is given."""
    known = await journal.do(folders.totals)
    # Objects that were refused or unknown in earlier runs may be submitted again, so this run counts them again.
    tracker = ProgressTracker(attrs.evolve(known, refused=0, unknown=0), on_progress)
    last_known_id = await journal.do(folders.last_id)
    rows_out, rows_in = anyio.create_memory_object_stream[list[folders.Row]](_PAGES_AHEAD)
    results_out, results_in = anyio.create_memory_object_stream[SubmittedJob](RESULTS)
    submitted = SubmittedSignal()

    finder = ObjectFinder(client, folder, journal, tracker, runner, is_wanted=is_wanted, max_files=max_files)
    requests = JobRequests(
        folder,
        template,
        journal,
        rows_in,
        last_known_id=last_known_id,
        region_is_known=finder.region_is_known,
    )
    settings = _bulk_settings(template, dry_run=dry_run)
    hide = folder.hide_credentials
    recorder = ResultRecorder(journal, tracker, submitted, hide, dry_run=dry_run)
    submission = partial(submit, client, requests, journal, runner, results_out, settings=settings)
    steps: list[TaskFunction] = [
        partial(finder.find, manifest, rows_out),
        partial(submission, batch_size=batch_size, concurrency=concurrency),
        partial(recorder.record_all, results_in),
    ]
    if timeout is not None and not dry_run:
        steps.append(partial(follow_jobs, client, journal, tracker, submitted, hide, timeout))
    with rows_out, rows_in, results_out, results_in:
        async with runner or nullcontext():
            await run_all(steps)
    return await read_report(journal, passed_over=tracker.passed_over, dry_run=dry_run)


def _bulk_settings(template: JobCreateRequest, *, dry_run: bool) -> BulkCreateSettings | None:
    if dry_run:
        return BulkCreateSettings(dry_run=True)
    if template.confirm is None:
        return BulkCreateSettings(confirm=True)
    return None
