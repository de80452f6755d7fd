"""Identifies the logical operation behind a call, and derives the idempotency key that names it.

A logical operation is something that the caller wants done once. Its identity is the first of these that applies: the
caller's own `idempotency_key`; the caller's name for the operation (`operation="…"`); the `external_id` in the body (of
every job for a bulk request; the `external_id_prefix` for a folder); otherwise this one call.

A derived key is `"cvr1-"` and the SHA-256, in hexadecimal, of the canonical JSON of

    {"body": <the body without credentials>, "name": <the caller's name, or null>, "operation": "<operation id>"}

so the key is the same on every machine, and in any language that follows `derive_key`.
"""

import hashlib
import re
import uuid
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import unquote_plus

import attrs

from convertrilo._json import encode
from convertrilo._model import Model
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.operations import CREATE_JOBS_BULK, ON_DEMAND_INGEST_FOLDER, OPERATIONS, Operation, Repeat

_PREFIX = "cvr1-"
_MAX_LENGTH = 255

IdentityKind = Literal["key", "operation", "external_id", "call"]
"""Where the identity of a logical operation comes from; see the top of this module."""


@attrs.frozen(kw_only=True)
class Identity:
    """The identity of a logical operation: its idempotency key, and where the key comes from."""

    key: str
    kind: IdentityKind
    name: str | None = None
    """The caller's name for the operation, if `kind` is `operation`."""


def identify(
    operation: Operation[Any],
    wire: dict[str, Any],
    body: bytes,
    *,
    idempotency_key: str | None = None,
    name: str | None = None,
) -> tuple[Identity, bytes]:
    """Return the identity of a call, and the canonical bytes of its body without credentials.

    Args:
        operation: A keyed operation.
        wire: The body in the wire's shape, as `codec.to_wire` returns it.
        body: The same body as canonical bytes.
        idempotency_key: The caller's own key, 1 to 255 visible ASCII characters.
        name: The caller's name for the logical operation.

    Raises:
        ValidationError: The key or the name is unusable.
    """
    stripped = strip_credentials(wire)
    body_without_credentials = body if stripped is wire else encode(stripped)
    if idempotency_key is not None:
        identity = Identity(key=_checked_key(idempotency_key), kind="key")
    elif name is not None:
        _check_name(name)
        key = _derived(operation.id, name, body_without_credentials)
        identity = Identity(key=key, kind="operation", name=name)
    elif _has_own_identity(operation, wire):
        identity = Identity(key=_derived(operation.id, None, body_without_credentials), kind="external_id")
    else:
        identity = Identity(key=_random_key(), kind="call")
    return identity, body_without_credentials


def batch_identity(body_without_credentials: bytes, *, name: str | None, is_named: bool) -> Identity:
    """Return the identity of a batch of jobs.

    Args:
        body_without_credentials: The body of `createJobsBulk` as canonical bytes without credentials.
        name: A name that tells this batch from another batch with the same jobs.
        is_named: Whether every job has an `externalId`.
    """
    if is_named:
        kind: IdentityKind = "external_id" if name is None else "operation"
        key = _derived(CREATE_JOBS_BULK.id, name, body_without_credentials)
        return Identity(key=key, kind=kind, name=name)
    return Identity(key=_random_key(), kind="call")


ROUND_MARK = " round "
"""Stands between the name of a batch and the number of its round."""


def name_of_round(name: str, round_number: int) -> str:
    """Return the name of a batch that sends jobs of an earlier batch again. A new name gives the batch a new key.

    Args:
        name: The name of the first batch.
        round_number: How many times the jobs were sent before, at least 1.
    """
    return f"{name}{ROUND_MARK}{round_number}"


def derive_key(operation: str, body: Model | Mapping[str, Any], *, name: str | None = None) -> str:
    """Return the idempotency key that the client sends for a body that has an identity.

    Another program can compute the same key in these steps:

    1. Remove the credentials from the body: the fields `accessKeyId`, `secretAccessKey`, `accessToken`, `refreshToken`
       and `sessionToken` everywhere outside `metadata`, and the user name, the password and the signature parameters of
       every `sourceUrl`, `endpoint` and `webhook`.
    2. Make an object with the keys `body`, `name` and `operation`.
    3. Write the object as canonical JSON: keys sorted, compact, UTF-8, unescaped, integral floats as integers.
    4. Return `cvr1-` and the SHA-256 of these bytes, in hexadecimal.

    Args:
        operation: The id of a keyed operation: `createJob`, `createJobsBulk`, `onDemandEncode` or
            `onDemandIngestFolder`.
        body: The body of the operation, as a model or as a mapping in the wire's shape.
        name: The caller's name for the logical operation (`operation="…"`), or `None` if the `external_id` in the body
            is the identity.

    Raises:
        ValidationError: There is no keyed operation of this id, the name or the body is not valid, or neither gives
            the operation an identity.
    """
    row = OPERATIONS.get(operation)
    if row is None or row.repeat is not Repeat.KEYED:
        keyed = ", ".join(each.id for each in OPERATIONS.values() if each.repeat is Repeat.KEYED)
        raise ValidationError("operation", [Issue("", f"must be one of {keyed}, not {operation!r}")])
    if name is not None:
        _check_name(name)
    cls = _body_model(row)
    model = from_request(cls, body) if isinstance(body, Mapping) else body
    if not isinstance(model, cls):
        raise ValidationError(operation, [Issue("body", f"must be {cls.__name__}, not {type(model).__name__}")])
    wire = to_wire(model)
    if name is None and not _has_own_identity(row, wire):
        raise ValidationError(
            operation,
            [Issue("", "needs a name or a body with an external id; without both, every call has a key of its own")],
        )
    return _derived(operation, name, encode(strip_credentials(wire)))


def _random_key() -> str:
    return f"{_PREFIX}{uuid.uuid4().hex}"


def _derived(operation_id: str, name: str | None, body_without_credentials: bytes) -> str:
    parts = (body_without_credentials, encode(name), operation_id.encode())
    document = b'{"body":%b,"name":%b,"operation":"%b"}' % parts
    return _PREFIX + hashlib.sha256(document).hexdigest()


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValidationError("operation", [Issue("", f"must be a string, not a {type(name).__name__}")])
    if not name:
        raise ValidationError("operation", [Issue("", "must not be empty: it names a logical operation")])


def _checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise ValidationError("idempotency_key", [Issue("", f"must be a string, not a {type(key).__name__}")])
    if not (0 < len(key) <= _MAX_LENGTH):
        raise ValidationError(
            "idempotency_key", [Issue("", f"must have 1 to {_MAX_LENGTH} characters, not {len(key)}")]
        )
    if not key.isascii() or not key.isprintable() or key.strip() != key:
        raise ValidationError("idempotency_key", [Issue("", "must be visible ASCII characters, as headers carry them")])
    return key


def _has_own_identity(operation: Operation[Any], wire: Mapping[str, Any]) -> bool:
    if operation.id == CREATE_JOBS_BULK.id:
        return bool(wire["jobs"]) and all(job.get("externalId") for job in wire["jobs"])
    return bool(wire.get("externalIdPrefix" if operation.id == ON_DEMAND_INGEST_FOLDER.id else "externalId"))


def _body_model(operation: Operation[Any]) -> type[Model]:
    assert operation.body is not None
    assert issubclass(operation.body, Model)
    return operation.body


# ---- without credentials

CREDENTIALS = frozenset({"accessKeyId", "secretAccessKey", "accessToken", "refreshToken", "sessionToken"})
"""Fields of a body that are credentials, at any depth outside `metadata`."""

SIGNED_URLS = frozenset({"sourceUrl", "endpoint", "webhook"})
"""Fields of a body that are URLs, which may carry a signature, or a user name and password."""


def strip_credentials(value: Any) -> Any:
    """Return a body, or a part of one, without credentials: the same object if there are none."""
    if value.__class__ is dict:
        changed: dict[str, Any] = {}
        for name, each in value.items():
            stripped = each
            if name in SIGNED_URLS and isinstance(each, str):
                stripped = without_signature(each)
            elif each.__class__ in (dict, list) and name not in CREDENTIALS and name != "metadata":
                stripped = strip_credentials(each)
            if stripped is not each:
                changed[name] = stripped
        if changed or not CREDENTIALS.isdisjoint(value):
            return {name: changed.get(name, each) for name, each in value.items() if name not in CREDENTIALS}
    elif value.__class__ is list:
        stripped_list = [strip_credentials(each) for each in value]
        if any(new is not old for new, old in zip(stripped_list, value, strict=True)):
            return stripped_list
    return value


# ---- without the signature of a presigned URL


_Scheme = tuple[frozenset[str], frozenset[str]]
"""A way of signing URLs: the query parameters that identify it, and all parameters that it adds."""


def _scheme(marks: str, others: str) -> _Scheme:
    return frozenset(marks.split()), frozenset(f"{marks} {others}".split())


_SCHEMES = (
    _scheme(  # AWS Signature Version 4
        "x-amz-signature",
        "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-signedheaders x-amz-security-token "
        "x-amz-s3session-token x-amz-content-sha256",
    ),
    _scheme("awsaccesskeyid signature", "expires x-amz-security-token"),  # AWS Signature Version 2
    _scheme("key-pair-id signature", "expires policy hash-algorithm"),  # CloudFront
    _scheme(  # Google Cloud Storage, V4
        "x-goog-signature", "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signedheaders"
    ),
    _scheme("googleaccessid signature", "expires"),  # Google Cloud Storage, V2
    _scheme(  # Azure shared access signature
        "sig sv", "ss srt sr sp st se sip spr si ses sdd skoid sktid skt ske sks skv saoid suoid scid"
    ),
)
_USER_INFO = re.compile(r"\A([^:/?#]+://)[^/?#]*@")


def without_signature(url: str) -> str:
    """Return a URL without its user name, password and signature parameters. The rest stays as it is.

    Signature parameters are those of AWS (Signature Versions 2 and 4), CloudFront, Google Cloud Storage (V2 and V4) and
    Azure (shared access signatures).
    """
    if "?" not in url and "@" not in url:
        return url
    if "@" in url:
        url = _USER_INFO.sub(r"\1", url)
    address, mark, rest = url.partition("?")
    if not mark:
        return url
    query, hash_mark, fragment = rest.partition("#")
    parameters = query.split("&")
    names = [unquote_plus(each.partition("=")[0]).lower() for each in parameters]
    present = frozenset(names)
    added = frozenset[str]().union(*(adds for marks, adds in _SCHEMES if marks <= present))
    if not added:
        return url
    kept = "&".join(each for each, name in zip(parameters, names, strict=True) if name not in added)
    return f"{address}{'?' if kept else ''}{kept}{hash_mark}{fragment}"
