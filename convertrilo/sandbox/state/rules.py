"""Rules: the behaviour that the API's documents leave open, as settings. The defaults are the strictest choices."""

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class Rules:
    """How the sandbox behaves where the API's documents do not say how the service does."""

    key_lifetime: float | None = 86_400.0
    """Seconds for which an idempotency key is remembered; None is forever."""
    compare: Literal["bytes", "json"] = "bytes"
    """Whether two bodies are compared byte by byte or as JSON."""
    compare_credentials: bool = True
    """Whether comparing bodies includes the credentials in them; False ignores credentials and compares JSON."""
    replay_errors: bool = False
    """Whether a 4xx response is replayed for its key, like a success; 401, 402, 403, 409 and 429 never are."""
    key_scope: Literal["account", "api_key"] = "account"
    """Whether an idempotency key belongs to the account or to one API key of the account."""
    max_bulk_jobs: int = 1_000
    """The maximum number of jobs in one bulk request."""
    max_bulk_ids: int = 1_000
    """The maximum number of ids in one bulk status or bulk confirmation."""
    bulk_status_on_demand: bool = False
    """Whether `bulkStatus` and `jobStatus` find on-demand jobs."""
    url_ingest: bool = True
    """Whether jobs may have a source URL; if not: `url_ingest_disabled`."""
    signed_urls_only: bool = False
    """Whether a source URL must be signed; if it is not: `signed_url_required`."""
    blocked_hosts: frozenset[str] = frozenset()
    """Hosts from which no source is fetched: `url_host_blocked`."""
    max_source_bytes: int = 20 * 1024**3
    """The maximum size of a source: `file_too_large`."""
    max_webhooks: int = 10
    """The maximum number of webhooks of an account: `webhook_limit_exceeded`."""
    dropbox: Literal["withdrawn", "not_connected"] = "withdrawn"
    """The response to requests that use Dropbox: `deprecated_dropbox`, or `dropbox_not_connected`."""
    requests_per_minute: int | None = None
    """Requests per minute of an account, or of a caller without one: `rate_limit_exceeded`. None sets no limit."""
    retry_after: Literal["seconds", "date", "none"] = "seconds"
    """The form of the `Retry-After` header on `rate_limit_exceeded`."""
    upload_seconds: int = 3_600
    """How long an upload URL is valid."""
    download_seconds: int = 86_400
    """How long a download URL is valid; on-demand jobs set their own `outputExpiry`."""
    session_seconds: int = 3_600
    """How long an access token from `login` is valid."""
