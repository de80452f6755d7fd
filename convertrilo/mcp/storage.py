"""Storage profiles: an agent names a profile, and the credentials come from the server's environment.

The profile `media` is defined by `CONVERTRILO_S3_MEDIA_ACCESS_KEY_ID` and `CONVERTRILO_S3_MEDIA_SECRET_ACCESS_KEY`, and
optionally `CONVERTRILO_S3_MEDIA_ENDPOINT` (default: Amazon S3) and `CONVERTRILO_S3_MEDIA_REGION`. Its credentials are
used only at its own endpoint, so no prompt can make an agent send them elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs

from convertrilo.errors import ConfigurationError, Issue, ValidationError

_NAMES = re.compile(r"CONVERTRILO_S3_(\w+)_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)")


@attrs.frozen
class StorageProfile:
    """The credentials of one store, and its location."""

    access_key_id: str = attrs.field(repr=False)
    secret_access_key: str = attrs.field(repr=False)
    endpoint: str | None
    region: str | None


def storage_profiles(environment: Mapping[str, str]) -> dict[str, StorageProfile]:
    """Return the storage profiles that the environment defines, by lower-case name.

    Raises:
        ConfigurationError: A profile has only one of its two credentials.
    """
    names = {match[1] for name in environment if (match := _NAMES.fullmatch(name))}
    profiles: dict[str, StorageProfile] = {}
    for name in sorted(names):
        prefix = f"CONVERTRILO_S3_{name}_"
        for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            if not environment.get(prefix + part):
                raise ConfigurationError(f"the storage profile {name.lower()} is not complete: set {prefix}{part}")
        profiles[name.lower()] = StorageProfile(
            environment[f"{prefix}ACCESS_KEY_ID"],
            environment[f"{prefix}SECRET_ACCESS_KEY"],
            environment.get(f"{prefix}ENDPOINT") or None,
            environment.get(f"{prefix}REGION") or None,
        )
    return profiles


def resolve_storage_profiles(profiles: Mapping[str, StorageProfile], value: Any, path: str = "") -> Any:
    """Return the arguments with each `storageProfile` replaced by the content of that profile.

    Raises:
        ValidationError: The arguments name an endpoint other than the profile's.
    """
    if isinstance(value, list):
        values = cast("Sequence[Any]", value)
        return [resolve_storage_profiles(profiles, each, f"{path}[{index}]") for index, each in enumerate(values)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    prefix = f"{path}." if path else ""
    wire = {
        name: each if name == "metadata" else resolve_storage_profiles(profiles, each, f"{prefix}{name}")
        for name, each in given.items()
        if name != "storageProfile"
    }
    if "storageProfile" not in given:
        return wire
    profile = profiles[given["storageProfile"]]
    if wire.get("endpoint", profile.endpoint) != profile.endpoint:
        issue = "is not the endpoint of the storage profile; omit it, or name the profile of that endpoint"
        raise ValidationError("arguments", [Issue(f"{prefix}endpoint", issue)])
    own = {"endpoint": profile.endpoint, "region": profile.region}
    return {
        **{name: each for name, each in own.items() if each is not None},
        **wire,
        "accessKeyId": profile.access_key_id,
        "secretAccessKey": profile.secret_access_key,
    }
