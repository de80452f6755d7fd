"""Storage profiles: an agent names one, and its credentials come from the server's environment.

A profile `media` is `CONVERTRILO_S3_MEDIA_ACCESS_KEY_ID` and `CONVERTRILO_S3_MEDIA_SECRET_ACCESS_KEY`; and, where the
store is not Amazon's, `CONVERTRILO_S3_MEDIA_ENDPOINT`; and `CONVERTRILO_S3_MEDIA_REGION`, where it has one. Its
credentials are used at its own endpoint only, so nobody can talk an agent into taking them elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs

from convertrilo.errors import ConfigurationError, Issue, ValidationError

_NAMES = re.compile(r"CONVERTRILO_S3_(\w+)_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)")


@attrs.frozen
class Profile:
    """Credentials of one store, and where it is."""

    access_key_id: str = attrs.field(repr=False)
    secret_access_key: str = attrs.field(repr=False)
    endpoint: str | None
    region: str | None


def profiles_in(environment: Mapping[str, str]) -> dict[str, Profile]:
    """Return the profiles that an environment describes, by their names in lower case.

    Raises:
        ConfigurationError: One has half of its credentials only.
    """
    names = {match[1] for name in environment if (match := _NAMES.fullmatch(name))}
    profiles: dict[str, Profile] = {}
    for name in sorted(names):
        prefix = f"CONVERTRILO_S3_{name}_"
        for part in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            if not environment.get(prefix + part):
                raise ConfigurationError(f"the storage profile {name.lower()} is not complete: set {prefix}{part}")
        profiles[name.lower()] = Profile(
            environment[f"{prefix}ACCESS_KEY_ID"],
            environment[f"{prefix}SECRET_ACCESS_KEY"],
            environment.get(f"{prefix}ENDPOINT") or None,
            environment.get(f"{prefix}REGION") or None,
        )
    return profiles


def with_credentials(profiles: Mapping[str, Profile], value: Any, path: str = "") -> Any:
    """Return arguments in which each `storageProfile` has become what the profile holds.

    Raises:
        ValidationError: There is no such profile, or its credentials are to go to another endpoint than its own.
    """
    if isinstance(value, list):
        values = cast("Sequence[Any]", value)
        return [with_credentials(profiles, each, f"{path}[{index}]") for index, each in enumerate(values)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    prefix = f"{path}." if path else ""
    wire = {
        name: each if name == "metadata" else with_credentials(profiles, each, f"{prefix}{name}")
        for name, each in given.items()
        if name != "storageProfile"
    }
    if "storageProfile" not in given:
        return wire
    profile = profiles[given["storageProfile"]]
    if wire.get("endpoint", profile.endpoint) != profile.endpoint:
        issue = "is not the storage profile's own; leave it out, or name the profile that belongs to it"
        raise ValidationError("arguments", [Issue(f"{prefix}endpoint", issue)])
    own = {"endpoint": profile.endpoint, "region": profile.region}
    return {
        **{name: each for name, each in own.items() if each is not None},
        **wire,
        "accessKeyId": profile.access_key_id,
        "secretAccessKey": profile.secret_access_key,
    }
