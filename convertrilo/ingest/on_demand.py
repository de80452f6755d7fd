"""A small folder that the service lists itself: one request, at most 1,000 files, no cursor."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from urllib.parse import quote

import attrs

from convertrilo import operations as rows
from convertrilo._base_client import BaseClient, engine_of
from convertrilo._http.redaction import hider, secrets_in
from convertrilo._json import encode
from convertrilo._tasks import together
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import ConvertriloError, Issue, JobError, ValidationError, WaitTimeoutError
from convertrilo.idempotency import identify
from convertrilo.ingest.listing import Folder
from convertrilo.ingest.record import FolderRecord
from convertrilo.ingest.report import IngestReport
from convertrilo.ingest.run import ROUNDS, OnIngest, progress_of
from convertrilo.journal.folders import Ended, New, Submitted
from convertrilo.models import (
    JobCreateRequest,
    OnDemandFolderIngestItem,
    OnDemandFolderIngestRequest,
    OnDemandFolderIngestResponse,
    OnDemandStatusResponse,
    S3FolderOutput,
)
from convertrilo.waiting import wait_for_on_demand

_FOLLOWERS = 100
_MAX_PREFIX = 200
"""Characters of `externalIdPrefix`, as the contract says."""


def on_demand_request(
    folder: Folder, template: JobCreateRequest, output: S3FolderOutput | None, max_files: int | None
) -> OnDemandFolderIngestRequest:
    """Return what the service is asked for.

    Raises:
        ValidationError: The operation has no field for something in the template, or bounds of its own.
    """
    wire = to_wire(template)
    alien = [Issue(name, "must not be set for on-demand jobs") for name in ("policy", "confirm") if name in wire]
    if alien:
        raise ValidationError("template", alien)
    source = to_wire(folder.source(""))
    del source["key"]
    wire |= {
        "externalIdPrefix": _prefix(folder),
        "maxFiles": max_files,
        "sourceS3": {**source, "prefix": folder.prefix},
    }
    if output is not None:
        wire |= {"outputDestination": "s3", "outputS3": to_wire(output)}
    return from_request(OnDemandFolderIngestRequest, wire)


def _prefix(folder: Folder) -> str:
    """Return what the external ids of a folder begin with: its URL, or the SHA-256 of a long one."""
    url = f"s3://{folder.bucket}/{quote(folder.prefix, safe='/-_.~')}"
    return url if len(url) <= _MAX_PREFIX else f"s3-sha256:{hashlib.sha256(url.encode()).hexdigest()}"


class OnDemandFolder:
    """A folder that the service lists: asked for once on a journal, and followed."""

    def __init__(
        self,
        client: BaseClient,
        request: OnDemandFolderIngestRequest,
        record: FolderRecord,
        on_progress: OnIngest | None,
    ) -> None:
        self._client = client
        self._clock = engine_of(client)[0].clock
        self._request = request
        self._record = record
        self._on_progress = on_progress
        self._wire = to_wire(request)

    async def work(self, timeout: float | None) -> IngestReport:
        """Have the folder encoded; and follow the jobs for so many seconds, if any are given."""
        answer = await self._ask()
        jobs = self._named({each.job_id: each for each in answer.jobs or () if each.job_id})
        await self._record.add([New(each.file_name or name, None, name, None) for name, each in jobs.items()], None)
        await self._record.submitted(
            [Submitted(name, each.job_id, "queued", None, None) for name, each in jobs.items()]
        )
        await self._tell()
        if timeout is not None:
            await self._follow_all(timeout, len(jobs))
        totals = await self._record.totals()
        return IngestReport(**attrs.asdict(totals), passed_over=0, dry_run=False, journal=self._record.journal)

    def _named(self, jobs: Mapping[str, OnDemandFolderIngestItem]) -> dict[str, OnDemandFolderIngestItem]:
        """Return the jobs by their external ids; of several with the same one, the later ones have their own behind it.

        An external id is as the contract makes it where the answer does not say.
        """
        named: dict[str, OnDemandFolderIngestItem] = {}
        for job_id, item in jobs.items():
            name = item.external_id or f"{self._request.external_id_prefix}:{item.file_name or job_id}"
            named[f"{name}#{job_id}" if name in named else name] = item
        return named

    async def _ask(self) -> OnDemandFolderIngestResponse:
        """Send the request, once on this journal: sent and answered before, the answer comes from there."""
        engine, options = engine_of(self._client)
        row, content = rows.ON_DEMAND_INGEST_FOLDER, encode(self._wire)
        identity, bare = identify(row, self._wire, content, name=self._record.run)
        call = engine.frozen_call(row, options, wire=self._wire, content=content, identity=identity)
        with engine.watching(call, self._wire, identity):
            answer, _ = await engine.journaled(self._record.journal, call, identity, bare)
        return answer

    async def _follow_all(self, timeout: float, count: int) -> None:
        self._deadline = self._clock.monotonic() + timeout
        for _ in range(ROUNDS):
            self._unread = 0
            left = iter([job_id for _, job_id in await self._record.unended(0, count)])
            await together([partial(self._follow, left)] * _FOLLOWERS)
            if not self._unread:
                break

    async def _follow(self, left: Iterator[str]) -> None:
        for job_id in left:
            seconds = self._deadline - self._clock.monotonic()
            if seconds <= 0:
                return
            try:
                status = await wait_for_on_demand(self._client, job_id, timeout=seconds, on_progress=None)
            except WaitTimeoutError:
                continue
            except JobError as failed:
                status = failed.status
            except ConvertriloError as error:  # this job's own
                self._unread += 1
                await self._record.ended([Ended(job_id, None, None, self._hide(str(error)))])
                continue
            message = None if status.failure_message is None else self._hide(status.failure_message)
            await self._record.ended([Ended(job_id, status.status, _output(status), message)])
            await self._tell()

    def _hide(self, text: str) -> str:
        return hider(text, secrets_in(self._wire))(text)

    async def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(progress_of(await self._record.totals(), is_listed=True))


def _output(status: OnDemandStatusResponse) -> str | None:
    to = status.destination
    return None if to is None else to.key or to.file_name
