"""`BaseClient`: one method for each of the contract's operations, and the settings they share."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx

from convertrilo import operations
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._http.context import Options
from convertrilo._http.credentials import Credentials, TokenSource, is_visible
from convertrilo._http.engine import Arguments, Engine
from convertrilo.errors import ConfigurationError, Issue, NotFoundError, ValidationError
from convertrilo.events import Listener
from convertrilo.models import (
    ApiKeyCreateRequest,
    ApiKeyListResponse,
    ApiKeyResponse,
    ApproveUnifiedRequest,
    ApproveUnifiedResponse,
    AuthLoginRequest,
    AuthLoginResponse,
    BulkConfirmRequest,
    BulkConfirmResponse,
    BulkCreateRequest,
    BulkCreateResponse,
    BulkStatusResponse,
    ConfirmRequest,
    ConfirmResponse,
    JobCreateRequest,
    JobCreateResponse,
    OnDemandCancelResponse,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
    OnDemandFolderIngestRequest,
    OnDemandFolderIngestResponse,
    OnDemandStatusResponse,
    ProbeDurationResponse,
    PublicJobCreateRequest,
    StatusResponse,
    StreamFinalizeRequest,
    StreamInitResponse,
    TokenBalanceResponse,
    TokenDeductRequest,
    TokenReserveRequest,
    WebhookCreateRequest,
    WebhookDeliveryListResponse,
    WebhookListResponse,
    WebhookResponse,
    WebhookUpdateRequest,
)
from convertrilo.operations import Operation
from convertrilo.retry import RetryBudget, RetryPolicy

if TYPE_CHECKING:
    from convertrilo.journal import Journal

R = TypeVar("R")

JsonObject = Mapping[str, Any]
"""A body in the wire's shape (camelCase), as in the TypeScript SDK; a value of `None` means "not set"."""

DEFAULT_BASE_URL = "https://api.convertrilo.com"
DEFAULT_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class BaseClient:
    """A client with one method for each operation of the Convertrilo API, for asyncio and trio.

    Any number of tasks can share one client. `AsyncClient` adds the flows as methods. Flows that are functions, such as
    `ingest_folder`, take either client.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        get_token: TokenSource | None = None,
        base_url: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_connections: int = 100,
        journal: "Journal | None" = None,
        transport: httpx.AsyncBaseTransport | None = None,
        http_client: httpx.AsyncClient | None = None,
        on_event: Listener | None = None,
        poll_batch_size: int = 100,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Create a client; it connects with its first request.

        Args:
            api_key: The API key. The default is the environment variable `CONVERTRILO_API_KEY`, unless `get_token` is
                given.
            get_token: Returns a bearer token, or an awaitable of one. The client calls it for each request that
                carries a token.
            base_url: The URL of the service. The default is the environment variable `CONVERTRILO_BASE_URL`, or else
                the production service.
            retry: The retry policy; `RetryPolicy.none()` makes a single attempt.
            timeout: Seconds that each step of an attempt may take: to wait for a free connection, to connect, to send
                some data, to receive some data. The default is 30, and 10 to connect. The deadline for a whole call is
                `retry.deadline`.
            max_connections: The maximum number of open connections. Further requests wait for a free connection.
            journal: Records keyed operations before they are sent, and the parts of uploads once they have arrived.
                The client opens and closes the journal.
            transport: Sends the requests instead of the client's own connection pool. The client closes the transport.
                The transport must not resend requests: only the client knows which requests may be sent twice.
            http_client: An `httpx.AsyncClient` that sends the requests. The caller closes it. It must not resend
                requests either. Redirects are not followed.
            on_event: Called with an `AttemptEvent` after each attempt; must not block.
            poll_batch_size: The maximum number of jobs in one `bulkStatus` request while tasks wait for jobs. The
                client asks for fewer jobs if the service rejects that many.
            clock: Tells the time and sleeps; tests pass a virtual clock.

        Raises:
            ConfigurationError: A setting is unusable.
        """
        if transport is not None and http_client is not None:
            raise ConfigurationError("transport and http_client exclude each other")
        if poll_batch_size < 1:
            raise ConfigurationError(f"poll_batch_size must be at least 1, not {poll_batch_size}")
        policy = RetryPolicy() if retry is None else retry
        if http_client is None:
            transport = _own_transport(max_connections) if transport is None else transport
            send, close = transport.handle_async_request, transport.aclose
        else:
            send, close = partial(http_client.send, stream=True, follow_redirects=False), _nothing_to_close
        if api_key is None and get_token is None:
            api_key = os.environ.get("CONVERTRILO_API_KEY") or None
        self._engine = Engine(
            base_url=_checked_base_url(base_url or os.environ.get("CONVERTRILO_BASE_URL") or DEFAULT_BASE_URL),
            credentials=Credentials(_checked_api_key(api_key), get_token),
            send=send,
            close=close,
            budget=RetryBudget(policy.budget),
            journal=journal,
            poll_batch_size=poll_batch_size,
            clock=clock,
            on_event=on_event,
            transport=transport,
        )
        self._options = Options(retry=policy, timeout=_timeout(timeout))

    def with_options(
        self,
        *,
        retry: RetryPolicy | None = None,
        timeout: float | httpx.Timeout | None = None,
        operation: str | None = None,
    ) -> Self:
        """Return a view of this client with other settings; it shares the connections, retry budget and journal.

        Args:
            retry: Another retry policy. Its `budget` has no effect, because the retry budget belongs to the client.
            timeout: Seconds, as in the client.
            operation: The name of the logical operation that keyed calls through this view carry out.
        """
        view = object.__new__(type(self))
        view._engine = self._engine
        view._options = Options(
            retry=self._options.retry if retry is None else retry,
            timeout=self._options.timeout if timeout is None else _timeout(timeout),
            operation=self._options.operation if operation is None else operation,
        )
        return view

    @property
    def base_url(self) -> str:
        """The URL of the service."""
        return str(self._engine.base_url)

    async def aclose(self) -> None:
        """Close the connections and the journal, for this client and all its views."""
        await self._engine.aclose()

    async def __aenter__(self) -> Self:
        await self._engine.open_journal()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self.base_url!r})"

    async def _call(self, operation: Operation[R], **arguments: Unpack[Arguments]) -> R:
        answer, _ = await self._engine.call(operation, self._options, **arguments)
        return answer

    # ---- auth and tokens

    async def login(self, body: AuthLoginRequest | JsonObject) -> AuthLoginResponse:
        """Exchange an email address and a password for a bearer token (`login`). The request has no credentials.

        Raises:
            AuthenticationError: The email address or the password is wrong.
            OutcomeUnknownError: It is unclear whether there is a new token. Log in again: an unused token is harmless.
        """
        return await self._call(operations.LOGIN, body=body)

    async def get_balance(self) -> TokenBalanceResponse:
        """Return the account's tokens in neu: available, reserved, and left of the trial grant (`getBalance`)."""
        return await self._call(operations.GET_BALANCE)

    async def reserve_tokens(self, body: TokenReserveRequest | JsonObject) -> None:
        """Reserve tokens for a job (`reserveTokens`).

        Args:
            body: The job, and the amount in neu.

        Raises:
            InsufficientTokensError: The account has fewer tokens available.
            OutcomeUnknownError: It is unclear whether the tokens are reserved. Read the balance before you repeat the
                call.
        """
        return await self._call(operations.RESERVE_TOKENS, body=body)

    async def release_tokens(self, body: TokenReserveRequest | JsonObject) -> None:
        """Release tokens that were reserved for a job, so that they are available again (`releaseTokens`).

        Args:
            body: The job, and the amount in neu.

        Raises:
            OutcomeUnknownError: It is unclear whether the tokens are released. Read the balance before you repeat the
                call.
        """
        return await self._call(operations.RELEASE_TOKENS, body=body)

    async def deduct_tokens(self, body: TokenDeductRequest | JsonObject) -> None:
        """Spend tokens on a job (`deductTokens`).

        Args:
            body: The job, and the amount in neu.

        Raises:
            InsufficientTokensError: The account has fewer tokens.
            OutcomeUnknownError: It is unclear whether the tokens are spent. Read the balance before you repeat the
                call.
        """
        return await self._call(operations.DEDUCT_TOKENS, body=body)

    # ---- jobs

    async def create_job(
        self,
        body: JobCreateRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> JobCreateResponse:
        """Create a job, once for each logical operation (`createJob`).

        Args:
            body: The settings of the encode. Without `source_url` and `source_s3`, the answer has a presigned URL to
                upload the file to.
            idempotency_key: The idempotency key itself, at most 255 characters.
            operation: The name of the logical operation, from which the client derives the key.

        Raises:
            IdempotencyConflictError: The key was used before with another body.
        """
        return await self._call(operations.CREATE_JOB, body=body, idempotency_key=idempotency_key, name=operation)

    async def probe_duration(self, job_id: str) -> ProbeDurationResponse:
        """Return the duration of a job's uploaded video, in seconds and in minutes (`probeDuration`)."""
        return await self._call(operations.PROBE_DURATION, path={"id": job_id})

    async def approve_unified(
        self, job_id: str, body: ApproveUnifiedRequest | JsonObject | None = None
    ) -> ApproveUnifiedResponse:
        """Probe a job, estimate its price and reserve the tokens; the job is not queued yet (`approveUnified`).

        Args:
            job_id: The job's id.
            body: Settings to approve the job with. Settings that are left out stay as they were at creation.

        Raises:
            InsufficientTokensError: The account has fewer tokens available than the job needs.
            OutcomeUnknownError: It is unclear whether the tokens are reserved; `find_out` says how to check.
        """
        return await self._call(operations.APPROVE_UNIFIED, path={"id": job_id}, body=body)

    async def confirm_job(self, job_id: str, body: ConfirmRequest | JsonObject | None = None) -> ConfirmResponse:
        """Queue a job, and reserve its tokens if that was not done before (`confirmJob`).

        Args:
            job_id: The job's id.
            body: The last settings before the job is queued.

        Raises:
            InsufficientTokensError: The account has fewer tokens available than the job needs.
            OutcomeUnknownError: It is unclear whether the job is queued. Read the job's status to find out.
        """
        return await self._call(operations.CONFIRM_JOB, path={"id": job_id}, body=body)

    async def cancel_job(self, job_id: str) -> None:
        """Cancel a created or queued job; a job that runs or has ended is not affected (`cancelJob`)."""
        return await self._call(operations.CANCEL_JOB, path={"id": job_id})

    async def job_status(self, job_id: str) -> StatusResponse:
        """Return a job's status (`jobStatus`).

        Raises:
            NotFoundError: There is no such job.
        """
        return await self._call(operations.JOB_STATUS, path={"id": job_id})

    # ---- bulk

    async def create_jobs_bulk(
        self,
        body: BulkCreateRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> BulkCreateResponse:
        """Create many jobs, once for each logical operation; the answer has an entry for each job (`createJobsBulk`).

        Args:
            body: The jobs, and settings for all of them. If every job has an `external_id`, those ids are the
                identity of the logical operation.
            idempotency_key: The idempotency key itself, at most 255 characters.
            operation: The name of the logical operation, from which the client derives the key.

        Raises:
            IdempotencyConflictError: The key was used before with another body.
        """
        return await self._call(operations.CREATE_JOBS_BULK, body=body, idempotency_key=idempotency_key, name=operation)

    async def bulk_status(self, job_ids: Iterable[str]) -> BulkStatusResponse:
        """Return the status of many jobs, and the ids that the service does not know (`bulkStatus`).

        Args:
            job_ids: The ids of the jobs, at least one.
        """
        ids = [] if isinstance(job_ids, str) else list(job_ids)  # a string would be an iterable of its characters
        wrong = [
            Issue(f"[{index}]", f"is no job id: {each!r}") for index, each in enumerate(ids) if not each or "," in each
        ]
        if wrong or not ids:
            raise ValidationError("job_ids", wrong or [Issue("", "must be a list that names at least one job")])
        return await self._call(operations.BULK_STATUS, query={"ids": ",".join(ids)})

    async def bulk_confirm(self, body: BulkConfirmRequest | JsonObject) -> BulkConfirmResponse:
        """Queue many jobs (`bulkConfirm`).

        Args:
            body: The ids of the jobs, and settings for all of them.

        Raises:
            InsufficientTokensError: The account has fewer tokens available than the jobs need.
            OutcomeUnknownError: It is unclear which jobs are queued. Call `bulk_status` to find out.
        """
        return await self._call(operations.BULK_CONFIRM, body=body)

    # ---- API keys

    async def get_api_keys(self) -> ApiKeyListResponse:
        """Return the account's API keys, without the keys themselves (`getApiKeys`). Requires a bearer token."""
        return await self._call(operations.GET_API_KEYS)

    async def create_api_key(self, body: ApiKeyCreateRequest | JsonObject) -> ApiKeyResponse:
        """Create an API key (`createApiKey`). Requires a bearer token.

        The service shows the answer's `key` only once: store it.

        Args:
            body: The key's name, its scopes, and the days until it expires.

        Raises:
            OutcomeUnknownError: It is unclear whether there is a new key; `find_out` says how to check.
        """
        return await self._call(operations.CREATE_API_KEY, body=body)

    async def revoke_api_key(self, key_id: str) -> None:
        """Revoke an API key (`revokeApiKey`). Requires a bearer token."""
        return await self._call(operations.REVOKE_API_KEY, path={"id": key_id})

    # ---- webhooks

    async def get_webhooks(self) -> WebhookListResponse:
        """Return the account's webhooks, without their secrets (`getWebhooks`)."""
        return await self._call(operations.GET_WEBHOOKS)

    async def create_webhook(self, body: WebhookCreateRequest | JsonObject) -> WebhookResponse:
        """Create a webhook (`createWebhook`).

        The service shows the answer's `secret` only once: store it.

        Args:
            body: The URL that receives the events, and the events to send.

        Raises:
            OutcomeUnknownError: It is unclear whether there is a new webhook; `find_out` says how to check.
        """
        return await self._call(operations.CREATE_WEBHOOK, body=body)

    async def update_webhook(self, webhook_id: str, body: WebhookUpdateRequest | JsonObject) -> WebhookResponse:
        """Change a webhook, or reactivate it after the service switched it off (`updateWebhook`).

        Args:
            webhook_id: The webhook's id.
            body: The fields to change; the others stay.

        Raises:
            NotFoundError: There is no such webhook.
        """
        return await self._call(operations.UPDATE_WEBHOOK, path={"id": webhook_id}, body=body)

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook (`deleteWebhook`)."""
        return await self._call(operations.DELETE_WEBHOOK, path={"id": webhook_id})

    async def test_webhook(self, webhook_id: str) -> None:
        """Ask the service to send a `webhook.test` event to a webhook (`testWebhook`).

        Raises:
            OutcomeUnknownError: It is unclear whether the event is sent; `find_out` says how to check.
        """
        return await self._call(operations.TEST_WEBHOOK, path={"id": webhook_id})

    async def get_webhook_deliveries(self, webhook_id: str) -> WebhookDeliveryListResponse:
        """Return the last delivery attempts of a webhook, at most 50 (`getWebhookDeliveries`).

        Raises:
            NotFoundError: There is no such webhook.
        """
        return await self._call(operations.GET_WEBHOOK_DELIVERIES, path={"id": webhook_id})

    # ---- chunked upload

    async def init_stream(self, job_id: str) -> StreamInitResponse:
        """Open a chunked upload for a job (`initStream`)."""
        return await self._call(operations.INIT_STREAM, path={"id": job_id})

    async def upload_chunk(self, job_id: str, index: int, data: bytes) -> None:
        """Upload one chunk of a chunked upload (`uploadChunk`).

        Args:
            job_id: The job's id.
            index: The number of the chunk, from 1 to 10,000. Chunks may be uploaded in any order.
            data: The bytes of the chunk.

        Raises:
            ValidationError: The index is out of range.
        """
        if not 1 <= index <= 10_000:
            raise ValidationError(operations.UPLOAD_CHUNK.id, [Issue("index", f"must be from 1 to 10000, not {index}")])
        return await self._call(operations.UPLOAD_CHUNK, path={"id": job_id, "index": index}, body=data)

    async def finalize_stream(self, job_id: str, body: StreamFinalizeRequest | JsonObject | None = None) -> None:
        """Assemble the chunks of a chunked upload (`finalizeStream`).

        Args:
            job_id: The job's id.
            body: The chunks that make up the file, each with its ETag, if the storage returned ETags.

        Raises:
            OutcomeUnknownError: It is unclear whether the upload is complete; `find_out` says how to check.
        """
        return await self._call(operations.FINALIZE_STREAM, path={"id": job_id}, body=body)

    async def abort_stream(self, job_id: str) -> None:
        """Abort a chunked upload; the service drops the chunks (`abortStream`)."""
        return await self._call(operations.ABORT_STREAM, path={"id": job_id})

    # ---- public jobs, without credentials

    async def create_public_job(self, body: PublicJobCreateRequest | JsonObject) -> JobCreateResponse:
        """Create a small job without an account (`createPublicJob`). The request has no idempotency key.

        Raises:
            OutcomeUnknownError: It is unclear whether there is a new job; `find_out` says what to do.
        """
        return await self._call(operations.CREATE_PUBLIC_JOB, body=body)

    async def probe_public_duration(self, job_id: str) -> ProbeDurationResponse:
        """Return the duration of a public job's video, in seconds and in minutes (`probePublicDuration`)."""
        return await self._call(operations.PROBE_PUBLIC_DURATION, path={"id": job_id})

    async def confirm_public_job(self, job_id: str, body: ConfirmRequest | JsonObject | None = None) -> None:
        """Queue a public job (`confirmPublicJob`).

        Raises:
            OutcomeUnknownError: It is unclear whether the job is queued. Read the job's status to find out.
        """
        return await self._call(operations.CONFIRM_PUBLIC_JOB, path={"id": job_id}, body=body)

    async def public_job_status(self, job_id: str, token: str) -> StatusResponse:
        """Return a public job's status (`publicJobStatus`).

        Args:
            job_id: The job's id.
            token: The token of this job, from the answer of `create_public_job`.
        """
        return await self._call(operations.PUBLIC_JOB_STATUS, path={"id": job_id}, query={"token": token})

    # ---- on-demand

    async def on_demand_encode(
        self,
        body: OnDemandEncodeRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> OnDemandEncodeResponse:
        """Encode the video at a URL, once for each logical operation (`onDemandEncode`).

        Args:
            body: The source, the settings of the encode, and the destination of the output.
            idempotency_key: The idempotency key itself, at most 255 characters.
            operation: The name of the logical operation, from which the client derives the key.

        Raises:
            InsufficientTokensError: The account has fewer tokens available than the job needs.
            IdempotencyConflictError: The key was used before with another body.
        """
        return await self._call(operations.ON_DEMAND_ENCODE, body=body, idempotency_key=idempotency_key, name=operation)

    async def on_demand_ingest_folder(
        self,
        body: OnDemandFolderIngestRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> OnDemandFolderIngestResponse:
        """Encode every video of an S3 prefix or a Google Drive folder, at most 1,000 (`onDemandIngestFolder`).

        Args:
            body: The folder, the settings of the encodes, and the destination of the outputs. With an
                `external_id_prefix`, that prefix and the source are the identity of the logical operation.
            idempotency_key: The idempotency key itself, at most 255 characters.
            operation: The name of the logical operation, from which the client derives the key.

        Raises:
            NotFoundError: The folder has no videos.
            AuthenticationError: The service accepts neither the client's credentials nor, for Google Drive, the
                folder's access token.
            IdempotencyConflictError: The key was used before with another body.
        """
        return await self._call(
            operations.ON_DEMAND_INGEST_FOLDER, body=body, idempotency_key=idempotency_key, name=operation
        )

    async def on_demand_status(self, job_id: str) -> OnDemandStatusResponse:
        """Return an on-demand job's status (`onDemandStatus`).

        Raises:
            NotFoundError: There is no such job.
        """
        return await self._call(operations.ON_DEMAND_STATUS, path={"jobId": job_id})

    async def on_demand_cancel(self, job_id: str) -> OnDemandCancelResponse:
        """Cancel an on-demand job; the answer has the number of released tokens, in neu (`onDemandCancel`)."""
        return await self._call(operations.ON_DEMAND_CANCEL, path={"jobId": job_id})

    # ---- a job of either kind

    async def find_job(self, job_id: str) -> StatusResponse | OnDemandStatusResponse:
        """Return a job's status, whether the job is on-demand or not (`jobStatus`, or else `onDemandStatus`).

        Raises:
            NotFoundError: There is no such job of either kind.
        """
        try:
            return await self.job_status(job_id)
        except NotFoundError:
            return await self.on_demand_status(job_id)


def engine_of(client: BaseClient) -> tuple[Engine, Options]:
    """Return the engine that all views of a client share, and this view's options; for modules of this package only."""
    # The one place where modules of this package reach the private state of a client.
    return client._engine, client._options  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _own_transport(max_connections: int) -> httpx.AsyncBaseTransport:
    # Imported here, because a client with another transport needs neither h11 nor the pool.
    from convertrilo._http.transport import make_transport

    return make_transport(max_connections=max_connections)


async def _nothing_to_close() -> None:
    """Do nothing: the caller closes its own `http_client`."""


def _checked_base_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"the base URL is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigurationError("the base URL must begin with https:// or http:// and name a host")
    if url.userinfo or url.query or url.fragment:
        raise ConfigurationError("the base URL must have no user name, password, query or fragment")
    return url


def _checked_api_key(api_key: str | None) -> str | None:
    if api_key is not None and not is_visible(api_key):
        raise ConfigurationError(
            "the API key must be visible ASCII characters; is there a line break or a space in it?"
        )
    return api_key


def _timeout(timeout: float | httpx.Timeout) -> httpx.Timeout:
    return timeout if isinstance(timeout, httpx.Timeout) else httpx.Timeout(timeout)
