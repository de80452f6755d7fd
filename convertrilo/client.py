"""`AsyncClient`: the operations, and the flows that take more than one of them."""

import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from convertrilo._base_client import BaseClient, JsonObject
from convertrilo.models import (
    BulkCreateSettings,
    JobCreateRequest,
    JobCreateResponse,
    JobUpload,
    OnDemandEncodeRequest,
    OnDemandStatusResponse,
    StatusResponse,
)

if TYPE_CHECKING:
    from convertrilo.bulk import OnSubmit
    from convertrilo.bulk.input import Jobs
    from convertrilo.bulk.results import SubmittedJob
    from convertrilo.journal import Journal
    from convertrilo.transfers import OnProgress, Target
    from convertrilo.transfers.source import Source
    from convertrilo.waiting import HasJobId, JobResult


class AsyncClient(BaseClient):
    """A client of the Convertrilo API, on asyncio and trio; one serves any number of tasks.

    A method's body is the operation's model or a mapping in the wire's shape. Every method raises:

    - `ValidationError` before anything is sent, when an argument is not what the contract allows;
    - `APIError` or one of its subclasses when the service answers with an error that stands;
    - `TransportError` when there is no answer, after all attempts that are allowed;
    - `OutcomeUnknownError` when it is unclear whether something happened that must not happen twice;
    - `DecodeError` when the answer is not what the contract says.

    Keyed operations (`create_job`, `create_jobs_bulk`, `on_demand_encode`, `on_demand_ingest_folder`) are sent with an
    idempotency key, the same in every attempt. A logical operation gets its key by the first of these that applies:
    `idempotency_key=…`; `operation=…`, your name for what is to be done once; the body's own `external_id`; and
    otherwise each call is an operation of its own.
    """

    async def upload(
        self,
        job: "JobCreateResponse | JobUpload | str",
        source: "Source",
        *,
        size: int | None = None,
        on_progress: "OnProgress | None" = None,
    ) -> None:
        """Upload a job's file to where the service said (a presigned PUT; no API credentials go along).

        A connection that breaks is tried again from the start of the source, as `retry` says, if the source can be read
        again: a path, bytes, or a file that can seek.

        Args:
            job: The answer of `create_job`, or the upload URL itself.
            source: A path, a file opened in binary mode (from where it stands), bytes, or an async iterable of bytes.
            size: How many bytes an async iterable has. Most storage refuses an upload that does not say.
            on_progress: Called with a `Progress` for every piece that is sent; a new attempt begins at 0 again.

        Raises:
            TransferError: The file did not arrive.
        """
        from convertrilo.transfers import upload

        await upload(self, job, source, size=size, on_progress=on_progress)

    async def upload_chunked(
        self,
        job_id: str,
        source: "Source",
        *,
        part_size: int = 8 * 1024 * 1024,
        concurrency: int = 4,
        size: int | None = None,
        on_progress: "OnProgress | None" = None,
    ) -> None:
        """Upload a job's file in parts, several at a time (`initStream`, `uploadChunk`, `finalizeStream`).

        Each part is tried again on its own, so a stream need not be read twice. An upload that fails or is cancelled is
        given up on the server too (`abortStream`).

        With a journal on the client that is so only if the service refuses it. Whatever else interrupts it, a crash
        and a cancellation among them, the parts that have arrived are kept, and the same call, in this process or
        another, reads the source again and sends only those that are missing or differ. It needs the same `part_size`.
        To give such an upload up, call `abort_stream`.

        Args:
            job_id: The job.
            source: A path, a file opened in binary mode (from where it stands), bytes, or an async iterable of bytes.
            part_size: Bytes of a part; more where the file would have more than 10,000 parts.
            concurrency: How many parts are in memory, and under way, at once.
            size: How many bytes an async iterable has, if that is known.
            on_progress: Called with a `Progress` for every part that has arrived.

        Raises:
            TransferError: The source cannot be read.
            JournalError: The journal cannot be used; nothing was sent.
        """
        from convertrilo.transfers import upload_chunked

        await upload_chunked(
            self,
            job_id,
            source,
            part_size=part_size,
            concurrency=concurrency,
            size=size,
            on_progress=on_progress,
        )

    async def download(
        self, target: "Target", path: str | os.PathLike[str], *, on_progress: "OnProgress | None" = None
    ) -> Path:
        """Download a job's output to a file, which is there only once it is whole; return its path.

        It grows in `path.part`. After a break, or in another process, it goes on where it stopped, if the file on the
        server is still the same. When the URL has expired, the job's status is asked for a fresh one.

        Args:
            target: A status, a job, a job's id, or a URL.
            path: Where to put it; what is there is replaced.
            on_progress: Called with a `Progress` for what is written, at least every second if something arrives.

        Raises:
            TransferError: The file did not arrive, or cannot be written, or another download to this path is under way;
                what has arrived stays in `path.part`.
        """
        from convertrilo.transfers import download

        return await download(self, target, path, on_progress=on_progress)

    async def wait_for_job(
        self,
        job_id: str,
        *,
        timeout: float = 3600.0,
        on_progress: Callable[[StatusResponse], object] | None = None,
    ) -> StatusResponse:
        """Wait until a job has succeeded, and return its last status (`bulkStatus`, `jobStatus`).

        However many tasks wait, their jobs are asked for together. A failed read is no end: it is tried again until the
        time is up.

        Args:
            job_id: The job.
            timeout: Seconds to wait at most.
            on_progress: Called with each status that brings news.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job goes on; `status` is the last one that was read.
        """
        from convertrilo.waiting import wait_for_job

        return await wait_for_job(self, job_id, timeout=timeout, on_progress=on_progress)

    async def wait_for_on_demand(
        self,
        job_id: str,
        *,
        timeout: float = 3600.0,
        on_progress: Callable[[OnDemandStatusResponse], object] | None = None,
    ) -> OnDemandStatusResponse:
        """Wait until an on-demand job has succeeded, and return its last status (`onDemandStatus`, `bulkStatus`).

        Args:
            job_id: The job.
            timeout: Seconds to wait at most.
            on_progress: Called with each status that brings news.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job goes on; `status` is the last one that was read.
        """
        from convertrilo.waiting import wait_for_on_demand

        return await wait_for_on_demand(self, job_id, timeout=timeout, on_progress=on_progress)

    def wait_for_jobs(
        self,
        job_ids: Iterable[str],
        *,
        timeout: float = 3600.0,
        raise_errors: bool = False,
        on_progress: Callable[[StatusResponse], object] | None = None,
    ) -> AsyncIterator["JobResult"]:
        """Wait for many jobs, and yield a `JobResult` for each as it finishes (`bulkStatus`, `jobStatus`).

        Args:
            job_ids: The jobs; one that is named twice counts once.
            timeout: Seconds to wait for all of them at most; those that go on then are results with a
                `WaitTimeoutError`.
            raise_errors: Whether to raise the `error` of a job that has not succeeded, instead of yielding it.
            on_progress: Called with each status that brings news.
        """
        from convertrilo.waiting import wait_for_jobs

        return wait_for_jobs(self, job_ids, timeout=timeout, raise_errors=raise_errors, on_progress=on_progress)

    def submit_jobs(
        self,
        jobs: "Jobs",
        *,
        settings: BulkCreateSettings | JsonObject | None = None,
        batch_size: int = 500,
        concurrency: int = 4,
        journal: "Journal | None" = None,
        on_progress: "OnSubmit | None" = None,
    ) -> AsyncIterator["SubmittedJob"]:
        """Submit any number of jobs, and yield a `SubmittedJob` for each as its batch is answered (`createJobsBulk`).

        Batches are frozen before they are sent. With a journal, a rerun goes on where the last run stopped, and of an
        input that has grown only what is new is submitted; each job is known by its `external_id`. Without one, the
        same input with the same `batch_size` makes the same batches under the same keys. See docs/INGEST.md.

        It works while the next result is waited for: whoever stops reading leaves nothing running. And while it waits
        for the input's next job, it has no results to give: an input must not wait for them.

        Args:
            jobs: An iterable or async iterable of `JobCreateRequest` or of mappings in the wire's shape; it is read no
                faster than the results are.
            settings: Settings for all of them; `dry_run` estimates and creates nothing, `confirm` queues. `fail_fast`
                is refused: every job has an outcome of its own.
            batch_size: Jobs of a request; fewer once the service finds that many too many.
            concurrency: How many requests are under way at once.
            journal: Where batches are written down before they are sent; by default the client's, if it has one.
            on_progress: Called with a `SubmitProgress` after every batch.

        Raises:
            ValidationError: An argument is not what is allowed. (A job that is not is a result with this error.)
            JournalError: The journal cannot be used.
            APIError: The service refuses more than single jobs, as for `insufficient_tokens`. This, and what the input
                itself raises, comes after the results that are there; its notes say where things stand.
        """
        from convertrilo.bulk import submit_jobs

        return submit_jobs(
            self,
            jobs,
            settings=settings,
            batch_size=batch_size,
            concurrency=concurrency,
            journal=journal,
            on_progress=on_progress,
        )

    async def encode_file(
        self,
        path: str | os.PathLike[str],
        request: JobCreateRequest | JsonObject,
        output: str | os.PathLike[str],
        *,
        timeout: float = 3600.0,
        on_progress: "OnProgress | None" = None,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> StatusResponse:
        """Encode a local file to a local file: create, upload, approve, confirm, wait, download.

        With an `external_id`, a key or an `operation` it can be run again after a crash: the second run finds the job
        of the first, and goes on where that stopped.

        Args:
            path: The video.
            request: What to make of it.
            output: Where to put the result, which is there only once it is whole.
            timeout: Seconds to wait for the encode at most; the transfers take what they take.
            on_progress: Called with a `Progress` as the file goes up, is encoded, and comes down.
            idempotency_key: The key of the job's creation itself, at most 255 characters.
            operation: The name of the logical operation, from which that key is derived.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job goes on; `status` is the last one that was read.
            TransferError: A file did not arrive.
        """
        from convertrilo.encoding import encode_file

        return await encode_file(
            self,
            path,
            request,
            output,
            timeout=timeout,
            on_progress=on_progress,
            idempotency_key=idempotency_key,
            operation=operation,
        )

    async def on_demand_encode_and_wait(
        self,
        request: OnDemandEncodeRequest | JsonObject,
        *,
        timeout: float = 3600.0,
        on_progress: "OnProgress | None" = None,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> str:
        """Encode the video at a URL, wait, and return the output's download URL.

        Args:
            request: The source, and what to make of it. Its output must stay with the service.
            timeout: Seconds to wait at most.
            on_progress: Called with a `Progress` as the video is encoded.
            idempotency_key: The key of the job's creation itself, at most 255 characters.
            operation: The name of the logical operation, from which that key is derived.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job goes on; `status` is the last one that was read.
        """
        from convertrilo.encoding import on_demand_encode_and_wait

        return await on_demand_encode_and_wait(
            self,
            request,
            timeout=timeout,
            on_progress=on_progress,
            idempotency_key=idempotency_key,
            operation=operation,
        )

    def notify(self, event: "HasJobId | str") -> None:
        """Have the status of a job read at once, because something has happened; whoever waits for it need not poll.

        Args:
            event: A webhook's event that was verified, or the job's id.
        """
        from convertrilo.waiting import notify

        notify(self, event)
