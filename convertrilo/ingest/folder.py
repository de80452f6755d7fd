"""`ingest_folder`: list a folder in S3, submit a job for every video once, follow the jobs, and report.

The journal holds the state of the run. However a run ends, the same call continues it: objects and jobs that the
journal knows are not listed or submitted again, and only objects that were added or changed are new work.
"""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from convertrilo._base_client import BaseClient, engine_of
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import strip_credentials
from convertrilo.ingest.objects import Shard, make_filter, parse_shard
from convertrilo.ingest.on_demand import OnDemandFolder, on_demand_request
from convertrilo.ingest.progress import OnIngest
from convertrilo.ingest.remote import IngestEngine, RemoteRunner
from convertrilo.ingest.report import IngestReport
from convertrilo.ingest.run import run_folder
from convertrilo.ingest.s3_folder import S3Folder, open_folder
from convertrilo.journal import Journal, folders
from convertrilo.models import JobCreateRequest, S3FolderOutput, S3FolderSource


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
    """Encode every video of an S3 folder exactly once, and return a report (`createJobsBulk`, `bulkStatus`).

    Each object's job has an `external_id` made of bucket, key and ETag (see docs/INGEST.md): the same object is always
    the same job, and a changed object is a new job. Calling again with the same journal continues the run. Memory does
    not grow with the folder. Several processes may work on one journal at once.

    The service reads the objects itself, with the credentials that list the folder. The client sends these credentials
    in the body of each request and never writes them to disk. The API does not accept AWS's temporary credentials.

    Args:
        client: The client that sends the requests. It needs no journal of its own.
        source: `s3://bucket/prefix`, or a folder with endpoint, region and credentials. Without credentials in the
            source, those of AWS's standard chain are used; if there are none either, the folder is read anonymously.
        template: The job to create for each video, without `external_id` and source. The jobs are queued at once
            unless the template says `confirm=False`.
        journal: The journal that records the run: a path, or a journal that the client may use as well. A journal
            holds one folder.
        include: Patterns (`*`, `?`, `[…]`); the key must match at least one of them. The default is the file name
            extensions of videos.
        exclude: Patterns that the key must not match.
        min_size: The smallest size of an object, in bytes.
        max_size: The largest size of an object, in bytes.
        modified_since: Skip objects that were last modified before this time, which needs a time zone.
        max_files: The maximum number of objects in the journal, over all runs.
        shard: `i/n`, with i from 0 to n-1: ingest only this shard of the folder, so that n machines can divide the
            work. Each shard needs a journal of its own.
        manifest: A file that names the objects, read instead of listing the folder: the `manifest.json` of an S3
            Inventory, CSV, JSON lines, or plain keys.
        anonymous: Whether to list the folder anonymously and send no credentials, even if credentials are available.
        on_demand: Whether the service lists the folder itself, once (`onDemandIngestFolder`), and encodes at the price
            of on-demand jobs: at most 1,000 files, without filters and without an estimate.
        output: The bucket and prefix to write the encoded files to. Only `on_demand` jobs support this.
        wait: Whether to wait until all jobs have ended.
        timeout: How long to wait, in seconds. Jobs that have not ended by then are `unfinished` in the report.
        dry_run: Whether to list and estimate only (the contract's `dryRun`), without creating jobs.
        from_scratch: Whether to discard the journal's record of the folder, and create every job again.
        batch_size: Jobs per request. Batches get smaller if the service rejects them as too large.
        concurrency: The maximum number of requests in flight.
        engine: Lists the pages and sends the batches in place of this process, as `convertrilo.dask.DaskEngine` does.
            Its workers use the credentials of their own environment, so the source must not have any.
        on_progress: Called with an `IngestProgress` after each change.

    Returns:
        The report on the folder, counted over all runs on the journal.

    Raises:
        ValidationError: An argument or a line of the manifest is invalid.
        ConfigurationError: The journal holds the ingest of another service, folder, template, shard or operation name;
            the extra `s3` is not installed; or AWS's credentials cannot be used.
        TransferError: The folder cannot be listed.
        JournalError: The journal cannot be used.
        ConvertriloError: The service rejected a whole request, or did not answer. The same call continues the run from
            what the journal has recorded.
    """
    model = _checked(template)
    if wait and model.confirm is False:
        raise ValidationError("wait", [Issue("", "would never end: the template says confirm=False")])
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
    parsed_shard = None if shard is None else parse_shard(shard)
    is_wanted = make_filter(
        include=include,
        exclude=exclude,
        min_size=min_size,
        max_size=max_size,
        modified_since=modified_since,
        shard=parsed_shard,
    )

    if engine is None:
        folder = await open_folder(source, anonymous=anonymous)
        folder.source("")  # fails at once if the credentials cannot be sent
    else:
        folder = await _open_without_credentials(source)

    book = journal if isinstance(journal, Journal) else Journal(journal, clock=engine_of(client)[0].clock)
    async with book:
        identity = _identity(client, folder, model, parsed_shard, engine)
        request = on_demand_request(folder, model, output, max_files) if on_demand else None
        if request is not None:
            identity["on_demand"] = strip_credentials(to_wire(request))
        operation = await book.do(partial(folders.begin, identity=identity, from_scratch=from_scratch))
        if request is not None:
            return await OnDemandFolder(client, request, book, operation, on_progress).run(timeout if wait else None)
        runner = None if engine is None else RemoteRunner(client, engine, folder, anonymous=anonymous)
        return await run_folder(
            client if operation is None else client.with_options(operation=operation),
            folder,
            model,
            book,
            runner,
            on_progress,
            is_wanted=is_wanted,
            manifest=manifest,
            max_files=max_files,
            dry_run=dry_run,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout if wait else None,
        )


def _checked(template: JobCreateRequest | Mapping[str, Any]) -> JobCreateRequest:
    model = template if isinstance(template, JobCreateRequest) else from_request(JobCreateRequest, template)
    issues = [
        Issue(name, "must not be set: every object has its own")
        for name in ("external_id", "source_url", "source_s3", "original_filename")
        if getattr(model, name) is not None
    ]
    if issues:
        raise ValidationError("template", issues)
    return model


async def _open_without_credentials(source: str | S3FolderSource) -> S3Folder:
    """Return a folder that an engine's workers read, with their own credentials."""
    if isinstance(source, S3FolderSource) and (source.access_key_id or source.secret_access_key):
        raise ValidationError(
            "source",
            [Issue("access_key_id", "must not be set with an engine: its workers use their own credentials")],
        )
    return await open_folder(source, anonymous=True)


def _identity(
    client: BaseClient, folder: S3Folder, template: JobCreateRequest, shard: Shard | None, engine: IngestEngine | None
) -> dict[str, Any]:
    """Return the service, folder and jobs of a run as JSON; they must stay the same on one journal."""
    inner, options = engine_of(client)
    return {
        "service": inner.service,
        **({} if options.operation is None else {"operation": options.operation}),  # part of the idempotency keys
        "source": f"s3://{folder.bucket}/{folder.prefix}",
        "endpoint": folder.endpoint,
        "region": folder.region,
        "template": strip_credentials(to_wire(template)),
        "shard": None if shard is None else str(shard),
        "engine": engine is not None,  # a batch sent without credentials must not be sent again with credentials
    }


def _refuse_with_on_demand(**options: object) -> None:
    problem = "cannot be combined with on-demand jobs: the service lists the folder itself"
    issues = [Issue(name, problem) for name in options if options[name]]
    if issues:
        raise ValidationError("ingest_folder", issues)
