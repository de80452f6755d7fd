"""Which logical operation a call is, and the idempotency key that names it.

A logical operation is something the caller wants done once. Its identity is, first that applies: the caller's own
`idempotency_key`; the caller's name for it (`operation="…"`); the body's own `external_id` (for a bulk request, every
job's; for a folder, its `external_id_prefix`); or just this one call.

A derived key is `"cvr1-"` and the SHA-256, in hexadecimal, of the canonical JSON of

    {"body": <the body without credentials>, "name": <the caller's name, or null>, "operation": "<operation id>"}

so it is the same on every machine, and in any language that follows `derive_key`.
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
from convertrilo.operations import OPERATIONS, Operation, Repeat

_PREFIX = "cvr1-"
_MAX_LENGTH = 255

IdentityKind = Literal["key", "operation", "external_id", "call"]
"""How a logical operation got its identity; see the top of this module."""


@attrs.frozen(kw_only=True)
class Identity:
    """A logical operation: its key, and how it got it."""

    key: str
    kind: IdentityKind
    name: str | None = None
    """The caller's name for it, for `operation`."""


def identify(
    operation: Operation[Any],
    wire: dict[str, Any],
    body: bytes,
    *,
    idempotency_key: str | None = None,
    name: str | None = None,
) -> tuple[Identity, bytes]:
    """Return the identity of a call, and its body's canonical bytes without credentials.

    Args:
        operation: A keyed operation.
        wire: Its body in the wire's shape, as `codec.to_wire` makes it.
        body: The same as canonical bytes.
        idempotency_key: The caller's own key, 1 to 255 visible ASCII characters.
        name: The caller's name for the logical operation.

    Raises:
        ValidationError: The key or the name is unusable.
    """
    bare = bare_of(wire)
    bare_body = body if bare is wire else encode(bare)
    if idempotency_key is not None:
        return Identity(key=_checked_key(idempotency_key), kind="key"), bare_body
    if name is not None:
        _check_name(name)
        return Identity(key=_derived(operation.id, name, bare_body), kind="operation", name=name), bare_body
    if _has_own_identity(operation, wire):
        return Identity(key=_derived(operation.id, None, bare_body), kind="external_id"), bare_body
    return Identity(key=f"{_PREFIX}{uuid.uuid4().hex}", kind="call"), bare_body


def batch_identity(bare_body: bytes, *, name: str | None, is_named: bool) -> Identity:
    """Return the identity of a batch of jobs.

    Args:
        bare_body: The body of `createJobsBulk` as canonical bytes without credentials.
        name: What tells it from a batch with the same jobs.
        is_named: Whether every job has an `externalId`.
    """
    if is_named:
        kind: IdentityKind = "external_id" if name is None else "operation"
        return Identity(key=_derived("createJobsBulk", name, bare_body), kind=kind, name=name)
    return Identity(key=f"{_PREFIX}{uuid.uuid4().hex}", kind="call")


ROUND_MARK = " round "


def name_of_round(name: str, round_number: int) -> str:
    """Return what a batch is called that goes out again with jobs of an earlier one: its key must differ.

    Args:
        name: What the first batch was called.
        round_number: How often its jobs went out before, at least 1.
    """
    return f"{name}{ROUND_MARK}{round_number}"


def derive_key(operation: str, body: Model | Mapping[str, Any], *, name: str | None = None) -> str:
    """Return the idempotency key that the client sends for a body that has an identity.

    Another service can compute the same: remove the credentials (`accessKeyId`, `secretAccessKey`, `accessToken`,
    `refreshToken` and `sessionToken` wherever they stand outside `metadata`, and user name, password and signature
    parameters of every `sourceUrl`, `endpoint` and `webhook`), put the rest into an object with the keys `body`, `name`
    and `operation`, write that as canonical JSON (keys sorted, compact, UTF-8, unescaped, integral floats as integers),
    and hash it.

    Args:
        operation: The id of a keyed operation: `createJob`, `createJobsBulk`, `onDemandEncode` or
            `onDemandIngestFolder`.
        body: Its body, as a model or as a mapping in the wire's shape.
        name: The caller's name for the logical operation (`operation="…"`), or `None` when the body's own
            `external_id` is its identity.

    Raises:
        ValidationError: There is no such keyed operation, the name or the body is not what is allowed, or neither
            gives the operation an identity.
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
            operation, [Issue("", "needs a name, or a body with an external id: each call has its own key")]
        )
    return _derived(operation, name, encode(bare_of(wire)))


def _derived(operation_id: str, name: str | None, bare_body: bytes) -> str:
    document = b'{"body":%b,"name":%b,"operation":"%b"}' % (bare_body, encode(name), operation_id.encode())
    return _PREFIX + hashlib.sha256(document).hexdigest()


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValidationError("operation", [Issue("", f"must be a string, not a {type(name).__name__}")])
    if not name:
        raise ValidationError("operation", [Issue("", "must not be empty: it names what is to be done once")])


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
    if operation.id == "createJobsBulk":
        return bool(wire["jobs"]) and all(job.get("externalId") for job in wire["jobs"])
    return bool(wire.get("externalIdPrefix" if operation.id == "onDemandIngestFolder" else "externalId"))


def _body_model(operation: Operation[Any]) -> type[Model]:
    assert operation.body is not None
    assert issubclass(operation.body, Model)
    return operation.body


# ---- without credentials

CREDENTIALS = frozenset({"accessKeyId", "secretAccessKey", "accessToken", "refreshToken", "sessionToken"})
"""Fields of a body that are credentials wherever they stand, outside `metadata`."""

SIGNED_URLS = frozenset({"sourceUrl", "endpoint", "webhook"})
"""Fields of a body that are URLs and may carry a signature, or user name and password."""


def bare_of(value: Any) -> Any:
    """Return a body, or a part of it, without credentials: the very same object if it has none."""
    if value.__class__ is dict:
        changed: dict[str, Any] = {}
        for name, each in value.items():
            bare = each
            if name in SIGNED_URLS and isinstance(each, str):
                bare = without_signature(each)
            elif each.__class__ in (dict, list) and name not in CREDENTIALS and name != "metadata":
                bare = bare_of(each)
            if bare is not each:
                changed[name] = bare
        if changed or not CREDENTIALS.isdisjoint(value):
            return {name: changed.get(name, each) for name, each in value.items() if name not in CREDENTIALS}
    elif value.__class__ is list:
        bare_list = [bare_of(each) for each in value]
        if any(new is not old for new, old in zip(bare_list, value, strict=True)):
            return bare_list
    return value


# ---- without the signature of a presigned URL


_Scheme = tuple[frozenset[str], frozenset[str]]
"""A way of signing URLs: the parameters that give it away, and all that it adds."""


def _scheme(marks: str, adds: str) -> _Scheme:
    return frozenset(marks.split()), frozenset(f"{marks} {adds}".split())


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
    """Return a URL without user name and password and without the parameters that sign it; all else stays as it is.

    Known are the presigned URLs of AWS (Signature Versions 2 and 4), CloudFront, Google Cloud Storage (V2 and V4) and
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
