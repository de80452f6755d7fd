"""Webhooks as values: signatures over raw bytes, and events out of them; no sockets, no clock but a parameter.

    event = webhooks.parse(body, headers, secret)    # the bytes as they were received

`convertrilo.receiver` is the server around it.
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
"""Seconds by which the service's clock may be ahead of ours."""

DEFAULT_TOLERANCE = 60.0 * (1 + 5 + 30) + 15.0 * 4 + MAX_SKEW
"""Seconds for which an event is accepted: 42 minutes.

A delivery that fails is repeated 1, 5 and 30 minutes later with the same `timestamp`, and each of the four attempts may
take 15 seconds; the rest is for clocks that disagree.
"""

MAX_BYTES = 1 << 20
"""Bytes that a delivery may have: far more than a job's metadata is, far less than what is hard to hash."""

_SIGNATURE, _EVENT = b"x-webhook-signature", b"x-webhook-event"


@model
class WebhookEvent(Model):
    """Something that happened to a job.

    `event` is one of `WebhookEventName`, or `webhook.test`, or one that this version does not know; what only some
    events have is `None` in the others. `extra` has the fields that this version does not know, of the event and of
    its `data`. All of it is signed; the subscription's id, in the header `X-Webhook-Id`, is not, so it is not here.
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
    """Return the signature of a delivery: the hex of its HMAC-SHA256. For tests; receiving needs `verify` or `parse`.

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

    It takes the same time whatever the signature is, and whichever secret is the right one.

    Args:
        payload: The body's bytes, as they were received.
        signature: The header `X-Webhook-Signature`. Whatever is not the right 64 digits, a missing one (`None`) and a
            value of another type among it, is just wrong.
        secrets: The webhook's secret; or several, while one replaces another. What is empty or `None` is passed over.

    Raises:
        SignatureError: Nothing can be verified: the payload is not bytes, or there is no usable secret.
    """
    _check_payload(payload)
    return _matches(payload, _raw(signature), keys_of(secrets))


def _matches(payload: bytes, signature: bytes, keys: list[bytes]) -> bool:
    found = False
    for key in keys:  # all of them: the time must not tell which one it was
        found |= hmac.compare_digest(_signature(key, payload), signature)
    return found


def _signature(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, "sha256").hexdigest().encode()


def _check_payload(payload: object) -> None:
    if isinstance(payload, bytes):
        return
    reason = "a decoded text" if isinstance(payload, str) else "a parsed body, written again,"
    raise SignatureError(
        f"the payload must be the bytes of the body as they were received, not {type(payload).__name__}: those are "
        f"signed, and {reason} may have others"
    )


def keys_of(secrets: object) -> list[bytes]:
    """Return the secrets as keys, without those that are empty: anybody can sign with them.

    Raises:
        SignatureError: There are none, or one of them is neither text nor bytes.
    """
    if secrets.__class__ is str and secrets:  # by far the most usual, and no slower than it must be
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
    """Return what arrived as text or bytes as bytes; anything else is as if nothing had arrived."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")  # encodes any text there is
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
    """Return the event of a delivery, after making sure that the service sent it, and not too long ago.

    Within the tolerance a delivery can be repeated, by the service or by whoever recorded it: what is done with an
    event must be done once for each `job_id` and `event`, as `WebhookReceiver` does.

    Args:
        payload: The body's bytes, as they were received.
        headers: The headers: a mapping in whatever case, or pairs of bytes as in an ASGI scope.
        secrets: The webhook's secret; or several, while one replaces another.
        tolerance: Seconds that an event may be old. The default of 42 minutes allows for the service's own retries,
            which come 1, 5 and 30 minutes after each failure with the same timestamp; with less, those are refused.
            `math.inf` accepts any age. An event of the future is refused if it is that far ahead, or five minutes.
        now: Seconds since the epoch; by default the system's time.
        max_bytes: The most bytes a body may have; a longer one is refused unseen.

    Raises:
        SignatureError: It is not proven to be the service's, too old, too far ahead, or too long, or its header names
            another event than its body; the message says which, and `verify` what else.
        DecodeError: It is the service's, and not what the contract says.
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
        raise SignatureError("there is not one header X-Webhook-Signature")
    if not _matches(payload, signature, keys):
        raise SignatureError("the signature is not that of this body with any of the secrets")
    event = decode(payload)
    if header_event != _raw(event.event):
        raise SignatureError("the header X-Webhook-Event does not name the event that the body tells of")
    age = (time.time() if now is None else now) - event.timestamp.timestamp()
    if age > tolerance:
        raise SignatureError(f"the event is {age:.0f} s old, and {tolerance:g} s are tolerated")
    if -age > min(tolerance, MAX_SKEW):
        raise SignatureError(f"the event is {-age:.0f} s ahead of the clock")
    return event


def decode(payload: bytes) -> WebhookEvent:
    """Return the event of a body that was verified before.

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
    """The body as it is on the wire: `extra` has what is signed beside the data, `event` and `timestamp` among it."""

    data: Mapping[str, Any]


def _pick(headers: object) -> tuple[bytes | None, bytes | None]:
    """Return the headers of the signature and of the event, each if it is there exactly once."""
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
