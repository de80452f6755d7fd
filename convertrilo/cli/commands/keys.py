"""`convertrilo keys`: list, create and revoke API keys."""

from collections.abc import Mapping
from typing import Any

import click

from convertrilo.cli.options import choice, output_options, service_options
from convertrilo.cli.output import Output, note, print_table
from convertrilo.cli.service import ServiceTarget
from convertrilo.models import Scope


@click.group()
def keys() -> None:
    """List, create and revoke API keys.

    These commands need an access token, not an API key: save one with `convertrilo login --email`, or set
    CONVERTRILO_ACCESS_TOKEN.
    """


@keys.command("list")
@output_options
@service_options
def list_all(output: Output, service: ServiceTarget) -> None:
    """List all keys, with their scopes and expiry."""
    output.show(service.run(lambda client: client.get_api_keys(), by_token=True), _table)


def _table(wire: Mapping[str, Any]) -> None:
    names = ("id", "name", "prefix", "scopes", "createdAt", "expiresAt")
    columns = ("id", "name", "begins with", "scopes", "created", "expires")
    rows = [[each.get(name) for name in names] for each in wire.get("keys", ())]
    print_table(columns, rows, empty="There are no keys; create one with convertrilo keys create NAME.")


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=choice(Scope),
    multiple=True,
    help="A scope of the key; may be repeated.  [default: chosen by the service]",
)
@click.option("--expires-in-days", type=click.IntRange(1, 365), help="Days until the key expires.")
@output_options
@service_options
def create(
    name: str, scopes: tuple[str, ...], expires_in_days: int | None, output: Output, service: ServiceTarget
) -> None:
    """Create a key. The key is shown only once."""
    body = {"name": name, "scopes": scopes or None, "expiresInDays": expires_in_days}
    output.show(service.run(lambda client: client.create_api_key(body), by_token=True))
    note("The key is shown only once; save it with convertrilo login.")


@keys.command()
@click.argument("key_id")
@output_options
@service_options
def revoke(key_id: str, output: Output, service: ServiceTarget) -> None:
    """Revoke a key by its id."""
    service.run(lambda client: client.revoke_api_key(key_id), by_token=True)
    output.show({"keyId": key_id, "revoked": True})
