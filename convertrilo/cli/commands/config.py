"""`convertrilo config`: show and change the saved settings."""

import sys

import click

from convertrilo.cli.options import output_options
from convertrilo.cli.output import Output

_NAMES = click.Choice(["apiKey", "accessToken", "baseUrl"])
_PROFILE = click.option("--profile", metavar="NAME", help="The profile.  [default: CONVERTRILO_PROFILE, or default]")
_SAVED = "[saved]"


@click.group()
def config() -> None:
    """Show and change the saved settings."""


@config.command("get")
@click.argument("name", required=False, type=_NAMES)
@_PROFILE
@output_options
def get(name: str | None, profile: str | None, output: Output) -> None:
    """Show the settings in effect and where each comes from, or only NAME. Credentials are never shown."""
    from convertrilo.cli import settings

    account = settings.account_settings(profile)
    values = {
        "apiKey": account.api_key and _SAVED,
        "accessToken": account.access_token and _SAVED,
        "baseUrl": account.base_url,
    }
    if name is not None:
        Output(as_json=output.as_json, field=None if output.as_json else name).show({name: values[name]})
        return
    output.show(
        {
            "path": str(settings.saved()[0]),
            "profile": account.profile,
            "profiles": sorted(settings.saved()[1]),
            **{key: value for key, value in values.items() if value is not None},
            "origins": dict(account.origins),
        }
    )


@config.command("set")
@click.argument("name", type=_NAMES)
@click.argument("value")
@_PROFILE
@output_options
def set_one(name: str, value: str, profile: str | None, output: Output) -> None:
    """Save a setting. An empty VALUE removes the setting; - reads VALUE from stdin, hidden from other users."""
    from convertrilo._base_client import DEFAULT_BASE_URL
    from convertrilo.cli import settings
    from convertrilo.client import AsyncClient

    text = (sys.stdin.readline() if value == "-" else value).strip()
    if text and name == "baseUrl":
        AsyncClient("unused", base_url=text)  # checks the URL
    elif text:
        AsyncClient(text, base_url=DEFAULT_BASE_URL)  # checks the key
    which = settings.profile_name(profile)
    file = settings.save(which, {name: text or None})
    output.show({"profile": which, "path": str(file), name: (text if name == "baseUrl" else _SAVED) if text else None})
