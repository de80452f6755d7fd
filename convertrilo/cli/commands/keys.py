"""`convertrilo keys`: the account's API keys."""

from collections.abc import Mapping
from typing import Any

import click

from convertrilo.cli.options import choice, of_output, of_service
from convertrilo.cli.output import Output, note, table
from convertrilo.cli.service import Service
from convertrilo.models import Scope


@click.group()
def keys() -> None:
    """List, create and revoke API keys.

    The service wants an access token for this, not an API key: `convertrilo login --email` saves one, or
    CONVERTRILO_ACCESS_TOKEN holds it.
    """


@keys.command("list")
@of_output
@of_service
def list_all(output: Output, service: Service) -> None:
    """Show all keys: what they may do, and until when."""
    output.show(service.run(lambda client: client.get_api_keys(), by_token=True), _table)


def _table(wire: Mapping[str, Any]) -> None:
    names = ("id", "name", "prefix", "scopes", "createdAt", "expiresAt")
    columns = ("id", "name", "begins with", "scopes", "created", "expires")
    rows = [[each.get(name) for name in names] for each in wire.get("keys", ())]
    table(columns, rows, empty="There are no keys: convertrilo keys create NAME makes one.")


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", type=choice(Scope), multiple=True, help="May be repeated.  [default: the service's]")
@click.option("--expires-in-days", type=click.IntRange(1, 365))
@of_output
@of_service
def create(name: str, scopes: tuple[str, ...], expires_in_days: int | None, output: Output, service: Service) -> None:
    """Create a key. It is shown this once."""
    body = {"name": name, "scopes": scopes or None, "expiresInDays": expires_in_days}
    output.show(service.run(lambda client: client.create_api_key(body), by_token=True))
    note("The key is shown this once; convertrilo login saves it.")


@keys.command()
@click.argument("key_id")
@of_output
@of_service
def revoke(key_id: str, output: Output, service: Service) -> None:
    """Revoke a key, by its id."""
    service.run(lambda client: client.revoke_api_key(key_id), by_token=True)
    output.show({"keyId": key_id, "revoked": True})
