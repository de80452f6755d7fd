"""The file names of sources and outputs, as the API reports them."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

_MAX_LENGTH = 200


def source_name(given: str | None, url: str | None) -> str | None:
    """Return the file name of a source, without folders.

    Args:
        given: the name in the request, if there is one.
        url: the source URL; without `given`, its last path segment is the name.
    """
    name = given or (unquote(urlsplit(url).path) if url else "")
    name = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[:_MAX_LENGTH]
    return name if name.strip(". ") else None


def output_name(source_filename: str | None, settings: Mapping[str, Any]) -> str:
    """Return the file name of an output: the source's stem with the container's extension."""
    stem = PurePosixPath(source_filename).stem if source_filename else "output"
    return f"{stem}.{settings['container']}"
