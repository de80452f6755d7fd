"""The checks of `convertrilo doctor`: settings, service, key, tokens, clock, webhooks and ffmpeg."""

import importlib.util
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import httpx

from convertrilo._http.transport import make_transport
from convertrilo.cli import failures, settings
from convertrilo.cli.commands.webhooks import webhook_state
from convertrilo.cli.output import tokens_text
from convertrilo.cli.service import ServiceTarget
from convertrilo.client import AsyncClient
from convertrilo.codec import to_wire
from convertrilo.errors import APIError, AuthenticationError, ConvertriloError, PermissionDeniedError
from convertrilo.models import ApiKeyResponse, TokenBalanceResponse, WebhookListResponse
from convertrilo.retry import RetryPolicy

if TYPE_CHECKING:
    from convertrilo.cli.service import ClientOptions

T = TypeVar("T")
State = Literal["ok", "warning", "failed", "skipped"]

_TOLERATED_SKEW = 60.0
"""Seconds; webhooks and journals tolerate 300."""
_EXPIRES_SOON = timedelta(days=7)
_NEEDED_SCOPES = ("jobs:create", "jobs:read", "jobs:cancel", "tokens:read")
"""The scopes that the commands for jobs need."""
_TINY_JOB = {"codec": "h264", "resolution": "480p", "fps": 30}


@attrs.frozen
class Check:
    """The result of one check."""

    name: str
    state: State
    says: str
    code: int = failures.SUCCESS
    """The exit code if the check failed."""
    facts: dict[str, Any] = attrs.field(factory=dict[str, Any])
    """More about the result, for programs."""

    @property
    def wire(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"name": self.name, "state": self.state, "says": self.says, **self.facts}


def examine(service: ServiceTarget) -> list[Check]:
    """Run all checks; a check that depends on a failed one is `skipped`."""
    configuration = _configuration(service)
    transport = None if service.sandbox else _ClockTransport(make_transport(max_connections=2))
    options: ClientOptions = {"retry": RetryPolicy.none()}
    if transport is not None:
        options["transport"] = transport
    checks = [configuration]
    if configuration.state == "failed":
        checks += [Check(name, "skipped", "no settings") for name in ("service", "key", "tokens", "clock", "webhooks")]
    else:
        checks += service.run(lambda client: _check_service(client, service, transport), **options)
    return [*checks, _ffmpeg()]


# ---- this machine


def _configuration(service: ServiceTarget) -> Check:
    if service.sandbox:
        folder = settings.state_folder()
        return Check("settings", "ok", f"the sandbox in {folder}", facts={"path": str(folder)})
    try:
        account = settings.account_settings(service.profile)
    except ConvertriloError as error:
        return Check("settings", "failed", error.message, failures.USAGE)
    origins = dict(account.origins)
    facts = {"profile": account.profile, "baseUrl": account.base_url, "origins": origins}
    if account.api_key is None and account.access_token is None:
        how = "no API key: log in with convertrilo login, or set CONVERTRILO_API_KEY"
        return Check("settings", "failed", how, failures.USAGE, facts)
    file = settings.config_file()
    if sys.platform != "win32" and file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        return Check("settings", "warning", f"other users can read {file}: chmod 600 {file}", facts=facts)
    where = ", ".join(f"{name} from {origin}" for name, origin in origins.items())
    return Check("settings", "ok", where, facts=facts)


def _ffmpeg() -> Check:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        how = 'not installed; only the sandbox needs it: pip install "convertrilo[sandbox]"'
        return Check("ffmpeg", "warning", how)
    import imageio_ffmpeg

    path = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([path, "-hide_banner", "-version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = done.stdout.partition(" Copyright")[0].removeprefix("ffmpeg version ").strip()
    if done.returncode:
        return Check("ffmpeg", "warning", f"{path} does not run; only the sandbox needs it")
    return Check("ffmpeg", "ok", version, facts={"version": version, "path": path})


# ---- the service


class _ClockTransport(httpx.AsyncBaseTransport):
    """Measures how many seconds the service's clock, as in its `Date` headers, is ahead of this machine's."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.skew: float | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and measure the clock by its answer."""
        began = time.time()
        response = await self._inner.handle_async_request(request)
        try:
            # The header drops fractions of a second.
            date = parsedate_to_datetime(response.headers["date"]).timestamp() + 0.5
        except (KeyError, ValueError):
            return response
        self.skew = date - (began + time.time()) / 2
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


async def _check_service(client: AsyncClient, service: ServiceTarget, transport: _ClockTransport | None) -> list[Check]:
    began = time.monotonic()
    balance = await _try(client.get_balance())
    took = round((time.monotonic() - began) * 1000)
    if isinstance(balance, ConvertriloError) and not isinstance(balance, APIError):
        failed = Check("service", "failed", balance.message, failures.exit_code(balance), {"baseUrl": client.base_url})
        return [failed, *(Check(name, "skipped", "no answer") for name in ("key", "tokens", "clock", "webhooks"))]
    reached = Check("service", "ok", f"{client.base_url} answers in {took} ms", facts={"ms": took})
    if isinstance(balance, APIError) and balance.status >= 500:
        reached = Check("service", "failed", failures.error_line(balance), failures.exit_code(balance))
    clock = _clock(transport)
    if isinstance(balance, AuthenticationError):
        key = Check("key", "failed", failures.error_line(balance), failures.exit_code(balance))
        return [reached, key, Check("tokens", "skipped", "no key"), clock, Check("webhooks", "skipped", "no key")]
    webhooks = await _try(client.get_webhooks())
    return [reached, await _key(client, service, balance, webhooks), _tokens(balance), clock, _webhooks(webhooks)]


async def _try(call: Awaitable[T]) -> T | ConvertriloError:
    """Return the answer of a call, or its error."""
    try:
        return await call
    except ConvertriloError as error:
        return error


async def _key(client: AsyncClient, service: ServiceTarget, balance: object, webhooks: object) -> Check:
    no_job = str(uuid.uuid4())
    tried = {
        "jobs:create": await _try(client.create_jobs_bulk({"jobs": [_TINY_JOB], "settings": {"dryRun": True}})),
        "jobs:read": await _try(client.job_status(no_job)),
        "jobs:cancel": await _try(client.cancel_job(no_job)),
        "tokens:read": balance,
        "webhooks:manage": webhooks,
    }
    scopes = {scope: not isinstance(answer, PermissionDeniedError) for scope, answer in tried.items()}
    known = await _key_in_use(client, service)
    facts: dict[str, Any] = {"scopes": scopes}
    if known is not None:
        wire = to_wire(known)
        facts |= {"keyName": known.name, "prefix": known.prefix, "expiresAt": wire.get("expiresAt")}
        if known.expires_at is not None and known.expires_at - datetime.now(UTC) < _EXPIRES_SOON:
            return Check("key", "warning", f"expires at {wire['expiresAt']}: convertrilo keys create NAME", facts=facts)
    missing = [scope for scope, is_there in scopes.items() if not is_there]
    if any(scope in missing for scope in _NEEDED_SCOPES):
        return Check("key", "warning", f"lacks {', '.join(missing)}", facts=facts)
    return Check("key", "ok", "may " + ", ".join(scope for scope in scopes if scopes[scope]), facts=facts)


async def _key_in_use(client: AsyncClient, service: ServiceTarget) -> ApiKeyResponse | None:
    """Return the service's record of the API key in use, or None without an access token to read it."""
    account = None if service.sandbox else settings.account_settings(service.profile)
    if account is None or account.api_key is None or account.access_token is None:
        return None
    answer = await _try(client.get_api_keys())
    keys: Sequence[ApiKeyResponse] = () if isinstance(answer, ConvertriloError) else answer.keys or ()
    return next((each for each in keys if each.prefix and account.api_key.startswith(each.prefix)), None)


def _tokens(balance: TokenBalanceResponse | ConvertriloError) -> Check:
    if isinstance(balance, ConvertriloError):
        return Check("tokens", "skipped", failures.error_line(balance))
    wire = to_wire(balance)
    says = f"{tokens_text(balance.available or 0)} available, {tokens_text(balance.reserved or 0)} reserved"
    return Check("tokens", "ok" if balance.available else "warning", says, facts=wire)


def _clock(transport: _ClockTransport | None) -> Check:
    if transport is None or transport.skew is None:
        return Check("clock", "skipped", "the service's answers have no Date header")
    facts = {"skewSec": round(transport.skew, 1)}
    if abs(transport.skew) <= _TOLERATED_SKEW:
        return Check("clock", "ok", f"within {abs(transport.skew):.0f} s of the service's clock", facts=facts)
    direction = "behind" if transport.skew > 0 else "ahead of"
    says = f"{abs(transport.skew):.0f} s {direction} the service's clock: correct it; webhooks and journals need it"
    return Check("clock", "warning", says, facts=facts)


def _webhooks(answer: WebhookListResponse | ConvertriloError) -> Check:
    if isinstance(answer, ConvertriloError):
        return Check("webhooks", "skipped", failures.error_line(answer))
    states = {str(each.id): webhook_state(to_wire(each)) for each in answer.webhooks or ()}
    broken = {each: state for each, state in states.items() if state != "active"}
    facts = {"webhooks": states}
    if not broken:
        return Check("webhooks", "ok", f"{len(states)} active" if states else "none", facts=facts)
    listed = ", ".join(f"{each} is {state}" for each, state in broken.items())
    how = "convertrilo webhooks deliveries ID shows why, and webhooks update ID --active switches it on again"
    return Check("webhooks", "warning", f"{listed}: {how}", facts=facts)
