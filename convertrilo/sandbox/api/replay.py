"""Idempotency keys on the server: claimed before the work, and stored with the response in the work's transaction."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

import attrs

from convertrilo._json import loads
from convertrilo.sandbox.api.authentication import Caller
from convertrilo.sandbox.state.problem import Problem, invalid_request
from convertrilo.sandbox.state.records import CREDENTIALS
from convertrilo.sandbox.state.rules import Rules
from convertrilo.sandbox.state.store import Tx

_MAX_LENGTH = 255
_NEVER_REMEMBERED = frozenset({401, 402, 403, 409, 429})
"""Errors that depend on the moment or the caller rather than on the request."""


@attrs.frozen
class Claim:
    """The idempotency key of a request, claimed for it.

    `answer` is the remembered status and body; None if this request is the first with the key.
    """

    scope: str
    key: str
    answer: tuple[int, bytes] | None = None

    def keep(self, tx: Tx, status: int, body: bytes) -> None:
        """Remember the response; call this in the transaction of the work."""
        tx.run(
            "UPDATE answers SET status = ?, body = ? WHERE scope = ? AND key = ? AND status IS NULL",
            *(status, body, self.scope, self.key),
        )

    def drop(self, tx: Tx) -> None:
        """Forget the key, unless the work was committed."""
        tx.run("DELETE FROM answers WHERE scope = ? AND key = ? AND status IS NULL", self.scope, self.key)


def claim(tx: Tx, rules: Rules, caller: Caller, operation: str, key: str, body: bytes) -> Claim:
    """Claim an idempotency key for a request, or find its remembered response.

    Raises:
        Problem: 409 `idempotency_conflict` if the key was used with another request, 409 `idempotency_in_progress`
            while its first request runs, 400 if the key is empty or too long.
    """
    if not 1 <= len(key) <= _MAX_LENGTH:
        raise invalid_request(f"An Idempotency-Key must have 1 to {_MAX_LENGTH} characters, not {len(key)}.")
    scope = caller.account if rules.key_scope == "account" else (caller.api_key or caller.account)
    fingerprint = _fingerprint(rules, operation, body)
    found = tx.row("SELECT fingerprint, claimed_at, status, body FROM answers WHERE scope = ? AND key = ?", scope, key)
    if found is not None:
        known, claimed_at, status, answer = found
        expired = rules.key_lifetime is not None and claimed_at + rules.key_lifetime <= tx.now
        if not expired or status is None:
            if known != fingerprint:
                raise Problem(409, "idempotency_conflict", "The Idempotency-Key was used with another request.")
            if status is None:
                raise Problem(409, "idempotency_in_progress", "The first request with this Idempotency-Key is running.")
            return Claim(scope, key, (status, answer))
    tx.run(
        "INSERT OR REPLACE INTO answers (scope, key, operation, fingerprint, claimed_at) VALUES (?, ?, ?, ?, ?)",
        scope,
        key,
        operation,
        fingerprint,
        tx.now,
    )
    return Claim(scope, key)


def is_remembered(rules: Rules, status: int) -> bool:
    """Return whether an error response with this status is remembered."""
    return rules.replay_errors and 400 <= status < 500 and status not in _NEVER_REMEMBERED


def forget_unfinished(tx: Tx) -> None:
    """Forget the keys whose requests were interrupted by a crash: their work was not committed."""
    tx.run("DELETE FROM answers WHERE status IS NULL")


def _fingerprint(rules: Rules, operation: str, body: bytes) -> bytes:
    if rules.compare == "json" or not rules.compare_credentials:
        try:
            value = loads(body)
            value = value if rules.compare_credentials else _without_credentials(value)
            body = json.dumps(value, sort_keys=True).encode()
        except (ValueError, RecursionError):
            pass  # the body is invalid and will be refused
    return hashlib.sha256(operation.encode() + b"\0" + body).digest()


def _without_credentials(value: Any) -> Any:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _without_credentials(each) for name, each in fields.items() if name not in CREDENTIALS}
    if isinstance(value, list):
        values = cast("Sequence[Any]", value)
        return [_without_credentials(each) for each in values]
    return value
