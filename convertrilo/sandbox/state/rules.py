"""What the API's documents leave open, as settings; the defaults are the strict answers."""

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class Rules:
    """How the sandbox answers where the documents do not say how the service does."""

    key_lifetime: float | None = 86_400.0
    """Seconds for which an idempotency key is remembered; None is for ever."""
    compare: Literal["bytes", "json"] = "bytes"
    """Whether the same body means the same bytes or the same JSON."""
    compare_credentials: bool = True
    """Whether credentials inside the body count when bodies are compared; False compares as JSON."""
    replay_errors: bool = False
    """Whether a 4xx answer is remembered under its key, as a successful one is; credentials and limits never are."""
    key_scope: Literal["account", "api_key"] = "account"
    """Whom a key belongs to: two API keys of one account share it, or do not."""
    max_bulk_jobs: int = 1_000
    """How many jobs one bulk request may carry."""
    max_bulk_ids: int = 1_000
    """How many ids one bulk status or confirmation may carry."""
    bulk_status_on_demand: bool = False
    """Whether `bulkStatus` and `jobStatus` know on-demand jobs."""
    url_ingest: bool = True
    """Whether jobs may name a source URL; False answers `url_ingest_disabled`."""
    signed_urls_only: bool = False
    """Whether a source URL must carry a signature; else `signed_url_required`."""
    blocked_hosts: frozenset[str] = frozenset()
    """Hosts that no source may be on: `url_host_blocked`."""
    max_source_bytes: int = 20 * 1024**3
    """How big a source may be: `file_too_large`."""
    max_webhooks: int = 10
    """How many webhooks an account may have: `webhook_limit_exceeded`."""
    dropbox: Literal["withdrawn", "not_connected"] = "withdrawn"
    """How what names Dropbox is refused: `deprecated_dropbox`, or `dropbox_not_connected`."""
    requests_per_minute: int | None = None
    """How many requests an account, or a caller without one, may make in a minute: `rate_limit_exceeded`."""
    retry_after: Literal["seconds", "date", "none"] = "seconds"
    """How a refusal for the rate says when to come again, if it does."""
    upload_seconds: int = 3_600
    """For how long an upload URL works."""
    download_seconds: int = 86_400
    """For how long a download URL works (on-demand jobs say it themselves: `outputExpiry`)."""
    session_seconds: int = 3_600
    """For how long an access token from `login` works."""
