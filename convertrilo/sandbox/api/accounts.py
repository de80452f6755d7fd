"""Handlers of login and API keys."""

import hmac
from collections.abc import Mapping

from convertrilo import operations
from convertrilo.models import (
    ApiKeyCreateRequest,
    ApiKeyListResponse,
    ApiKeyResponse,
    AuthLoginRequest,
    AuthLoginResponse,
)
from convertrilo.sandbox.api.authentication import SCOPES, check_not_banned, secret_hash
from convertrilo.sandbox.api.call import ApiCall, Handler
from convertrilo.sandbox.state.clock import to_datetime
from convertrilo.sandbox.state.problem import Problem, not_found
from convertrilo.sandbox.state.store import Tx

_DAY = 86_400.0
_PREFIX_LENGTH = 12


def login(call: ApiCall, tx: Tx) -> AuthLoginResponse:
    """Answer `login`."""
    body = call.body_as(AuthLoginRequest)
    row = tx.row("SELECT id, password, banned FROM accounts WHERE email = ?", body.email)
    if row is None or not hmac.compare_digest(row[1], secret_hash(body.password)):
        raise Problem(401, "user_not_found", "There is no account with this e-mail address and password.")
    check_not_banned(row[2])
    token = tx.ids.secret()
    expires_at = tx.now + call.backend.rules.session_seconds
    tx.run("DELETE FROM sessions WHERE expires_at <= ?", tx.now)
    tx.run("INSERT INTO sessions VALUES (?, ?, ?)", secret_hash(token), row[0], expires_at)
    return AuthLoginResponse(access_token=token, refresh_token=tx.ids.secret())


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
    operations.LOGIN.id: login,
    operations.GET_API_KEYS.id: get_api_keys,
    operations.CREATE_API_KEY.id: create_api_key,
    operations.REVOKE_API_KEY.id: revoke_api_key,
}
