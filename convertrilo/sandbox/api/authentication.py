"""Authentication and authorization: whose credentials a request carries, and whether their scope suffices."""

import hashlib
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from convertrilo import operations
from convertrilo.models import Scope
from convertrilo.operations import Auth, Operation
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.store import Tx

SCOPES: tuple[str, ...] = typing.get_args(Scope)

_SCOPE_OF: Mapping[str, Scope] = {
    operations.PROBE_DURATION.id: "jobs:read",
    operations.JOB_STATUS.id: "jobs:read",
    operations.BULK_STATUS.id: "jobs:read",
    operations.ON_DEMAND_STATUS.id: "jobs:read",
    operations.CANCEL_JOB.id: "jobs:cancel",
    operations.ON_DEMAND_CANCEL.id: "jobs:cancel",
    operations.GET_BALANCE.id: "tokens:read",
    operations.RESERVE_TOKENS.id: "tokens:write",
    operations.RELEASE_TOKENS.id: "tokens:write",
    operations.DEDUCT_TOKENS.id: "tokens:write",
    operations.GET_WEBHOOKS.id: "webhooks:manage",
    operations.CREATE_WEBHOOK.id: "webhooks:manage",
    operations.UPDATE_WEBHOOK.id: "webhooks:manage",
    operations.DELETE_WEBHOOK.id: "webhooks:manage",
    operations.TEST_WEBHOOK.id: "webhooks:manage",
    operations.GET_WEBHOOK_DELIVERIES.id: "webhooks:manage",
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


def authenticate(tx: Tx, operation: Operation[Any], headers: Mapping[str, str]) -> Caller | None:
    """Return the caller of a request, or None for an operation without authentication.

    Raises:
        Problem: 401 for wrong or expired credentials, 403 for a missing scope or a banned account.
    """
    if operation.auth is Auth.NONE:
        return None
    api_key, authorization = headers.get("x-api-key"), headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    if operation.auth is Auth.ANY and api_key is not None:
        return _by_api_key(tx, operation, api_key)
    if scheme.lower() == "bearer":
        return _by_token(tx, token.strip())
    needed = "an access token" if operation.auth is Auth.BEARER else "an API key or an access token"
    raise _unauthorized(f"This operation needs {needed}, and the request has none.")


def _by_api_key(tx: Tx, operation: Operation[Any], api_key: str) -> Caller:
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
    check_not_banned(banned)
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
    check_not_banned(row[2])
    return Caller(row[0], None)


def check_not_banned(banned: int) -> None:
    """Raise 403 `account_banned` for a banned account."""
    if banned:
        raise Problem(403, "account_banned", "The account is banned.")


def _unauthorized(message: str) -> Problem:
    return Problem(401, "invalid_api_key", message)
