"""Hiding credentials in texts and JSON values, in every spelling that answers and errors use."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import unquote_plus

from convertrilo.idempotency import CREDENTIALS, SIGNED_URLS

_SECRETS = CREDENTIALS | {"password"}
_URLS = SIGNED_URLS | {"url"}


def secrets_in(wire: Any) -> Iterator[str]:
    """Yield the secrets in a body in the wire's shape."""
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


_SHORTEST_SIGNATURE = 16  # characters; shorter parameters of a URL are words and numbers


def _secrets_of(url: str) -> Iterator[str]:
    """Yield what may be secret in a URL: the user name, the password, the query and its long values."""
    address, _, query = url.partition("?")
    user_info = re.split("[/#]", address.partition("://")[2])[0].rpartition("@")[0]
    yield from (user_info, user_info.partition(":")[2], query)
    for parameter in query.split("&"):
        value = unquote_plus(parameter.partition("=")[2])
        if len(value) >= _SHORTEST_SIGNATURE:
            yield value


Hide = Callable[[str], str]
"""Hides secrets in a text."""


def hider(text: str, secrets: Iterable[str]) -> Hide:
    """Return the function that hides secrets in a text and in parts of it; secrets not in the text cost no time."""
    lower = text.lower()
    present = {each for each in secrets if each and max(_WORDS.findall(each), key=len, default="").lower() in lower}
    if not present:
        return str
    longest_first = sorted(present, key=len, reverse=True)  # one secret can be the start of another
    return partial(re.compile("|".join(map(_any_spelling, longest_first)), re.IGNORECASE).sub, "<hidden>")


_WORDS = re.compile("[A-Za-z0-9]+")
_ESCAPED = r"\\++(?:u[\dA-F]{4})?|%[\dA-F]{2}|&#?\w+;"
_LONGEST = 4  # bytes of a character in UTF-8; each byte can be escaped


def _any_spelling(secret: str) -> str:
    """Return a pattern for a secret as it is, or escaped as in JSON, Python, URLs and HTML."""
    # One quantifier serves a whole run of other characters: one for each character would take exponential time.
    return "".join(
        part if _WORDS.match(part) else f"(?:[{re.escape(part)}]|{_ESCAPED}){{1,{_LONGEST * len(part)}}}"
        for part in re.findall("[A-Za-z0-9]+|[^A-Za-z0-9]+", secret)
    )


def without_secrets(value: Any, hide: Hide) -> Any:
    """Return a JSON value whose strings have their secrets hidden."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, list):
        return [without_secrets(each, hide) for each in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {hide(name): without_secrets(each, hide) for name, each in cast("dict[str, Any]", value).items()}
    return value
