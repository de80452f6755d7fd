"""The objects of a folder: their properties, their permanent external ids, their shards, and the filter."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from fnmatch import translate
from typing import NamedTuple
from urllib.parse import quote

import attrs

from convertrilo.errors import Issue, ValidationError

VIDEO_EXTENSIONS = frozenset(
    {
        *("3g2", "3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf"),
        *("ogv", "ts", "webm", "wmv"),
    }
)
"""The file name extensions of videos, in lower case; the default filter ignores case."""

_MAX_EXTERNAL_ID = 255


class S3Object(NamedTuple):
    """One object of a folder."""

    key: str
    size: int | None = None
    """Bytes; `None` if a manifest does not say."""
    etag: str | None = None
    """The ETag without its quotes."""
    version_id: str | None = None
    """The version, if a manifest gives it; a listing does not."""
    last_modified: datetime | None = None


Page = list[S3Object]
TakePage = Callable[[Page], Awaitable[object]]


# ---- external ids


def external_id(bucket: str, each: S3Object) -> str:
    """Return the external id of an object's job. It never changes unless the object changes.

    The id is `s3://bucket/key#etag`; without an ETag, `s3://bucket/key?versionId=version`; with neither,
    `s3://bucket/key`. Key, ETag and version are percent-encoded as UTF-8; letters, digits and `-_.~` are kept, and `/`
    in the key. An id of more than 255 characters is replaced by `s3-sha256:` and its SHA-256 in hexadecimal.
    """
    name = f"s3://{bucket}/{quote(each.key, safe='/-_.~', errors='surrogateescape')}"
    if each.etag:
        name += f"#{quote(each.etag, safe='-_.~')}"
    elif each.version_id:
        name += f"?versionId={quote(each.version_id, safe='-_.~')}"
    return name if len(name) <= _MAX_EXTERNAL_ID else f"s3-sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def is_text(key: str) -> bool:
    """Whether a key is valid UTF-8. Invalid bytes are decoded as surrogates, which JSON cannot carry."""
    return not re.search("[\ud800-\udfff]", key)


# ---- shards


@attrs.frozen
class Shard:
    """One of `count` equal shares of a folder; `index` counts from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, key: str) -> bool:
        """Whether an object belongs to this shard. Only its key decides, so shards are stable when the folder grows."""
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index


def parse_shard(text: str) -> Shard:
    """Return the shard that `i/n` names, with i from 0 to n-1.

    Raises:
        ValidationError: The text has another form.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValidationError("shard", [Issue("", f"must be i/n with i from 0 to n-1, such as 0/8, not {text[:40]!r}")])
    return Shard(int(found[1]), int(found[2]))


# ---- filter


def make_filter(
    *,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    min_size: int | None,
    max_size: int | None,
    modified_since: datetime | None,
    shard: Shard | None,
) -> Callable[[S3Object], bool]:
    """Return a function that says whether an object is wanted. An unknown size or time never excludes an object.

    Args:
        include: Patterns (`*`, `?`, `[…]`; `*` matches slashes, too). The whole key must match at least one of them. By
            default, the key must have the extension of a video.
        exclude: Patterns that the key must not match.
        min_size: The smallest size, in bytes.
        max_size: The largest size, in bytes.
        modified_since: The earliest time of the last modification.
        shard: The shard of the folder that is wanted.

    Raises:
        ValidationError: A pattern list is a string, a size range is invalid, or a time has no time zone.
    """
    issues: list[Issue] = []
    for name, patterns in (("include", include or ()), ("exclude", exclude)):
        if isinstance(patterns, str):  # would be taken for a list of one-letter patterns
            issues.append(Issue(name, "must be a list of patterns, not a string"))
    if (min_size or 0) < 0 or (max_size is not None and max_size < (min_size or 0)):
        issues.append(Issue("min_size, max_size", f"must be bytes, at least 0, in order, not {min_size} to {max_size}"))
    if modified_since is not None and modified_since.tzinfo is None:
        issues.append(Issue("modified_since", "must be a datetime with a time zone"))
    if issues:
        raise ValidationError("ingest_folder", issues)
    is_included = _is_video if include is None else _matcher(include)
    is_excluded = _matcher(exclude)
    smallest, biggest = min_size or 0, float("inf") if max_size is None else max_size

    def is_wanted(each: S3Object) -> bool:
        return (
            (each.size is None or smallest <= each.size <= biggest)
            and (modified_since is None or each.last_modified is None or each.last_modified >= modified_since)
            and (shard is None or shard.holds(each.key))
            and is_included(each.key)
            and not is_excluded(each.key)
        )

    return is_wanted


def _is_video(key: str) -> bool:
    return key[key.rfind(".") + 1 :].lower() in VIDEO_EXTENSIONS and "." in key


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda _: False
    matches = re.compile("|".join(map(translate, patterns))).match
    return lambda key: matches(key) is not None
