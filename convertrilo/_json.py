"""JSON, with orjson if it is installed, and canonical JSON: the same bytes with either library."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from convertrilo.errors import Issue, ValidationError

_MAX_DEPTH = 100
"""Maximum nesting depth of a value. The limits of all JSON libraries are higher, so that all libraries agree."""

_SMALL = 1e-4
_BIG = 1 << 63
_BIGGEST = sys.float_info.max  # a reader may only have doubles, and Python refuses to write more than 4,300 digits


try:
    import orjson
except ModuleNotFoundError:

    def dumps(value: Any, /) -> bytes:
        """Return a value as compact JSON."""
        return _text_of(value).encode()

    _text_of = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

    def loads(data: bytes, /) -> Any:
        """Return the value of a JSON text in UTF-8."""
        return json.loads(data.decode(), parse_constant=_refuse)  # json.loads(bytes) would also accept UTF-16

    def _refuse(name: str) -> None:
        raise ValueError(name)

    def _exotic(value: float) -> Any:
        return value

else:

    def dumps(value: Any, /) -> bytes:
        """Return a value as compact JSON."""
        return orjson.dumps(value)

    def loads(data: bytes, /) -> Any:
        """Return the value of a JSON text in UTF-8."""
        return orjson.loads(data)

    def _exotic(value: float) -> Any:
        """Write a number as Python does if orjson writes it differently (1e-05) or not at all (2**64)."""
        return orjson.Fragment(repr(value).encode())


class NotJsonError(ValueError):
    """A value that cannot be written as canonical JSON."""


def normal(value: Any, depth: int = 0) -> Any:
    """Return a JSON value in canonical form: keys sorted, integral floats as integers."""
    kind = value.__class__
    if kind is str or value is None or kind is bool or (kind is int and -_BIG <= value < _BIG):  # most values, so first
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        if not -_BIGGEST <= value <= _BIGGEST:
            raise NotJsonError(f"holds an integer beyond {_BIGGEST:.2g}, which no double can hold")
        return int(value) if -_BIG <= value < _BIG else _exotic(int(value))
    if isinstance(value, float):
        return _normal_float(float(value))
    if depth >= _MAX_DEPTH:
        raise NotJsonError(f"is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        pairs: dict[Any, Any] = dict(value)  # type: ignore[arg-type,unused-ignore]  # pyright
        if not all(isinstance(name, str) for name in pairs):
            raise NotJsonError("has a key that is not a string")
        return {_text(name): normal(pairs[name], depth + 1) for name in sorted(pairs)}
    if isinstance(value, list | tuple):
        return [normal(each, depth + 1) for each in cast("Sequence[Any]", value)]
    raise NotJsonError(f"holds a {type(value).__name__}, which JSON does not have")


_text = str.__str__  # str() of an enum member returns its name, and orjson accepts no subclasses of str as keys


def _normal_float(value: float) -> Any:
    if not math.isfinite(value):
        raise NotJsonError(f"holds {value}, which JSON does not have")
    if value.is_integer():
        return normal(int(value))
    return value if abs(value) >= _SMALL else _exotic(value)


def canonical(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value: sorted keys, compact, UTF-8, integral floats as integers.

    Floats are written as Python's `repr` writes them. The bytes are the same whatever JSON library is installed.

    Raises:
        ValidationError: The value is not JSON (NaN, a key that is not a string, another type), is nested deeper than
            100 levels, or holds a lone surrogate, which UTF-8 cannot encode.
    """
    try:
        return encode(normal(value))
    except NotJsonError as error:
        raise ValidationError("not JSON", [Issue("", str(error))]) from None


def encode(wire: Any) -> bytes:
    """Return the bytes of a value from `to_wire`, which is in canonical order already."""
    try:
        return dumps(wire)
    except (TypeError, ValueError):  # a lone surrogate: TypeError from orjson, ValueError from str.encode
        raise ValidationError("not JSON", [Issue("", "holds text that is not valid Unicode")]) from None
