"""`convertrilo doctor`: whether everything is as it should be, and if not, what to do."""

from collections.abc import Mapping
from typing import Any

import click

from convertrilo.cli.options import of_output, of_service
from convertrilo.cli.output import Output, table
from convertrilo.cli.service import Service


@click.command()
@of_output
@of_service
def doctor(output: Output, service: Service) -> None:
    """Check settings, service, key and scopes, tokens, clock, webhooks and ffmpeg. Changes nothing.

    Exit code 0 if nothing has failed; else that of the first failure.
    """
    from convertrilo.cli.checks import examine

    checks = examine(service)
    failed = [each for each in checks if each.state == "failed"]
    output.show({"ok": not failed, "checks": [each.wire for each in checks]}, _table)
    if failed:
        raise click.exceptions.Exit(failed[0].code)


def _table(wire: Mapping[str, Any]) -> None:
    rows = [(each["name"], each["state"], each["says"]) for each in wire["checks"]]
    table(("what", "state", "says"), rows, empty="")
