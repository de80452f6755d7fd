"""`convertrilo doctor`: find out what does not work, and how to fix it."""

from collections.abc import Mapping
from typing import Any

import click

from convertrilo.cli.options import output_options, service_options
from convertrilo.cli.output import Output, print_table
from convertrilo.cli.service import ServiceTarget


@click.command()
@output_options
@service_options
def doctor(output: Output, service: ServiceTarget) -> None:
    """Check settings, service, API key and scopes, tokens, clock, webhooks and ffmpeg. Changes nothing.

    The exit code is that of the first failed check, or 0.
    """
    from convertrilo.cli.doctor_flow import examine

    checks = examine(service)
    failed = [each for each in checks if each.state == "failed"]
    output.show({"ok": not failed, "checks": [each.wire for each in checks]}, _table)
    if failed:
        raise click.exceptions.Exit(failed[0].code)


def _table(wire: Mapping[str, Any]) -> None:
    rows = [(each["name"], each["state"], each["says"]) for each in wire["checks"]]
    print_table(("what", "state", "says"), rows, empty="")
