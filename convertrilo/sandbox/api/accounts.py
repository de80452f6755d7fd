"""Authentication and authorization: login, API keys and their scopes; and the handlers for them."""

import hashlib
import hmac
import typing
from collections.abc import Mapping

import attrs

from convertrilo.models import (
    ApiKeyCreateRequest,
    ApiKeyListResponse,
    ApiKeyResponse,
    AuthLoginRequest,
    AuthLoginResponse,
    Scope,
)
from convertrilo.operations import Auth, Operation
from convertrilo.sandbox.api.call import ApiCall, Handler
from convertrilo.sandbox.state.clock import to_datetime
from convertrilo.sandbox.state.problem import Problem, not_found
from convertrilo.sandbox.state.store import Tx

SCOPES: tuple[str, ...] = typing.get_args(Scope)
_DAY = 86_400.0
_PREFIX_LENGTH = 12

_SCOPE_OF: Mapping[str, str] = {
    **dict.fromkeys(("probeDuration", "jobStatus", "bulkStatus", "onDemandStatus"), "jobs:read"),
    **dict.fromkeys(("cancelJob", "onDemandCancel"), "jobs:cancel"),
    "getBalance": "tokens:read",
    **dict.fromkeys(("reserveTokens", "releaseTokens", "deductTokens"), "tokens:write"),
    **dict.fromkeys(
        ("getWebhooks", "createWebhook", "updateWebhook", "deleteWebhook", "testWebhook", "getWebhookDeliveries"),
        "webhooks:manage",
    ),
}
_DEFAULT_SCOPE = "jobs:create"


@attrs.frozen
class Caller:
    """The account, and the API key, of a request's credentials."""

    account: str
    api_key: str | None
    """The id of the API key; None for an access token."""


def secret_hash(secret: str) -> str:
    """Return the hash of a secret, which is stored instead of the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


# ---- authentication


def authenticate(tx: Tx, operation: Operation[object], headers: Mapping[str, str]) -> Caller | None:
    """Return the caller of a request, or None for an operation without authentication.

    Raises:
        Problem: 401 for wrong or expired credentials, 403 for a missing scope or a barred account.
    """
    if operation.auth is Auth.NONE:
        return None
    api_key, authorization = headers.get("x-api-key"), headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    if operation.auth is Auth.ANY and api_key is not None:
        return _by_api_key(tx, operation, api_key)
    if scheme.lower() == "bearer":
        return _by_token(tx, token.strip())
    takes = "an access token" if operation.auth is Auth.BEARER else "an API key or an access token"
    raise _unauthorized(f"This operation needs {takes}, and the request has none.")


def _by_api_key(tx: Tx, operation: Operation[object], api_key: str) -> Caller:
    row = tx.row(
        "SELECT k.id, account, scopes, expires_at, banned FROM api_keys k JOIN accounts a ON a.id = account"
        " WHERE hash = ?",
        secret_hash(api_key),
    )
    if row is None:
        raise _unauthorized("The API key is not known, or was revoked.")
    key_id, account, scopes, expires_at, banned = row
    if expires_at is not None and expires_at <= tx.now:
        raise Problem(401, "api_key_expired", "The API key has expired.")
    _check_not_banned(banned)
    needed = _SCOPE_OF.get(operation.id, _DEFAULT_SCOPE)
    if needed not in scopes.split():
        raise Problem(403, "missing_required_scope", f"The API key lacks the scope {needed}.", requiredScope=needed)
    return Caller(account, key_id)


def _by_token(tx: Tx, token: str) -> Caller:
    row = tx.row(
        "SELECT account, expires_at, banned FROM sessions JOIN accounts a ON a.id = account WHERE token = ?",
        secret_hash(token),
    )
    if row is None or row[1] <= tx.now:
        raise _unauthorized("The access token is not valid, or has expired.")
    _check_not_banned(row[2])
    return Caller(row[0], None)


def _check_not_banned(banned: int) -> None:
    if banned:
        raise Problem(403, "account_banned", "The account is barred.")


def _unauthorized(message: str) -> Problem:
    return Problem(401, "invalid_api_key", message)


def login(call: ApiCall, tx: Tx) -> AuthLoginResponse:
    """Answer `login`."""
    body = call.body_as(AuthLoginRequest)
    row = tx.row("SELECT id, password, banned FROM accounts WHERE email = ?", body.email)
    if row is None or not hmac.compare_digest(row[1], secret_hash(body.password)):
        raise Problem(401, "user_not_found", "There is no account with this e-mail address and password.")
    _check_not_banned(row[2])
    token = tx.ids.secret()
    expires_at = tx.now + call.backend.rules.session_seconds
    tx.run("DELETE FROM sessions WHERE expires_at <= ?", tx.now)
    tx.run("INSERT INTO sessions VALUES (?, ?, ?)", secret_hash(token), row[0], expires_at)
    return AuthLoginResponse(access_token=token, refresh_token=tx.ids.secret())


# ---- API keys


def make_api_key(
    tx: Tx, account: str, name: str, *, scopes: tuple[str, ...] = SCOPES, expires_at: float | None = None
) -> ApiKeyResponse:
    """Create an API key for an account; only the returned value contains the key itself."""
    key = f"cvr_{tx.ids.secret()}"
    made = ApiKeyResponse(
        id=tx.ids.uuid(),
        name=name,
        key=key,
        prefix=key[:_PREFIX_LENGTH],
        scopes=scopes,
        expires_at=to_datetime(expires_at),
        created_at=to_datetime(tx.now),
    )
    tx.run(
        "INSERT INTO api_keys (id, account, hash, name, prefix, scopes, expires_at, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        made.id,
        account,
        secret_hash(key),
        name,
        made.prefix,
        " ".join(scopes),
        expires_at,
        tx.now,
    )
    return made


def create_api_key(call: ApiCall, tx: Tx) -> ApiKeyResponse:
    """Answer `createApiKey`; a key without `scopes` has all of them."""
    body = call.body_as(ApiKeyCreateRequest)
    expires_at = None if body.expires_in_days is None else tx.now + body.expires_in_days * _DAY
    scopes = SCOPES if body.scopes is None else tuple(body.scopes)
    return make_api_key(tx, call.account, body.name, scopes=scopes, expires_at=expires_at)


def get_api_keys(call: ApiCall, tx: Tx) -> ApiKeyListResponse:
    """Answer `getApiKeys`."""
    rows = tx.rows(
        "SELECT id, name, prefix, scopes, expires_at, created_at FROM api_keys WHERE account = ? ORDER BY n",
        call.account,
    )
    keys = [
        ApiKeyResponse(
            id=key_id,
            name=name,
            prefix=prefix,
            scopes=scopes.split(),
            expires_at=to_datetime(expires_at),
            created_at=to_datetime(created_at),
        )
        for key_id, name, prefix, scopes, expires_at, created_at in rows
    ]
    return ApiKeyListResponse(keys=keys)


def revoke_api_key(call: ApiCall, tx: Tx) -> None:
    """Answer `revokeApiKey`; a key that was revoked before is not found."""
    gone = tx.run("DELETE FROM api_keys WHERE id = ? AND account = ?", call.path["id"], call.account)
    if not gone.rowcount:
        raise not_found("API key")


HANDLERS: Mapping[str, Handler] = {
    "login": login,
    "getApiKeys": get_api_keys,
    "createApiKey": create_api_key,
    "revokeApiKey": revoke_api_key,
}
