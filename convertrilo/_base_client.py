"""`BaseClient`: one method for each of the contract's operations, and the settings they share."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import attrs
import httpx

from convertrilo import operations as rows
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo._http.call import Options
from convertrilo._http.credentials import Credentials, TokenSource, is_visible
from convertrilo._http.engine import Engine
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
"""A body in the wire's own shape (camelCase), as the TypeScript SDK takes it; `None` means "not set"."""

DEFAULT_BASE_URL = "https://api.convertrilo.com"
DEFAULT_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class BaseClient:
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
        """Make a client; nothing is connected yet.

        Args:
            api_key: The API key; by default `CONVERTRILO_API_KEY` of the environment, unless there is `get_token`.
            get_token: Returns, or is awaited for, a bearer token; asked for each request that carries one.
            base_url: Where the service is; by default `CONVERTRILO_BASE_URL`, or else the real service.
            retry: How persistent to be; `RetryPolicy.none()` tries once.
            timeout: Seconds an attempt may wait to connect, for a free connection, to send a piece or to read one; the
                deadline for a whole call is `retry.deadline`.
            max_connections: Most connections open at once; further requests queue for one.
            journal: Where keyed operations are written down before they are sent, and parts of uploads when they have
                arrived; opened and closed with the client.
            transport: Used as it is instead of the client's own connections, and closed with the client. It must not
                send a request again by itself: only the client knows which may be, and what that makes unclear.
            http_client: The same, and it stays its owner's to close. Redirects are not followed.
            on_event: Called with an `AttemptEvent` after every attempt; must not block.
            poll_batch_size: Most jobs that one `bulkStatus` asks for while tasks wait; fewer once the service refuses
                that many.
            clock: Tells the time and sleeps; tests pass a virtual one.

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
        """Return a view of this client with other settings, on the same connections, budget and journal.

        Args:
            retry: Another policy; its `budget` is not used, because the budget is the client's.
            timeout: As in the client.
            operation: The name of the logical operation that keyed calls through this view carry out.
        """
        changes: dict[str, Any] = {"retry": retry, "operation": operation}
        changes["timeout"] = None if timeout is None else _timeout(timeout)
        view = object.__new__(type(self))
        view._engine = self._engine
        view._options = attrs.evolve(
            self._options, **{name: value for name, value in changes.items() if value is not None}
        )
        return view

    @property
    def base_url(self) -> str:
        """Where the service is."""
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

    async def _call(self, operation: Operation[R], **arguments: Any) -> R:
        answer, _ = await self._engine.call(operation, self._options, **arguments)
        return answer

    # ---- auth and tokens

    async def login(self, body: AuthLoginRequest | JsonObject) -> AuthLoginResponse:
        """Trade e-mail address and password for a bearer token (`login`). No credentials are sent."""
        return await self._call(rows.LOGIN, body=body)

    async def get_balance(self) -> TokenBalanceResponse:
        """Return what the account has, in tokens (`getBalance`)."""
        return await self._call(rows.GET_BALANCE)

    async def reserve_tokens(self, body: TokenReserveRequest | JsonObject) -> None:
        """Reserve tokens for a job (`reserveTokens`)."""
        return await self._call(rows.RESERVE_TOKENS, body=body)

    async def release_tokens(self, body: TokenReserveRequest | JsonObject) -> None:
        """Release tokens that are reserved for a job (`releaseTokens`)."""
        return await self._call(rows.RELEASE_TOKENS, body=body)

    async def deduct_tokens(self, body: TokenDeductRequest | JsonObject) -> None:
        """Spend tokens on a job (`deductTokens`)."""
        return await self._call(rows.DEDUCT_TOKENS, body=body)

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
            body: What to encode and how. Without `source_url` and `source_s3` the answer says where to upload the file.
            idempotency_key: The key itself, at most 255 characters.
            operation: The name of the logical operation, from which the key is derived.
        """
        return await self._call(rows.CREATE_JOB, body=body, idempotency_key=idempotency_key, name=operation)

    async def probe_duration(self, job_id: str) -> ProbeDurationResponse:
        """Return how long an uploaded video is, in seconds and minutes (`probeDuration`)."""
        return await self._call(rows.PROBE_DURATION, path={"id": job_id})

    async def approve_unified(
        self, job_id: str, body: ApproveUnifiedRequest | JsonObject | None = None
    ) -> ApproveUnifiedResponse:
        """Probe a job, reserve its tokens and return the estimate; the job is not queued yet (`approveUnified`)."""
        return await self._call(rows.APPROVE_UNIFIED, path={"id": job_id}, body=body)

    async def confirm_job(self, job_id: str, body: ConfirmRequest | JsonObject | None = None) -> ConfirmResponse:
        """Queue a job, reserving its tokens if that was not done yet (`confirmJob`)."""
        return await self._call(rows.CONFIRM_JOB, path={"id": job_id}, body=body)

    async def cancel_job(self, job_id: str) -> None:
        """Cancel a job that is created or queued; no effect on one that is further on (`cancelJob`)."""
        return await self._call(rows.CANCEL_JOB, path={"id": job_id})

    async def job_status(self, job_id: str) -> StatusResponse:
        """Return where a job stands (`jobStatus`)."""
        return await self._call(rows.JOB_STATUS, path={"id": job_id})

    # ---- bulk

    async def create_jobs_bulk(
        self,
        body: BulkCreateRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> BulkCreateResponse:
        """Create many jobs, once for each logical operation; the answer has an entry for each (`createJobsBulk`).

        Args:
            body: The jobs, and settings for all of them. If every job has an `external_id`, those are its identity.
            idempotency_key: The key itself, at most 255 characters.
            operation: The name of the logical operation, from which the key is derived.
        """
        return await self._call(rows.CREATE_JOBS_BULK, body=body, idempotency_key=idempotency_key, name=operation)

    async def bulk_status(self, job_ids: Iterable[str]) -> BulkStatusResponse:
        """Return where many jobs stand, and which ids are missing (`bulkStatus`)."""
        ids = [] if isinstance(job_ids, str) else list(job_ids)  # a string is an iterable of its characters
        wrong = [
            Issue(f"[{index}]", f"is no job id: {each!r}") for index, each in enumerate(ids) if not each or "," in each
        ]
        if wrong or not ids:
            raise ValidationError("job_ids", wrong or [Issue("", "must be a list that names at least one job")])
        return await self._call(rows.BULK_STATUS, query={"ids": ",".join(ids)})

    async def bulk_confirm(self, body: BulkConfirmRequest | JsonObject) -> BulkConfirmResponse:
        """Queue many jobs (`bulkConfirm`)."""
        return await self._call(rows.BULK_CONFIRM, body=body)

    # ---- API keys

    async def get_api_keys(self) -> ApiKeyListResponse:
        """Return the account's API keys, without the keys themselves (`getApiKeys`). Takes a bearer token only."""
        return await self._call(rows.GET_API_KEYS)

    async def create_api_key(self, body: ApiKeyCreateRequest | JsonObject) -> ApiKeyResponse:
        """Create an API key; `key` is shown this once (`createApiKey`). Takes a bearer token only."""
        return await self._call(rows.CREATE_API_KEY, body=body)

    async def revoke_api_key(self, key_id: str) -> None:
        """Revoke an API key (`revokeApiKey`). Takes a bearer token only."""
        return await self._call(rows.REVOKE_API_KEY, path={"id": key_id})

    # ---- webhooks

    async def get_webhooks(self) -> WebhookListResponse:
        """Return the account's webhooks, without their secrets (`getWebhooks`)."""
        return await self._call(rows.GET_WEBHOOKS)

    async def create_webhook(self, body: WebhookCreateRequest | JsonObject) -> WebhookResponse:
        """Create a webhook; `secret` is shown this once (`createWebhook`)."""
        return await self._call(rows.CREATE_WEBHOOK, body=body)

    async def update_webhook(self, webhook_id: str, body: WebhookUpdateRequest | JsonObject) -> WebhookResponse:
        """Change a webhook, or switch it on again (`updateWebhook`)."""
        return await self._call(rows.UPDATE_WEBHOOK, path={"id": webhook_id}, body=body)

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook (`deleteWebhook`)."""
        return await self._call(rows.DELETE_WEBHOOK, path={"id": webhook_id})

    async def test_webhook(self, webhook_id: str) -> None:
        """Have a `webhook.test` event sent (`testWebhook`)."""
        return await self._call(rows.TEST_WEBHOOK, path={"id": webhook_id})

    async def get_webhook_deliveries(self, webhook_id: str) -> WebhookDeliveryListResponse:
        """Return the last attempts to deliver, at most 50 (`getWebhookDeliveries`)."""
        return await self._call(rows.GET_WEBHOOK_DELIVERIES, path={"id": webhook_id})

    # ---- chunked upload

    async def init_stream(self, job_id: str) -> StreamInitResponse:
        """Open a chunked upload for a job (`initStream`)."""
        return await self._call(rows.INIT_STREAM, path={"id": job_id})

    async def upload_chunk(self, job_id: str, index: int, data: bytes) -> None:
        """Upload one chunk (`uploadChunk`).

        Args:
            job_id: The job.
            index: Which chunk, from 1 to 10,000; in any order.
            data: Its bytes.
        """
        if not 1 <= index <= 10_000:
            raise ValidationError("uploadChunk", [Issue("index", f"must be from 1 to 10000, not {index}")])
        return await self._call(rows.UPLOAD_CHUNK, path={"id": job_id, "index": index}, body=data)

    async def finalize_stream(self, job_id: str, body: StreamFinalizeRequest | JsonObject | None = None) -> None:
        """Put the chunks together (`finalizeStream`)."""
        return await self._call(rows.FINALIZE_STREAM, path={"id": job_id}, body=body)

    async def abort_stream(self, job_id: str) -> None:
        """Give a chunked upload up (`abortStream`)."""
        return await self._call(rows.ABORT_STREAM, path={"id": job_id})

    # ---- public jobs, without credentials

    async def create_public_job(self, body: PublicJobCreateRequest | JsonObject) -> JobCreateResponse:
        """Create a small job without an account (`createPublicJob`). It has no idempotency key."""
        return await self._call(rows.CREATE_PUBLIC_JOB, body=body)

    async def probe_public_duration(self, job_id: str) -> ProbeDurationResponse:
        """Return how long the video of a public job is, in seconds and minutes (`probePublicDuration`)."""
        return await self._call(rows.PROBE_PUBLIC_DURATION, path={"id": job_id})

    async def confirm_public_job(self, job_id: str, body: ConfirmRequest | JsonObject | None = None) -> None:
        """Queue a public job (`confirmPublicJob`)."""
        return await self._call(rows.CONFIRM_PUBLIC_JOB, path={"id": job_id}, body=body)

    async def public_job_status(self, job_id: str, token: str) -> StatusResponse:
        """Return where a public job stands (`publicJobStatus`); `token` is that job's own."""
        return await self._call(rows.PUBLIC_JOB_STATUS, path={"id": job_id}, query={"token": token})

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
            body: The source, what to make of it, and where to put it.
            idempotency_key: The key itself, at most 255 characters.
            operation: The name of the logical operation, from which the key is derived.
        """
        return await self._call(rows.ON_DEMAND_ENCODE, body=body, idempotency_key=idempotency_key, name=operation)

    async def on_demand_ingest_folder(
        self,
        body: OnDemandFolderIngestRequest | JsonObject,
        *,
        idempotency_key: str | None = None,
        operation: str | None = None,
    ) -> OnDemandFolderIngestResponse:
        """Encode every video of an S3 prefix or a Drive folder, at most 1,000 (`onDemandIngestFolder`).

        Args:
            body: The folder, what to make of its files, and where to put them. With an `external_id_prefix`, that and
                the source are its identity.
            idempotency_key: The key itself, at most 255 characters.
            operation: The name of the logical operation, from which the key is derived.
        """
        return await self._call(
            rows.ON_DEMAND_INGEST_FOLDER, body=body, idempotency_key=idempotency_key, name=operation
        )

    async def on_demand_status(self, job_id: str) -> OnDemandStatusResponse:
        """Return where an on-demand job stands (`onDemandStatus`)."""
        return await self._call(rows.ON_DEMAND_STATUS, path={"jobId": job_id})

    async def on_demand_cancel(self, job_id: str) -> OnDemandCancelResponse:
        """Cancel an on-demand job; the answer says how many tokens that released (`onDemandCancel`)."""
        return await self._call(rows.ON_DEMAND_CANCEL, path={"jobId": job_id})

    # ---- a job of either kind

    async def find_job(self, job_id: str) -> StatusResponse | OnDemandStatusResponse:
        """Return where a job stands, whether it is on-demand or not (`jobStatus`, or else `onDemandStatus`).

        Raises:
            NotFoundError: There is neither.
        """
        try:
            return await self.job_status(job_id)
        except NotFoundError:
            return await self.on_demand_status(job_id)


def engine_of(client: BaseClient) -> tuple[Engine, Options]:
    """Return what a flow needs beneath the methods: the engine that all views share, and this view's options."""
    # The one door to them, for modules of this package only.
    return client._engine, client._options  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _own_transport(max_connections: int) -> httpx.AsyncBaseTransport:
    # Imported when needed: a client with its caller's own transport does without h11 and the rest of it.
    from convertrilo._http.transport import make_transport

    return make_transport(max_connections=max_connections)


async def _nothing_to_close() -> None:
    """A caller's `http_client` is the caller's to close."""


def _checked_base_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"the base URL is no URL: {error}") from None
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
