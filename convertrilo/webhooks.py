"""Webhooks without I/O: verify the signature of a delivery, and decode its event.

    event = webhooks.parse(body, headers, secret)    # the body's bytes as they were received

`convertrilo.receiver` is the ASGI app around these functions.
"""

import hmac
import time
import typing
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast

from attrs import field

from convertrilo._model import Model, facts, model
from convertrilo.codec import from_answer, read_answer
from convertrilo.errors import ConfigurationError, DecodeError, SignatureError
from convertrilo.models import WebhookEventName

__all__ = ["DEFAULT_TOLERANCE", "MAX_BYTES", "WebhookEvent", "parse", "sign", "verify"]

Secret = str | bytes
Secrets = Secret | Iterable[Secret | None]
Headers = Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Iterable[tuple[str, str]]

MAX_SKEW = 300.0
"""Seconds that the service's clock may be ahead of the local clock."""

DEFAULT_TOLERANCE = 60.0 * (1 + 5 + 30) + 15.0 * 4 + MAX_SKEW
"""The maximum age of an event in seconds: 42 minutes.

The service repeats a failed delivery 1, 5 and 30 minutes later with the same `timestamp`, and each of the four attempts
may take 15 seconds. The remaining five minutes allow for clock differences.
"""

MAX_BYTES = 1 << 20
"""The maximum size of a delivery in bytes: far more than a job's metadata needs, and fast to hash."""

_SIGNATURE, _EVENT = b"x-webhook-signature", b"x-webhook-event"


@model
class WebhookEvent(Model):
    """Something that happened to a job.

    `event` is a `WebhookEventName`, `webhook.test`, or an event that this version does not know. Fields that an event
    does not have are `None`. `extra` holds the unknown fields of the event and of its `data`. All fields are signed.
    The subscription's id is not a field, because the header `X-Webhook-Id` is not signed.
    """

    event: str = field(metadata=facts(known=(*typing.get_args(WebhookEventName), "webhook.test")))
    timestamp: datetime
    job_id: str | None = None
    user_id: str | None = None
    status: str | None = None
    external_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    encoder: str | None = None
    duration_sec: float | None = None
    final_neu: float | None = None
    error: str | None = None
    failure_code: str | None = None


# ---- signatures


def sign(payload: bytes, secret: Secret) -> str:
    """Return the signature of a delivery, its HMAC-SHA256 in hexadecimal. Meant for tests; receivers use `parse`.

    Args:
        payload: The body's bytes.
        secret: The webhook's secret.

    Raises:
        SignatureError: The payload is not bytes, or the secret is empty.
    """
    _check_payload(payload)
    (key,) = keys_of(secret)
    return _signature(key, payload).decode()


def verify(payload: bytes, signature: str | bytes | None, secrets: Secrets) -> bool:
    """Return whether a body was signed with one of the secrets.

    The check takes the same time for every signature, and whichever secret matches.

    Args:
        payload: The body's bytes, as they were received.
        signature: The header `X-Webhook-Signature`. A missing header (`None`) or a value of another type is a wrong
            signature, not an error.
        secrets: The webhook's secret; or several secrets, during a rotation. Empty ones and `None` are ignored.

    Raises:
        SignatureError: Nothing can be verified: the payload is not bytes, or there is no usable secret.
    """
    _check_payload(payload)
    return _matches(payload, _raw(signature), keys_of(secrets))


def _matches(payload: bytes, signature: bytes, keys: list[bytes]) -> bool:
    found = False
    for key in keys:  # no early return: the time must not reveal which key matches
        found |= hmac.compare_digest(_signature(key, payload), signature)
    return found


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, "sha256").hexdigest().encode()


def _check_payload(payload: object) -> None:
    if isinstance(payload, bytes):
        return
    changed = "decoded text" if isinstance(payload, str) else "a parsed and re-encoded body"
    raise SignatureError(
        f"the payload must be the body's bytes as they were received, not {type(payload).__name__}: the signature "
        f"covers these bytes, and {changed} may differ"
    )


def keys_of(secrets: object) -> list[bytes]:
    """Return the secrets as bytes, without the empty ones: anybody could sign with an empty secret.

    Raises:
        SignatureError: There is no usable secret, or one of them is neither text nor bytes.
    """
    if secrets.__class__ is str and secrets:  # a fast path for the common case
        return [_raw(secrets)]
    if secrets is None or isinstance(secrets, str | bytes):
        secrets = [secrets]
    if not isinstance(secrets, Iterable):
        raise SignatureError(f"a secret must be str or bytes, not {type(secrets).__name__}")
    keys: list[bytes] = []
    for secret in cast("Iterable[object]", secrets):
        if secret is not None and not isinstance(secret, str | bytes):
            raise SignatureError(f"a secret must be str or bytes, not {type(secret).__name__}")
        if secret:
            keys.append(_raw(secret))
    if not keys:
        raise SignatureError("there is no usable secret: none is given, or it is empty")
    return keys


def _raw(value: object) -> bytes:
    """Return text or bytes as bytes; any other value counts as empty."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")  # accepts lone surrogates
    return value if isinstance(value, bytes) else b""


# ---- events


def parse(
    payload: bytes,
    headers: Headers,
    secrets: Secrets,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    now: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> WebhookEvent:
    """Verify a delivery's signature and age, and return its event.

    Within the tolerance, the service or anybody who recorded the delivery can send it again. So handle each event once
    for each `job_id` and `event`, as `WebhookReceiver` does.

    Args:
        payload: The body's bytes, as they were received.
        headers: The request's headers: a mapping with names in any case, or pairs of bytes as in an ASGI scope.
        secrets: The webhook's secret; or several secrets, during a rotation.
        tolerance: The maximum age of an event in seconds. The default of 42 minutes allows for the service's retries,
            which come 1, 5 and 30 minutes after each failure with the same timestamp; a smaller tolerance rejects them.
            `math.inf` accepts any age. An event is also rejected if it lies more than `tolerance` seconds, or more than
            five minutes, in the future.
        now: The current time in seconds since the epoch; by default the system's time.
        max_bytes: The maximum size of a body in bytes; a longer one is rejected before its signature is verified.

    Raises:
        SignatureError: The signature is missing or wrong, the event is too old or too far in the future, the body is
            too long, or the header `X-Webhook-Event` names another event than the body; the message says which. Or
            nothing can be verified, as in `verify`.
        DecodeError: The signature is right, but the body is not what the contract says.
        ConfigurationError: `tolerance` is negative or not a number.
    """
    if not tolerance >= 0:
        raise ConfigurationError(f"tolerance must be a number of seconds of at least 0, not {tolerance}")
    _check_payload(payload)
    if len(payload) > max_bytes:
        raise SignatureError(f"the body has {len(payload)} bytes, and {max_bytes} are allowed")
    signature, header_event = _pick(headers)
    keys = keys_of(secrets)
    if signature is None:
        raise SignatureError("the delivery must have exactly one X-Webhook-Signature header")
    if not _matches(payload, signature, keys):
        raise SignatureError("the signature does not match the body with any of the secrets")
    event = decode(payload)
    if header_event != _raw(event.event):
        raise SignatureError("the X-Webhook-Event header does not name the event in the body")
    age = (time.time() if now is None else now) - event.timestamp.timestamp()
    if age > tolerance:
        raise SignatureError(f"the event is {age:.0f} s old, and {tolerance:g} s are tolerated")
    if -age > min(tolerance, MAX_SKEW):
        raise SignatureError(f"the event is {-age:.0f} s ahead of the clock")
    return event


def decode(payload: bytes) -> WebhookEvent:
    """Return the event in a body that was verified before.

    Raises:
        DecodeError: The body is not what the contract says.
    """
    try:
        delivery = read_answer(_Delivery, payload)
        return from_answer(WebhookEvent, {**delivery.data, **delivery.extra}, payload)
    except DecodeError as error:
        message = error.message.replace("the answer", "the webhook's body", 1)
        raise DecodeError(message, start=error.start) from None


@model
class _Delivery(Model):
    """The body of a delivery; `extra` holds the fields other than `data`, such as `event` and `timestamp`."""

    data: Mapping[str, Any]


def _pick(headers: object) -> tuple[bytes | None, bytes | None]:
    """Return the signature header and the event header; `None` for a header that does not occur exactly once."""
    found: dict[bytes, list[bytes]] = {_SIGNATURE: [], _EVENT: []}
    pairs: Any = cast("Any", headers).items() if isinstance(headers, Mapping) else headers
    try:
        for name, value in pairs:
            if (values := found.get(_raw(name).lower())) is not None:
                values.append(_raw(value))
    except (TypeError, ValueError):
        raise SignatureError("the headers are neither a mapping nor pairs of name and value") from None
    signature, event = (values[0] if len(values) == 1 else None for values in found.values())
    return signature, event
