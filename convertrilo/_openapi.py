"""The package's own copy of openapi.yaml: its bytes, and what it says."""

import importlib.resources
from collections.abc import Mapping
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any, cast


def find_openapi(package: Traversable) -> Traversable:
    """Return openapi.yaml: in a wheel it is in the package, in a checkout beside it."""
    for place in (package / "openapi.yaml", package / ".." / "openapi.yaml"):
        if place.is_file():
            return place
    raise FileNotFoundError("openapi.yaml is missing from this installation of convertrilo")


@cache
def openapi_yaml() -> bytes:
    """Return the file as it is."""
    return find_openapi(importlib.resources.files("convertrilo")).read_bytes()


@cache
def openapi() -> Mapping[str, Any]:
    """Return what the file says; it needs PyYAML, which extras bring."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it was compiled
    return cast("Mapping[str, Any]", yaml.load(openapi_yaml(), loader))  # noqa: S506  # both are safe loaders
