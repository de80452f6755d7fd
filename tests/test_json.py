"""Canonical bytes: the same for the same value, with orjson and without."""

import enum
import json
import math
import random
import sys
from collections import OrderedDict, UserDict, namedtuple
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convertrilo.errors import ValidationError

FLOATS = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1e-3, 1e-3)
    | st.sampled_from([0.0, -0.0, 1e-4, 1e-5, 1e-7, 5e-324, 1e15, 1e16, 1e22, 1e300, 0.1, 1 / 3, sys.float_info.max])
)
BIGGEST = int(sys.float_info.max)


def json_values(integers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | integers | FLOATS | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=15,
    )


ANY = json_values(st.integers(-10, 10) | st.integers(-BIGGEST, BIGGEST) | st.sampled_from([2**53, 2**63, 2**64]))
READABLE = json_values(st.integers(-(2**63), 2**64 - 1))  # orjson reads bigger integers as floats


def reference(value: Any) -> str:
    """Write canonical JSON the slow and obvious way."""
    if isinstance(value, dict):
        members = (f"{reference(name)}:{reference(value[name])}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(reference, value)) + "]"
    if isinstance(value, float):
        return str(int(value)) if value == math.floor(value) else repr(value)
    return json.dumps(value, ensure_ascii=False)


def shuffled(value: Any, chance: random.Random) -> Any:
    """Return the same JSON value with the keys of its objects in another order."""
    if isinstance(value, dict):
        names = list(value)
        chance.shuffle(names)
        return {name: shuffled(value[name], chance) for name in names}
    return [shuffled(each, chance) for each in value] if isinstance(value, list) else value


@settings(max_examples=400)
@given(value=ANY)
@example(value={"\U0001f600": 1, "\ufffd": 2, "z": 3, "ä": 4, "": 5, "a\u2028b": '\x7f\x00\\"/'})  # astral keys last
@example(value=[1e-7, -1e-7, 1e-4, 1e300, -0.0, 2**64, -(2**63) - 1, 2**63 - 1, 1.5e-10])
def test_any_value_has_the_bytes_that_the_definition_says(library: Any, value: Any) -> None:
    assert library.json.canonical(value).decode() == reference(value)


@given(value=ANY, chance=st.randoms())
def test_the_order_of_fields_does_not_matter(library: Any, value: Any, chance: random.Random) -> None:
    assert library.json.canonical(shuffled(value, chance)) == library.json.canonical(value)


@given(value=READABLE)
def test_canonical_bytes_stay_the_same_when_read_and_written_again(library: Any, value: Any) -> None:
    once = library.json.canonical(value)
    assert library.json.canonical(library.json.loads(once)) == once


class Word(str):
    """A string of a class of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not what it holds"


class Colour(str, enum.Enum):  # noqa: UP042  # unlike a StrEnum's member, this one's str() is "Colour.RED"
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Real(float):
    """A float of a class of its own, as numpy's are."""

    def __repr__(self) -> str:
        return f"Real({float(self)})"


Point = namedtuple("Point", "x y")  # noqa: PYI024  # the untyped kind is the one that people put into metadata

SAME: list[tuple[Any, bytes]] = [
    (1.0, b"1"),
    (-0.0, b"0"),
    (1e-7, b"1e-07"),
    (123456.75, b"123456.75"),
    (1e16, b"10000000000000000"),
    (2**64, b"18446744073709551616"),
    (True, b"true"),
    ((1, (2,)), b"[1,[2]]"),
    (Point(1, 2), b"[1,2]"),
    (Word("a"), b'"a"'),
    ({Word("b"): 1, "a": 2}, b'{"a":2,"b":1}'),
    (Colour.RED, b'"red"'),
    ({Colour.RED: Level.HIGH}, b'{"red":2}'),
    (Real(1.5), b"1.5"),
    (Real(1e-7), b"1e-07"),
    (OrderedDict(b=1, a=2), b'{"a":2,"b":1}'),
    (UserDict(b=1, a=2), b'{"a":2,"b":1}'),
    (MappingProxyType({"b": 1, "a": 2}), b'{"a":2,"b":1}'),
    ("é\u2028\U0001f600", '"é\u2028\U0001f600"'.encode()),
    ("\x00\x1f\x7f", b'"\\u0000\\u001f\x7f"'),
]


@pytest.mark.parametrize(("value", "written"), SAME, ids=lambda value: repr(value)[:30])
def test_what_is_the_same_in_json_is_written_the_same(library: Any, value: Any, written: bytes) -> None:
    assert library.json.canonical(value) == written


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def in_circles() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


NOT_JSON: list[tuple[Any, str]] = [
    (math.nan, "holds nan, which JSON does not have"),
    (math.inf, "holds inf, which JSON does not have"),
    (Real("nan"), "holds nan, which JSON does not have"),
    ({"a": [-math.inf]}, "holds -inf, which JSON does not have"),
    ({1: 2}, "has a key that is not a string"),
    ({None: 1, "a": 2}, "has a key that is not a string"),
    ({"a": {1, 2}}, "holds a set, which JSON does not have"),
    (b"bytes", "holds a bytes, which JSON does not have"),
    ([datetime(2025, 6, 2, tzinfo=UTC)], "holds a datetime, which JSON does not have"),
    (Decimal(1), "holds a Decimal, which JSON does not have"),
    (object(), "holds a object, which JSON does not have"),
    (2**1024, "holds an integer beyond 1.8e+308, which no double can hold"),
    (-(10**5000), "holds an integer beyond 1.8e+308, which no double can hold"),
    (nested(101), "is nested deeper than 100 levels"),
    (nested(100_000), "is nested deeper than 100 levels"),
    (in_circles(), "is nested deeper than 100 levels"),
    ("\ud800", "holds text that is not valid Unicode"),
    (["a\udfff"], "holds text that is not valid Unicode"),
    ({"\ud83d": 1}, "holds text that is not valid Unicode"),
]


@pytest.mark.parametrize(
    ("value", "problem"), NOT_JSON, ids=lambda value: repr(value)[:30] if type(value) is str else ""
)
def test_what_is_not_json_is_refused_with_the_reason(library: Any, value: Any, problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        library.json.canonical(value)
    assert str(caught.value) == f"not JSON: {problem}"
    assert caught.value.__suppress_context__


def test_a_hundred_levels_are_not_too_deep(library: Any) -> None:
    assert library.json.canonical(nested(100)) == b"[" * 100 + b"1" + b"]" * 100


UNREADABLE = [
    *[b"", b" ", b"{", b"nul", b"NaN", b"[Infinity]", b"-Infinity", b"01", b"'a'", b'"\x01"', b"{}{}", b"9" * 5000],
    *[b"\xff", b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 100_000],
]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: repr(text[:10]))
def test_what_is_not_json_is_not_read(library: Any, text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        library.json.loads(text)
