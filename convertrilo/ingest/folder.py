"""A folder in S3, every video of it encoded once: listed, submitted in batches, followed to the end, and reported.

The journal holds the run. Whatever ends it, the same call goes on with it: what was listed is not listed as new, what
was submitted is not submitted again, and an object that has come since, or has changed, is the only new work.
"""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from convertrilo._base_client import BaseClient, engine_of
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import strip_credentials
from convertrilo.ingest.listing import Folder, open_folder
from convertrilo.ingest.objects import Shard, chooser, parse_shard
from convertrilo.ingest.on_demand import OnDemandFolder, on_demand_request
from convertrilo.ingest.record import FolderRecord
from convertrilo.ingest.remote import Elsewhere, IngestEngine
from convertrilo.ingest.report import IngestReport, IngestRow
from convertrilo.ingest.run import FolderRun, IngestProgress, OnIngest
from convertrilo.journal import Journal
from convertrilo.models import JobCreateRequest, S3FolderOutput, S3FolderSource

__all__ = ["IngestProgress", "IngestReport", "IngestRow", "ingest_folder"]


async def ingest_folder(
    client: BaseClient,
    source: str | S3FolderSource,
    template: JobCreateRequest | Mapping[str, Any],
    *,
    journal: Journal | str | os.PathLike[str],
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_size: int | None = None,
    max_size: int | None = None,
    modified_since: datetime | None = None,
    max_files: int | None = None,
    shard: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
    anonymous: bool = False,
    on_demand: bool = False,
    output: S3FolderOutput | None = None,
    wait: bool = False,
    timeout: float = 7 * 86400.0,
    dry_run: bool = False,
    from_scratch: bool = False,
    batch_size: int = 500,
    concurrency: int = 4,
    engine: IngestEngine | None = None,
    on_progress: OnIngest | None = None,
) -> IngestReport:
    """Have every video of a folder in S3 encoded, once (`createJobsBulk`, `bulkStatus`); return what became of it.

    Each object's job has an `external_id` made of bucket, key and ETag (see docs/INGEST.md), so the same object is the
    same job for ever and a changed one is a new job. Run again on the same journal, it goes on; memory does not grow
    with the folder. Several processes may work on one journal at once.

    The service reads the objects itself, with the credentials that the folder is listed with: they are in the body of
    each request, and nowhere on disk. AWS's temporary credentials have no place there.

    Args:
        client: Whom to ask. It needs no journal of its own.
        source: `s3://bucket/prefix`, or a folder with its endpoint, region and credentials. Without credentials those
            of AWS's standard chain are used, and without those none.
        template: What to make of each video: a job without `external_id` and source. Unless it says `confirm=False`,
            the jobs are queued at once.
        journal: Where the run is written down; a path, or a journal that the client may use too. It holds one folder.
        include: Patterns (`*`, `?`, `[…]`) one of which the key must match; by default, the endings of videos.
        exclude: Patterns that the key must not match.
        min_size: Least bytes of an object.
        max_size: Most bytes of an object.
        modified_since: Only objects that were last modified then or later.
        max_files: How many objects the journal may hold in all.
        shard: `i/n`, with i from 0 to n-1: only this share of the folder, for machines that share the work, each with
            a journal of its own.
        manifest: A file that says which objects there are, instead of a listing: an S3 Inventory's `manifest.json`, or
            CSV, JSON lines or plain keys.
        anonymous: Whether to list without credentials, whatever there are, and to send none.
        on_demand: Whether the service lists the folder itself (`onDemandIngestFolder`), once, and encodes at the price
            of on-demand jobs: at most 1,000 files, all videos that there are, no estimate.
        output: The prefix to write the encoded files under, for `on_demand`: other jobs have no such field.
        wait: Whether to follow the jobs until all have ended.
        timeout: Seconds after which that is given up; the report then has `unfinished` jobs.
        dry_run: Whether to list and estimate only (the contract's `dryRun`): nothing is created.
        from_scratch: Whether to forget what the journal knows, and make every job anew.
        batch_size: Jobs of a request; fewer once the service finds that many too many.
        concurrency: How many requests are under way at once.
        engine: Who lists the pages and sends the batches, instead of this process: `convertrilo.dask.DaskEngine`. Its
            workers use the credentials of their own environment, and the source must name none.
        on_progress: Called with an `IngestProgress` whenever there is news.

    Raises:
        ValidationError: An argument or a manifest's line is not what is allowed.
        ConfigurationError: The journal holds another service's ingest, or another folder, template, share or name; the
            extra `s3` is not installed, or AWS's credentials cannot be used.
        TransferError: The folder cannot be listed.
        JournalError: The journal cannot be used.
        ConvertriloError: The service refuses a request as a whole, or does not answer. What was done until then is in
            the journal; the same call goes on from there.
    """
    model = _checked(template)
    if wait and model.confirm is False:
        raise ValidationError("wait", [Issue("", "would wait for ever: the template says confirm=False")])
    if not 0 < timeout < math.inf:
        raise ValidationError("timeout", [Issue("", f"must be a number of seconds above 0, not {timeout!r}")])
    if max_files is not None and max_files < 1:
        raise ValidationError("max_files", [Issue("", f"must be at least 1, not {max_files}")])
    if on_demand:
        _refuse_with_on_demand(
            include=include,
            exclude=exclude,
            min_size=min_size,
            max_size=max_size,
            modified_since=modified_since,
            shard=shard,
            manifest=manifest,
            dry_run=dry_run,
            engine=engine,
        )
    elif output is not None:
        raise ValidationError("output", [Issue("", "is for on-demand jobs: the API's other jobs have no such field")])
    share = None if shard is None else parse_shard(shard)
    is_wanted = chooser(
        include=include,
        exclude=exclude,
        min_size=min_size,
        max_size=max_size,
        modified_since=modified_since,
        shard=share,
    )
    if engine is None:
        folder = await open_folder(source, anonymous=anonymous)
        folder.source("")  # to hear at once of credentials that cannot be sent
    else:
        folder = await _without_credentials(source)
    book = journal if isinstance(journal, Journal) else Journal(journal, clock=engine_of(client)[0].clock)
    async with book:
        record = FolderRecord(book)
        identity = _identity(client, folder, model, share, engine)
        if on_demand:
            request = on_demand_request(folder, model, output, max_files)
            identity["on_demand"] = strip_credentials(to_wire(request))
            await record.begin(identity, from_scratch=from_scratch)
            on_server = OnDemandFolder(client, request, record, on_progress)
            return await on_server.work(timeout if wait else None)
        await record.begin(identity, from_scratch=from_scratch)
        elsewhere = None if engine is None else Elsewhere(client, engine, folder, anonymous=anonymous)
        run = FolderRun(client, folder, model, record, on_progress, elsewhere, max_files=max_files, dry_run=dry_run)
        await run.begin()
        await run.work(
            is_wanted,
            manifest=manifest,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout if wait else None,
        )
        return await run.report()


def _checked(template: JobCreateRequest | Mapping[str, Any]) -> JobCreateRequest:
    model = template if isinstance(template, JobCreateRequest) else from_request(JobCreateRequest, template)
    issues = [
        Issue(name, "must not be set: it is each object's own")
        for name in ("external_id", "source_url", "source_s3", "original_filename")
        if getattr(model, name) is not None
    ]
    if issues:
        raise ValidationError("template", issues)
    return model


async def _without_credentials(source: str | S3FolderSource) -> Folder:
    """Return a folder that others read, with credentials of their own."""
    if isinstance(source, S3FolderSource) and (source.access_key_id or source.secret_access_key):
        raise ValidationError(
            "source",
            [Issue("access_key_id", "must not be set with an engine: its workers have credentials themselves")],
        )
    return await open_folder(source, anonymous=True)


def _identity(
    client: BaseClient, folder: Folder, template: JobCreateRequest, share: Shard | None, engine: IngestEngine | None
) -> dict[str, Any]:
    """Return what is done with which folder: what must not change on the way."""
    inner, options = engine_of(client)
    return {
        "service": inner.service,
        **({} if options.operation is None else {"operation": options.operation}),  # it is in the keys
        "source": f"s3://{folder.bucket}/{folder.prefix}",
        "endpoint": folder.endpoint,
        "region": folder.region,
        "template": strip_credentials(to_wire(template)),
        "shard": None if share is None else str(share),
        "engine": engine is not None,  # batches of one way go out without credentials, and must not go the other way
    }


def _refuse_with_on_demand(**options: Any) -> None:
    issues = [Issue(name, "cannot be had on demand: the service lists") for name in options if options[name]]
    if issues:
        raise ValidationError("ingest_folder", issues)
