"""A small folder that the service lists itself: one request (`onDemandIngestFolder`), at most 1,000 files."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from urllib.parse import quote

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.redaction import hider, secrets_in
from convertrilo._json import encode
from convertrilo._tasks import run_all
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import ConvertriloError, Issue, JobError, ValidationError, WaitTimeoutError
from convertrilo.idempotency import identify
from convertrilo.ingest.following import ROUNDS
from convertrilo.ingest.progress import IF_NOT_RECORDED, OnIngest, progress_of
from convertrilo.ingest.report import IngestReport, read_report
from convertrilo.ingest.s3_folder import S3Folder
from convertrilo.journal import Journal, folders
from convertrilo.models import (
    JobCreateRequest,
    OnDemandFolderIngestItem,
    OnDemandFolderIngestRequest,
    OnDemandFolderIngestResponse,
    OnDemandStatusResponse,
    S3FolderOutput,
)
from convertrilo.operations import ON_DEMAND_INGEST_FOLDER
from convertrilo.waiting import wait_for_on_demand

_FOLLOWERS = 100
_MAX_PREFIX = 200
"""The contract's limit on `externalIdPrefix`, in characters."""


def on_demand_request(
    folder: S3Folder, template: JobCreateRequest, output: S3FolderOutput | None, max_files: int | None
) -> OnDemandFolderIngestRequest:
    """Return the body of `onDemandIngestFolder`.

    Raises:
        ValidationError: The operation has no field for something in the template, or stricter limits.
    """
    wire = to_wire(template)
    unsupported = [Issue(name, "must not be set for on-demand jobs") for name in ("policy", "confirm") if name in wire]
    if unsupported:
        raise ValidationError("template", unsupported)
    source = to_wire(folder.source(""))
    del source["key"]
    wire |= {
        "externalIdPrefix": _external_id_prefix(folder),
        "maxFiles": max_files,
        "sourceS3": {**source, "prefix": folder.prefix},
    }
    if output is not None:
        wire |= {"outputDestination": "s3", "outputS3": to_wire(output)}
    return from_request(OnDemandFolderIngestRequest, wire)


def _external_id_prefix(folder: S3Folder) -> str:
    """Return the prefix of the external ids in a folder: the folder's URL, or the SHA-256 of a long URL."""
    url = f"s3://{folder.bucket}/{quote(folder.prefix, safe='/-_.~')}"
    return url if len(url) <= _MAX_PREFIX else f"s3-sha256:{hashlib.sha256(url.encode()).hexdigest()}"


class OnDemandFolder:
    """A folder that the service lists: requested once per journal, and followed."""

    def __init__(
        self,
        client: BaseClient,
        request: OnDemandFolderIngestRequest,
        journal: Journal,
        operation: str | None,
        on_progress: OnIngest | None,
    ) -> None:
        self._client = client
        self._clock = engine_of(client)[0].clock
        self._request = request
        self._journal = journal
        self._operation = operation
        self._on_progress = on_progress
        self._wire = to_wire(request)
        self._unread = 0
        """Jobs whose status could not be read in this round."""

    async def run(self, timeout: float | None) -> IngestReport:
        """Request the encodes of the folder, and return the report; follow the jobs if there is a timeout (seconds)."""
        answer = await self._request_jobs()
        jobs = self._by_external_id({each.job_id: each for each in answer.jobs or () if each.job_id})
        found = [folders.New(each.file_name or name, None, name, None) for name, each in jobs.items()]
        await self._journal.do(partial(folders.add, objects=found, most=None), IF_NOT_RECORDED)
        queued = [folders.Submitted(name, each.job_id, "queued", None, None) for name, each in jobs.items()]
        await self._journal.do(partial(folders.submitted, results=queued, dry_run=False), IF_NOT_RECORDED)
        await self._notify()
        if timeout is not None:
            await self._follow_all(timeout, len(jobs))
        return await read_report(self._journal)

    def _by_external_id(self, jobs: Mapping[str, OnDemandFolderIngestItem]) -> dict[str, OnDemandFolderIngestItem]:
        """Return the jobs by their external ids; if several jobs share one, the later jobs have their job id appended.

        An external id that is missing from the answer is derived as the contract says.
        """
        named: dict[str, OnDemandFolderIngestItem] = {}
        for job_id, item in jobs.items():
            name = item.external_id or f"{self._request.external_id_prefix}:{item.file_name or job_id}"
            named[f"{name}#{job_id}" if name in named else name] = item
        return named

    async def _request_jobs(self) -> OnDemandFolderIngestResponse:
        """Send the request, or return the journal's answer if an earlier run sent it."""
        engine, options = engine_of(self._client)
        operation, content = ON_DEMAND_INGEST_FOLDER, encode(self._wire)
        identity, body_without_credentials = identify(operation, self._wire, content, name=self._operation)
        call = engine.frozen_call(operation, options, wire=self._wire, content=content, identity=identity)
        with engine.watching(call, self._wire, identity):
            answer, _ = await engine.journaled(self._journal, call, identity, body_without_credentials)
        return answer

    async def _follow_all(self, timeout: float, count: int) -> None:
        deadline = self._clock.monotonic() + timeout
        for _ in range(ROUNDS):
            self._unread = 0
            unended = await self._journal.do(partial(folders.unended, after=0, count=count))
            job_ids = iter([job_id for _, job_id in unended])
            await run_all([partial(self._follow, job_ids, deadline)] * _FOLLOWERS)
            if not self._unread:
                break

    async def _follow(self, job_ids: Iterator[str], deadline: float) -> None:
        for job_id in job_ids:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            try:
                status = await wait_for_on_demand(self._client, job_id, timeout=left)
            except WaitTimeoutError:
                continue
            except JobError as failed:
                status = failed.status
            except ConvertriloError as error:  # concerns this job only
                self._unread += 1
                await self._record_end(folders.Ended(job_id, None, None, self._hide(str(error))))
                continue
            message = None if status.failure_message is None else self._hide(status.failure_message)
            await self._record_end(folders.Ended(job_id, status.status, _output(status), message))
            await self._notify()

    async def _record_end(self, end: folders.Ended) -> None:
        await self._journal.do(partial(folders.ended, results=[end]), IF_NOT_RECORDED)

    def _hide(self, text: str) -> str:
        return hider(text, secrets_in(self._wire))(text)

    async def _notify(self) -> None:
        if self._on_progress is not None:
            self._on_progress(progress_of(await self._journal.do(folders.totals), is_listed=True))


def _output(status: OnDemandStatusResponse) -> str | None:
    destination = status.destination
    return None if destination is None else destination.key or destination.file_name
