"""The URL and the body of a call's request, from the operation and the caller's arguments."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from convertrilo._json import encode
from convertrilo._model import Model
from convertrilo.codec import from_request, to_wire
from convertrilo.errors import Issue, ValidationError
from convertrilo.operations import Operation

_MOST_URLS = 1024


class Urls:
    """Makes the URLs of operations, and keeps those without a query: making a URL takes 10 microseconds."""

    def __init__(self, base_url: httpx.URL) -> None:
        self._base_url = base_url
        self._made: dict[str, httpx.URL] = {}

    def url(
        self, operation: Operation[Any], path: Mapping[str, str | int] | None, query: Mapping[str, str] | None
    ) -> httpx.URL:
        """Return the URL of an operation.

        Args:
            operation: The operation.
            path: The path parameters by name.
            query: The query parameters by name.

        Raises:
            ValidationError: A parameter is empty or cannot be part of a URL.
        """
        target = operation.path
        for name, value in (path or {}).items():
            target = target.replace(f"{{{name}}}", _path_segment(name, value))
        if query:
            target += "?" + "&".join(f"{name}={_quoted(name, value, safe=',')}" for name, value in query.items())
        url = self._made.get(target)
        if url is None:
            url = httpx.URL(f"{self._base_url}{target}")
            if query is None:  # URLs with a query are long and rarely requested again
                if len(self._made) >= _MOST_URLS:
                    self._made.clear()
                self._made[target] = url
        return url


def encoded_body(
    operation: Operation[Any], body: Model | Mapping[str, Any] | bytes | None
) -> tuple[dict[str, Any] | None, bytes]:
    """Return a body in the wire's shape and as bytes; it is encoded once, and every attempt sends these bytes.

    Raises:
        ValidationError: The body is not of the operation's type.
    """
    if operation.body is None or (body is None and not operation.body_required):
        return None, b""
    if issubclass(operation.body, bytes):
        if not isinstance(body, bytes | bytearray | memoryview):
            raise ValidationError(operation.id, [Issue("body", f"must be bytes, not {type(body).__name__}")])
        return None, bytes(body)
    if isinstance(body, Mapping):
        body = from_request(operation.body, body)
    if not isinstance(body, operation.body):
        allowed = f"{operation.body.__name__} or a mapping in the wire's shape"
        raise ValidationError(operation.id, [Issue("body", f"must be {allowed}, not {type(body).__name__}")])
    wire = to_wire(body)
    return wire, encode(wire)


def _path_segment(name: str, value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or value in ("", ".", ".."):
        raise ValidationError(name, [Issue("", f"must be an id, not {value!r}")])
    return _quoted(name, value, safe="")


def _quoted(name: str, value: str, *, safe: str) -> str:
    try:
        return quote(value, safe=safe)
    except UnicodeEncodeError:
        raise ValidationError(name, [Issue("", "holds text that is not valid Unicode")]) from None
