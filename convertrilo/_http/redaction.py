"""Keeping credentials out of what is shown, however an answer or an error repeats them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import unquote_plus

from convertrilo.idempotency import CREDENTIALS, SIGNED_URLS

_SECRETS = CREDENTIALS | {"password"}
_URLS = SIGNED_URLS | {"url"}


def secrets_in(wire: Any) -> Iterator[str]:
    """Yield what is secret in a body."""
    if isinstance(wire, list):
        for each in cast("Sequence[Any]", wire):
            yield from secrets_in(each)
    elif isinstance(wire, dict):
        for name, value in cast("dict[str, Any]", wire).items():
            if name in _SECRETS:
                yield str(value)
            elif name in _URLS:
                yield from _secrets_of(str(value))
            else:
                yield from secrets_in(value)


_SHORTEST_SIGNATURE = 16  # characters: shorter parameters of a URL are words and numbers


def _secrets_of(url: str) -> Iterator[str]:
    """Yield what may be secret in a URL: user name and password, and a query with its long values."""
    address, _, query = url.partition("?")
    user_info = re.split("[/#]", address.partition("://")[2])[0].rpartition("@")[0]
    yield from (user_info, user_info.partition(":")[2], query)
    for parameter in query.split("&"):
        value = unquote_plus(parameter.partition("=")[2])
        if len(value) >= _SHORTEST_SIGNATURE:
            yield value


Hide = Callable[[str], str]


def hider(text: str, secrets: Iterable[str]) -> Hide:
    """Return what replaces secrets in parts of a text; only those that are in it are searched for."""
    lower = text.lower()
    present = {each for each in secrets if each and max(_WORDS.findall(each), key=len, default="").lower() in lower}
    if not present:
        return str
    longest_first = sorted(present, key=len, reverse=True)  # one can be the start of another
    return partial(re.compile("|".join(map(_any_spelling, longest_first)), re.IGNORECASE).sub, "<hidden>")


_WORDS = re.compile("[A-Za-z0-9]+")
_ESCAPED = r"\\++(?:u[\dA-F]{4})?|%[\dA-F]{2}|&#?\w+;"
_LONGEST = 4  # bytes of a character in UTF-8, each of which can be escaped


def _any_spelling(secret: str) -> str:
    """Return a pattern for a secret as it is, or escaped as JSON, Python, URLs and HTML do it."""
    # What is no word counts run by run: a quantifier for each character of a run takes time without bound.
    return "".join(
        part if _WORDS.match(part) else f"(?:[{re.escape(part)}]|{_ESCAPED}){{1,{_LONGEST * len(part)}}}"
        for part in re.findall("[A-Za-z0-9]+|[^A-Za-z0-9]+", secret)
    )


def without_secrets(value: Any, hide: Hide) -> Any:
    """Return a JSON value with the secrets in its texts hidden."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [without_secrets(each, hide) for each in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {hide(name): without_secrets(each, hide) for name, each in cast("dict[str, Any]", value).items()}
    return value
