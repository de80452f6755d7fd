"""The user's credentials and base URL: from the environment, or from a saved profile."""

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
"""The settings of a profile, and the environment variable of each."""

DEFAULT_PROFILE = "default"


@attrs.frozen
class AccountSettings:
    """The account settings in effect for one command."""

    profile: str
    api_key: str | None = attrs.field(repr=False)
    access_token: str | None = attrs.field(repr=False)
    base_url: str
    origins: Mapping[str, str]
    """Where each setting comes from, by the setting's name in the file."""


def config_file() -> Path:
    """Return the file that holds the profiles, in the platform's configuration folder."""
    import platformdirs

    return platformdirs.user_config_path("convertrilo", appauthor=False) / "config.json"


def typescript_file() -> Path:
    """Return the TypeScript command's settings file, which is read only while `config_file` does not exist."""
    return Path.home() / ".convertrilo" / "config.json"


def state_folder() -> Path:
    """Return the folder where the sandbox of `--sandbox` keeps its jobs."""
    import platformdirs

    return platformdirs.user_state_path("convertrilo", appauthor=False) / "sandbox"


def profile_name(given: str | None) -> str:
    """Return the name of the profile in use."""
    return given or os.environ.get("CONVERTRILO_PROFILE") or DEFAULT_PROFILE


def saved() -> tuple[Path, dict[str, dict[str, str]]]:
    """Return the settings file in use, and its profiles.

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


def account_settings(profile: str | None) -> AccountSettings:
    """Return the settings in effect: the environment overrides the profile, unless `profile` names one.

    Args:
        profile: The profile that --profile names; if given, the environment is ignored.

    Raises:
        ConfigurationError: The file cannot be read, or has no such profile.
    """
    name = profile_name(profile)
    file, profiles = saved()
    if name not in profiles and name != DEFAULT_PROFILE:
        known = f"the saved profiles are {', '.join(sorted(profiles))}" if profiles else "none is saved"
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
    return AccountSettings(
        profile=name,
        api_key=values.get("apiKey"),
        access_token=values.get("accessToken"),
        base_url=values.get("baseUrl", DEFAULT_BASE_URL),
        origins=origins,
    )


def save(profile: str, changes: Mapping[str, str | None]) -> Path:
    """Change a profile, and return the settings file, which only its owner can read.

    Args:
        profile: The profile's name.
        changes: New values by setting; `None` removes a setting.

    Raises:
        ConfigurationError: The file cannot be read or written.
    """
    _, profiles = saved()
    settings = {**profiles.get(profile, {}), **changes}
    profiles[profile] = {name: value for name, value in settings.items() if value}
    file = config_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A temporary file with mode 0600 that replaces the old one, so that nobody reads a half-written file.
        descriptor, new = tempfile.mkstemp(dir=file.parent, prefix=".config-")
        try:
            with os.fdopen(descriptor, "w") as opened:
                json.dump({"profiles": {name: each for name, each in profiles.items() if each}}, opened, indent=2)
                opened.write("\n")
            Path(new).replace(file)
        except BaseException:
            Path(new).unlink(missing_ok=True)  # it holds credentials
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
        raise ConfigurationError(f"{file} is not valid JSON: fix it, or remove it and log in again") from None
    if not isinstance(found, dict):
        raise _no_profiles(file)
    return cast("dict[str, Any]", found)


def _profiles(file: Path, found: Any) -> dict[str, dict[str, str]]:
    profiles: dict[str, dict[str, str]] = {}
    if not isinstance(found, dict):
        raise _no_profiles(file)
    for name, settings in cast("dict[str, Any]", found).items():
        if not isinstance(settings, dict):
            raise _no_profiles(file)
        values = cast("dict[str, Any]", settings)
        profiles[name] = {key: value for key, value in values.items() if isinstance(value, str)}
    return profiles


def _no_profiles(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} holds no profiles: fix it, or remove it and log in again")
