"""Manifests, which replace a listing: S3 Inventory, CSV, JSON lines or plain keys, compressed or not, in pages."""

import csv
import gzip
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import unquote_plus

import anyio.to_thread

from convertrilo.errors import Issue, ValidationError
from convertrilo.ingest.objects import Page, S3Object, TakePage

_PAGE = 1000

_FIELDS = {
    "bucket": "bucket",
    "key": "key",
    "size": "size",
    "etag": "etag",
    "versionid": "version_id",
    "lastmodified": "last_modified",
    "lastmodifieddate": "last_modified",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
}
"""The field for each column name of a CSV file or name in a JSON line; the names are in lower case and without `_`."""

_COLUMN_PATTERNS = {
    "size": re.compile(r"[0-9]+"),
    "lastmodified": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T.*Z"),
    "etag": re.compile(r"[0-9a-f]{32}(-[0-9]+)?"),
}
"""Patterns that identify the optional columns of an inventory without a header; its first columns are fixed."""


async def read_manifest(path: str | os.PathLike[str], bucket: str, take: TakePage) -> None:
    """Read a bucket's objects from a manifest, and await `take` with each page of them.

    The file name tells the format:

    - `.json`: the `manifest.json` of an S3 Inventory in CSV. Its data files are in the same folder, in `data` below it,
      or in `data` beside it.
    - `.csv`: a data file of an inventory, or any CSV file with a header.
    - `.jsonl` or `.ndjson`: one object per line, with `key`, and optionally `size`, `etag`, `versionId`,
      `lastModified` and `bucket`.
    - any other name: one key, or `s3://bucket/key`, per line.

    Every file may be compressed with gzip. Keys in an inventory are URL-encoded; other keys are taken literally.

    Args:
        path: The manifest.
        bucket: The bucket whose objects the manifest must name.
        take: Awaited with each page.

    Raises:
        ValidationError: The file is not in the format that its name tells, or names another bucket; the error names the
            line.
    """
    pages = _pages(Path(path), bucket)
    try:
        while page := await anyio.to_thread.run_sync(next, pages, cast("Page", [])):
            await take(page)
    finally:
        pages.close()


def _pages(path: Path, bucket: str) -> Generator[Page]:
    page: Page = []
    for each in _objects(path, bucket):
        page.append(each)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _objects(path: Path, bucket: str) -> Iterator[S3Object]:
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".ndjson")):
            yield from _from_json_lines(path, bucket)
        elif name.endswith(".csv"):
            yield from _from_csv(path, bucket, None)
        elif name.endswith(".json"):
            yield from _from_inventory(path, bucket)
        else:
            yield from _from_lines(path, bucket)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise _invalid(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _invalid(path: Path, problem: str, line: int | None = None) -> ValidationError:
    return ValidationError("manifest", [Issue(str(path) if line is None else f"{path}, line {line}", problem)])


def _open_text(path: Path) -> TextIO:
    """Open a file as text, compressed or not. Only a line feed ends a line: keys may hold other line separators."""
    with path.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    if is_compressed:
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", newline="\n"))
    return path.open(encoding="utf-8-sig", newline="\n")


def _from_lines(path: Path, bucket: str) -> Iterator[S3Object]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            key = line.removesuffix("\n").removesuffix("\r")
            if key.startswith("s3://"):
                named, _, key = key.removeprefix("s3://").partition("/")
                _check_bucket(path, number, named, bucket)
            if key:
                yield S3Object(key)


def _from_json_lines(path: Path, bucket: str) -> Iterator[S3Object]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                named = {_FIELDS.get(_normalized(name)): value for name, value in values.items()}
            except (ValueError, AttributeError):
                raise _invalid(path, "is not a JSON object", number) from None
            if (each := _object(path, number, named, bucket)) is not None:
                yield each


def _from_inventory(path: Path, bucket: str) -> Iterator[S3Object]:
    """Read an S3 Inventory: its manifest.json names the columns and the data files."""
    with _open_text(path) as file:
        try:
            manifest: Any = json.load(file)
            form, schema = manifest["fileFormat"], [each.strip() for each in manifest["fileSchema"].split(",")]
            names = [str(each["key"]).rpartition("/")[2] for each in manifest["files"]]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _invalid(
                path, "is not the manifest.json of an S3 Inventory; JSON lines must be named .jsonl"
            ) from None
    if form != "CSV":
        raise _invalid(path, f"lists files in {form}; only CSV is supported")
    for name in names:
        candidates = [path.parent / name, path.parent / "data" / name, path.parent.parent / "data" / name]
        found = next((each for each in candidates if each.exists()), None)
        if found is None:
            raise _invalid(path, f"names the file {name}, which is none of {', '.join(map(str, candidates))}")
        yield from _from_csv(found, bucket, schema)


def _from_csv(path: Path, bucket: str, schema: Sequence[str] | None) -> Iterator[S3Object]:
    """Read a CSV file. Its columns come from `schema`, from its header, or else from the pattern of an S3 Inventory."""
    with _open_text(path) as file:
        rows = csv.reader(file)
        first = next(rows, None)
        if first is None:
            return
        is_inventory = schema is not None
        if schema is None and "key" in map(_normalized, first):
            schema, first = first, next(rows, None)
        elif schema is None:
            schema, is_inventory = _guess_schema(path, first), True
        fields = [_FIELDS.get(_normalized(name)) for name in schema]
        for row in chain([] if first is None else [first], rows):
            values: dict[str | None, Any] = dict(zip(fields, row, strict=False))
            if is_inventory and "key" in values:
                values["key"] = unquote_plus(values["key"], errors="surrogateescape")
            if row and (each := _object(path, rows.line_num, values, bucket)) is not None:
                yield each


def _guess_schema(path: Path, row: Sequence[str]) -> list[str]:
    """Return the columns of an inventory without a header: the first columns are fixed, patterns identify the rest."""
    if len(row) < 2:
        raise _invalid(path, "has neither a header with `key` nor the columns of an S3 Inventory", 1)
    schema = ["bucket", "key"]
    if len(row) >= 5 and {row[3], row[4]} <= {"true", "false"}:
        schema += ["versionid", "islatest", "isdeletemarker"]
    for value in row[len(schema) :]:
        names = (name for name, pattern in _COLUMN_PATTERNS.items() if name not in schema and pattern.fullmatch(value))
        schema.append(next(names, ""))
    return schema


def _normalized(name: object) -> str:
    return str(name).replace("_", "").strip().lower()


def _check_bucket(path: Path, line: int, named: str, bucket: str) -> None:
    if named != bucket:
        raise _invalid(path, f"names the bucket {named!r}, but the source is in {bucket!r}", line)


def _object(path: Path, line: int, values: Mapping[str | None, Any], bucket: str) -> S3Object | None:
    """Return the object that a line describes; `None` for a version that is not the latest and for a delete marker."""
    if str(values.get("is_latest", "true")).lower() == "false" or str(values.get("is_delete_marker")).lower() == "true":
        return None
    key = values.get("key")
    if not isinstance(key, str) or not key:
        raise _invalid(path, "has no key", line)
    _check_bucket(path, line, str(values.get("bucket") or bucket), bucket)
    size, modified = values.get("size"), values.get("last_modified")
    try:
        return S3Object(
            key,
            int(size) if size not in (None, "") else None,
            str(values.get("etag") or "").strip('"') or None,
            str(values.get("version_id") or "") or None,
            _time(str(modified)) if modified else None,
        )
    except ValueError:
        raise _invalid(path, f"has an invalid size or time: {size!r}, {modified!r}", line) from None


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
