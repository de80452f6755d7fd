"""Who the user is to the service: what the environment says, or else a saved profile."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from convertrilo._base_client import DEFAULT_BASE_URL
from convertrilo.errors import ConfigurationError

VARIABLES = {
    "apiKey": "CONVERTRILO_API_KEY",
    "accessToken": "CONVERTRILO_ACCESS_TOKEN",
    "baseUrl": "CONVERTRILO_BASE_URL",
}
"""The settings of a profile, and what stands for each in the environment."""

DEFAULT_PROFILE = "default"


@attrs.frozen
class Account:
    """The settings that hold for one command."""

    profile: str
    api_key: str | None = attrs.field(repr=False)
    access_token: str | None = attrs.field(repr=False)
    base_url: str
    origins: Mapping[str, str]
    """Where each setting comes from, by its name in the file."""


def config_file() -> Path:
    """Return where profiles are saved: in the platform's folder for configuration."""
    import platformdirs

    return platformdirs.user_config_path("convertrilo", appauthor=False) / "config.json"


def typescript_file() -> Path:
    """Return where the TypeScript command saves its settings; they are read if there are no own ones."""
    return Path.home() / ".convertrilo" / "config.json"


def state_folder() -> Path:
    """Return where the sandbox of `--sandbox` keeps its jobs."""
    import platformdirs

    return platformdirs.user_state_path("convertrilo", appauthor=False) / "sandbox"


def profile_name(given: str | None) -> str:
    """Return which profile is meant."""
    return given or os.environ.get("CONVERTRILO_PROFILE") or DEFAULT_PROFILE


def saved() -> tuple[Path, dict[str, dict[str, str]]]:
    """Return the file that holds now, and the profiles in it.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    own = config_file()
    if (found := _read(own)) is not None:
        return own, _profiles(own, found.get("profiles", {}))
    foreign = typescript_file()
    if (found := _read(foreign)) is not None:
        return foreign, _profiles(foreign, {DEFAULT_PROFILE: found})
    return own, {}


def account(profile: str | None) -> Account:
    """Return the settings that hold: those of a profile that was named, or the environment's and then the profile's.

    Args:
        profile: What the command line names; it then stands before the environment.

    Raises:
        ConfigurationError: The file cannot be read, or has no such profile.
    """
    name = profile_name(profile)
    file, profiles = saved()
    if name not in profiles and name != DEFAULT_PROFILE:
        known = f"there are {', '.join(sorted(profiles))}" if profiles else "none is saved"
        raise ConfigurationError(
            f"there is no profile {name!r}, {known}: log in with convertrilo login --profile {name}"
        )
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for setting, variable in VARIABLES.items():
        given = None if profile else os.environ.get(variable)
        stored = profiles.get(name, {}).get(setting)
        if given:
            values[setting], origins[setting] = given, variable
        elif stored:
            values[setting], origins[setting] = stored, f"profile {name} in {file}"
    return Account(
        profile=name,
        api_key=values.get("apiKey"),
        access_token=values.get("accessToken"),
        base_url=values.get("baseUrl", DEFAULT_BASE_URL),
        origins=origins,
    )


def save(profile: str, changes: Mapping[str, str | None]) -> Path:
    """Change a profile, and return the file that it is saved in, which its owner alone can read; `None` removes.

    Raises:
        ConfigurationError: The file cannot be read or written.
    """
    _, profiles = saved()
    settings = {**profiles.get(profile, {}), **changes}
    profiles[profile] = {name: value for name, value in settings.items() if value}
    file = config_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file of its own, with mode 0600 from its first moment, so that nobody ever reads half of it.
        descriptor, new = tempfile.mkstemp(dir=file.parent, prefix=".config-")
        try:
            with os.fdopen(descriptor, "w") as opened:
                json.dump({"profiles": {name: each for name, each in profiles.items() if each}}, opened, indent=2)
                opened.write("\n")
            Path(new).replace(file)
        except BaseException:
            Path(new).unlink(missing_ok=True)  # a credential is in it
            raise
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise ConfigurationError(f"{file} is no JSON: mend it, or remove it and log in again") from None
    if not isinstance(found, dict):
        raise _odd(file)
    return cast("dict[str, Any]", found)


def _profiles(file: Path, found: Any) -> dict[str, dict[str, str]]:
    profiles: dict[str, dict[str, str]] = {}
    if not isinstance(found, dict):
        raise _odd(file)
    for name, settings in cast("dict[str, Any]", found).items():
        if not isinstance(settings, dict):
            raise _odd(file)
        values = cast("dict[str, Any]", settings)
        profiles[name] = {key: value for key, value in values.items() if isinstance(value, str)}
    return profiles


def _odd(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} holds no profiles: mend it, or remove it and log in again")
