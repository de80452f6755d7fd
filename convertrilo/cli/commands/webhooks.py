"""`convertrilo webhooks`: who hears of jobs."""

from collections.abc import Mapping
from typing import Any, get_args

import click

from convertrilo.cli.options import choice, of_output, of_service
from convertrilo.cli.output import Output, note, table
from convertrilo.cli.service import Service
from convertrilo.models import WebhookEventName

_EVENTS = click.option(
    "--event", "events", type=choice(WebhookEventName), multiple=True, help="May be repeated.  [default: all]"
)


@click.group()
def webhooks() -> None:
    """List, create, change, test and look into webhooks."""


@webhooks.command("list")
@of_output
@of_service
def list_all(output: Output, service: Service) -> None:
    """Show all webhooks, and which of them are switched off or failing."""
    output.show(service.run(lambda client: client.get_webhooks()), _table)


def _table(wire: Mapping[str, Any]) -> None:
    columns = ("id", "state", "failures", "url", "events", "last failure")
    rows = [
        (
            each.get("id"),
            state_of(each),
            each.get("failureCount"),
            each.get("url"),
            _events(each),
            each.get("lastFailedAt"),
        )
        for each in wire.get("webhooks", ())
    ]
    table(columns, rows, empty="There are no webhooks: convertrilo webhooks create URL makes one.")


def state_of(webhook: Mapping[str, Any]) -> str:
    """Return what a webhook is, for people: `active`, `failing` or `off`."""
    if webhook.get("isActive") is False:
        return "off"
    return "failing" if webhook.get("failureCount") else "active"


def _events(webhook: Mapping[str, Any]) -> str:
    return ", ".join(each.removeprefix("job.") for each in webhook.get("events", ()))


@webhooks.command()
@click.argument("url")
@_EVENTS
@of_output
@of_service
def create(url: str, events: tuple[str, ...], output: Output, service: Service) -> None:
    """Have events sent to URL. The secret that they are signed with is shown this once."""
    body = {"url": url, "events": events or get_args(WebhookEventName)}
    output.show(service.run(lambda client: client.create_webhook(body)))
    note("The secret is shown this once; a receiver needs it as CONVERTRILO_WEBHOOK_SECRET.")


@webhooks.command()
@click.argument("webhook_id")
@click.option("--url", help="Where to send events from now on.")
@_EVENTS
@click.option("--active/--inactive", default=None, help="Switch it on (again), or off.")
@of_output
@of_service
def update(
    webhook_id: str,
    url: str | None,
    events: tuple[str, ...],
    output: Output,
    service: Service,
    *,
    active: bool | None,
) -> None:
    """Change a webhook, or switch it on again."""
    body = {"url": url, "events": events or None, "isActive": active}
    if not any(value is not None for value in body.values()):
        raise click.UsageError("nothing to change: give --url, --event, --active or --inactive")
    output.show(service.run(lambda client: client.update_webhook(webhook_id, body)))


@webhooks.command()
@click.argument("webhook_id")
@of_output
@of_service
def delete(webhook_id: str, output: Output, service: Service) -> None:
    """Delete a webhook."""
    service.run(lambda client: client.delete_webhook(webhook_id))
    output.show({"webhookId": webhook_id, "deleted": True})


@webhooks.command()
@click.argument("webhook_id")
@of_output
@of_service
def test(webhook_id: str, output: Output, service: Service) -> None:
    """Have a `webhook.test` event sent; `deliveries` shows how that went."""
    service.run(lambda client: client.test_webhook(webhook_id))
    output.show({"webhookId": webhook_id, "sent": True})


@webhooks.command()
@click.argument("webhook_id")
@of_output
@of_service
def deliveries(webhook_id: str, output: Output, service: Service) -> None:
    """Show the last attempts to deliver, at most 50."""
    output.show(service.run(lambda client: client.get_webhook_deliveries(webhook_id)), _deliveries)


def _deliveries(wire: Mapping[str, Any]) -> None:
    names = ("createdAt", "event", "jobId", "attempt", "status", "statusCode", "durationMs", "error", "nextRetryAt")
    columns = ("when", "event", "job", "attempt", "status", "answer", "ms", "error", "next attempt")
    rows = [[each.get(name) for name in names] for each in wire.get("deliveries", ())]
    table(columns, rows, empty="Nothing was delivered yet: convertrilo webhooks test ID tries it.")
