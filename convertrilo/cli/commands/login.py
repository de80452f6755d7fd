"""`convertrilo login`: save credentials in a profile."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import output_options
from convertrilo.cli.output import Output, note
from convertrilo.cli.service import ServiceTarget

if TYPE_CHECKING:
    from convertrilo.client import AsyncClient


@click.command()
@click.option("--api-key", metavar="KEY", help="The API key. Prefer the prompt: other users can read options.")
@click.option(
    "--email", help="Log in with this e-mail address and a password, and save the access token, which `keys` needs."
)
@click.option(
    "--base-url",
    metavar="URL",
    help="The service's base URL.  [default: CONVERTRILO_BASE_URL, the saved one, or https://api.convertrilo.com]",
)
@click.option("--profile", metavar="NAME", help="The profile to save.  [default: CONVERTRILO_PROFILE, or default]")
@click.option(
    "--sandbox",
    is_flag=True,
    help="Check the credentials against the local sandbox, which needs no login, and save nothing.",
)
@output_options
def login(
    api_key: str | None,
    email: str | None,
    base_url: str | None,
    profile: str | None,
    output: Output,
    *,
    sandbox: bool,
) -> None:
    """Check credentials with the service, then save an API key, or the access token of a login with --email.

    On a terminal the command asks for the key or the password; otherwise it reads stdin.
    """
    from functools import partial

    import anyio

    from convertrilo._base_client import DEFAULT_BASE_URL
    from convertrilo.cli import settings
    from convertrilo.cli.interrupt import interruptible
    from convertrilo.client import AsyncClient
    from convertrilo.retry import RetryPolicy

    if api_key is not None and email is not None:
        raise click.UsageError("--api-key and --email exclude each other")
    name = settings.profile_name(profile)
    where = base_url or os.environ.get("CONVERTRILO_BASE_URL") or _known(name) or DEFAULT_BASE_URL
    password = None if email is None else _secret("Password")
    key = (api_key or _secret("API key")) if email is None else None
    client = (
        ServiceTarget(None, sandbox=True).client(api_key=key)
        if sandbox
        else AsyncClient(key, base_url=where, retry=RetryPolicy.none())
    )
    changes = anyio.run(interruptible, client, partial(_accepted, key, email, password), str)
    result: dict[str, Any] = {"profile": name, "baseUrl": where}
    if not sandbox:
        changes["baseUrl"] = None if where == DEFAULT_BASE_URL else where
        result["path"] = str(settings.save(name, changes))
    output.show(result)
    if os.environ.get("CONVERTRILO_API_KEY") and profile is None:
        note("CONVERTRILO_API_KEY is set and overrides the saved key.")


def _known(profile: str) -> str | None:
    from convertrilo.cli.settings import saved

    return saved()[1].get(profile, {}).get("baseUrl")


def _secret(what: str) -> str:
    is_asked = sys.stdin.isatty()
    value = str(click.prompt(what, hide_input=True, err=True) if is_asked else sys.stdin.readline()).strip()
    if not value:
        raise click.UsageError(f"no {what}: give it on stdin, as in convertrilo login < FILE")
    return value


async def _accepted(
    key: str | None, email: str | None, password: str | None, client: "AsyncClient"
) -> dict[str, str | None]:
    """Have the service check the credentials, and return the settings to save."""
    from convertrilo.errors import PermissionDeniedError

    if key is None:
        answer = await client.login({"email": email, "password": password})
        return {"accessToken": answer.access_token}
    try:
        await client.get_balance()
    except PermissionDeniedError as error:
        if error.required_scope is None:  # a key without this scope is still valid
            raise
    return {"apiKey": key}
