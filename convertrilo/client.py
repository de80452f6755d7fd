"""`AsyncClient`: the operations of `BaseClient`, and the flows, which make several calls."""

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
    """A client of the Convertrilo API, for asyncio and trio. Any number of tasks can share one client.

    The client has one method for each operation of the API, and the flows: methods that make several calls, such as
    `upload`, `wait_for_job`, `submit_jobs` and `encode_file`. An operation's body is the operation's model or a mapping
    in the wire's shape (camelCase). Every method raises:

    - `ValidationError`, before anything is sent, if the contract does not allow an argument;
    - `APIError`, or one of its subclasses, if the service answers with a final error;
    - `TransportError` if no answer arrives in any of the allowed attempts;
    - `OutcomeUnknownError` if an operation that must not happen twice may or may not have happened;
    - `DecodeError` if the answer does not match the contract.

    Keyed operations (`create_job`, `create_jobs_bulk`, `on_demand_encode`, `on_demand_ingest_folder`) carry an
    idempotency key, the same key in every attempt. The client uses the first of these that is given:
    `idempotency_key=…`, the key itself; `operation=…`, your name for the logical operation; the body's own
    `external_id`. Without any of them, each call is a logical operation of its own.
    """

    async def upload(
        self,
        job: "JobCreateResponse | JobUpload | str",
        source: "Source",
        *,
        size: int | None = None,
        on_progress: "OnProgress | None" = None,
    ) -> None:
        """Upload a job's file to its presigned URL, with a PUT request that carries no API credentials.

        If the connection breaks, the client uploads the source again from its beginning, as the retry policy allows.
        This needs a source that can be read twice: a path, bytes, or a seekable file.

        Args:
            job: The answer of `create_job`, its `upload`, or the presigned URL itself.
            source: A path, a file opened in binary mode (read from its current position), bytes, or an async iterable
                of bytes.
            size: The size of an async iterable, in bytes. Most storage refuses an upload of unknown size.
            on_progress: Called with a `Progress` after each piece of data; a new attempt starts again at 0 bytes.

        Raises:
            TransferError: The upload failed.
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

        The client retries each part on its own, so it reads the source only once. If the upload fails or is cancelled,
        the client aborts the upload on the service too (`abortStream`).

        With a journal on the client, an upload can be resumed. The client then aborts an upload only if the service
        rejects it. After any other interruption, such as a crash or a cancellation, the service keeps the parts that
        have arrived. The same call with the same `part_size`, in this process or another, reads the source again and
        sends only the parts that are missing or differ. To give up such an upload, call `abort_stream`.

        Args:
            job_id: The job's id.
            source: A path, a file opened in binary mode (read from its current position), bytes, or an async iterable
                of bytes.
            part_size: The size of a part, in bytes; larger if the file would have more than 10,000 parts.
            concurrency: The maximum number of parts in memory and in flight.
            size: The size of an async iterable, in bytes, if it is known.
            on_progress: Called with a `Progress` after each uploaded part.

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
        """Download a job's output to a file, and return the file's path; the file appears only once it is complete.

        The client writes to `path.part`. After an interruption, or in another process, the download resumes where it
        stopped, if the file on the server is still the same. When the presigned URL has expired, the client reads the
        job's status to get a fresh one.

        Args:
            target: A status, a job, a job's id, or a URL.
            path: The file to write; an existing file is replaced.
            on_progress: Called with a `Progress` as data is written, at least every second while data arrives.

        Raises:
            TransferError: The download failed, the file cannot be written, or another download to this path is
                running. The data that has arrived stays in `path.part`.
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

        All tasks that wait for jobs share their status requests. A failed status request does not end the wait: the
        client repeats it until the timeout.

        Args:
            job_id: The job's id.
            timeout: The longest wait, in seconds.
            on_progress: Called with each status that differs from the previous one.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job has not ended; `status` is its last known status.
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
            job_id: The job's id.
            timeout: The longest wait, in seconds.
            on_progress: Called with each status that differs from the previous one.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job has not ended; `status` is its last known status.
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
            job_ids: The ids of the jobs; repeated ids count once.
            timeout: The longest wait for all the jobs, in seconds. The result of a job that has not ended by then has a
                `WaitTimeoutError`.
            raise_errors: Whether to raise the `error` of a job that did not succeed, instead of yielding its result.
            on_progress: Called with each status that differs from the previous one.
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
        """Submit any number of jobs, and yield a `SubmittedJob` for each (`createJobsBulk`).

        The client freezes each batch before it sends the batch. With a journal, a rerun resumes where the last run
        stopped, and submits only the new jobs of an input that has grown; the `external_id` identifies each job.
        Without a journal, the same input with the same `batch_size` makes the same batches with the same keys. See
        docs/INGEST.md.

        The client works only while the caller waits for the next result, so nothing keeps running when the caller stops
        reading. While the client waits for the next job of the input, it yields no results: an input must not wait for
        results.

        Args:
            jobs: An iterable or async iterable of `JobCreateRequest` or of mappings in the wire's shape. The client
                reads it no faster than the caller reads the results.
            settings: Settings for all the jobs; `dry_run` estimates and creates nothing, `confirm` queues. `fail_fast`
                is refused, because every job has an outcome of its own.
            batch_size: The maximum number of jobs in a request. Batches get smaller if the service rejects them as too
                large.
            concurrency: The maximum number of requests in flight.
            journal: Records batches before they are sent; by default the client's journal, if it has one.
            on_progress: Called with a `SubmitProgress` after every batch.

        Raises:
            ValidationError: An argument is not allowed. (A job that is not allowed is a result with this error.)
            JournalError: The journal cannot be used.
            APIError: The service rejects a whole request, for example with `insufficient_tokens`. The client raises
                this error, or an error of the input itself, once the caller has read all results so far. A note on the
                error describes the state of the run.
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
        """Encode a local file to a local file: create, upload, approve, confirm, wait, download, and return the status.

        The operations are `createJob`, `approveUnified`, `confirmJob` and `jobStatus`. With an `external_id`, an
        idempotency key or an `operation`, you can call the flow again after a crash: the second run finds the job of
        the first run, and resumes where the first run stopped.

        Args:
            path: The video.
            request: The settings of the encode.
            output: The file to write, which appears only once it is complete.
            timeout: The longest wait for the encode, in seconds; it does not limit the transfers.
            on_progress: Called with a `Progress` during the upload, the encode and the download.
            idempotency_key: The idempotency key of the job's creation, at most 255 characters.
            operation: The name of the logical operation, from which the client derives that key.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job has not ended; `status` is its last known status.
            TransferError: The upload or the download failed.
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
        """Encode the video at a URL, and return the output's download URL (`onDemandEncode`, `onDemandStatus`).

        Args:
            request: The source and the settings of the encode. The output must stay with the service.
            timeout: The longest wait, in seconds.
            on_progress: Called with a `Progress` during the encode.
            idempotency_key: The idempotency key of the job's creation, at most 255 characters.
            operation: The name of the logical operation, from which the client derives that key.

        Raises:
            JobFailedError: The job failed; `failure_message` says why.
            JobCanceledError: The job was canceled.
            WaitTimeoutError: The job has not ended; `status` is its last known status.
            TransferError: The job has succeeded, but its output is not available.
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
        """Read a job's status at once instead of at the next poll, because the job has changed.

        Args:
            event: A verified webhook event, or the job's id.
        """
        from convertrilo.waiting import notify

        notify(self, event)
