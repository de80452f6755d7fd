"""The package's own copy of openapi.yaml, as bytes and parsed."""

import importlib.resources
from collections.abc import Mapping
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any, cast


def find_openapi(package: Traversable) -> Traversable:
    """Find openapi.yaml: in a wheel it is inside the package, in a checkout it is beside the package."""
    for place in (package / "openapi.yaml", package / ".." / "openapi.yaml"):
        if place.is_file():
            return place
    raise FileNotFoundError("openapi.yaml is missing from this installation of convertrilo")


@cache
def openapi_yaml() -> bytes:
    """Return the bytes of openapi.yaml."""
    return find_openapi(importlib.resources.files("convertrilo")).read_bytes()


@cache
def openapi() -> Mapping[str, Any]:
    """Return openapi.yaml, parsed with PyYAML, which the extras install."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the compiled loader is ten times faster
    return cast("Mapping[str, Any]", yaml.load(openapi_yaml(), loader))  # noqa: S506  # both are safe loaders
