"""`convertrilo webhooks`: manage webhooks, and inspect their deliveries."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import click

from convertrilo.cli.options import Command, R, choice, output_options, service_options
from convertrilo.cli.output import Output, note, print_table
from convertrilo.cli.service import ServiceTarget
from convertrilo.models import WebhookEventName


def _events_option(default: str) -> Callable[[Command[R]], Command[R]]:
    text = f"An event to deliver; may be repeated.  [default: {default}]"
    return click.option("--event", "events", type=choice(WebhookEventName), multiple=True, help=text)


@click.group()
def webhooks() -> None:
    """List, create, change, test and inspect webhooks."""


@webhooks.command("list")
@output_options
@service_options
def list_all(output: Output, service: ServiceTarget) -> None:
    """List all webhooks, and which of them are off or failing."""
    output.show(service.run(lambda client: client.get_webhooks()), _table)


def _table(wire: Mapping[str, Any]) -> None:
    columns = ("id", "state", "failures", "url", "events", "last failure")
    rows = [
        (
            each.get("id"),
            webhook_state(each),
            each.get("failureCount"),
            each.get("url"),
            _events(each),
            each.get("lastFailedAt"),
        )
        for each in wire.get("webhooks", ())
    ]
    print_table(columns, rows, empty="There are no webhooks; create one with convertrilo webhooks create URL.")


def webhook_state(webhook: Mapping[str, Any]) -> str:
    """Return the state of a webhook: `active`, `failing` or `off`."""
    if webhook.get("isActive") is False:
        return "off"
    return "failing" if webhook.get("failureCount") else "active"


def _events(webhook: Mapping[str, Any]) -> str:
    return ", ".join(each.removeprefix("job.") for each in webhook.get("events", ()))


@webhooks.command()
@click.argument("url")
@_events_option("all events")
@output_options
@service_options
def create(url: str, events: tuple[str, ...], output: Output, service: ServiceTarget) -> None:
    """Create a webhook that delivers events to URL. Its signing secret is shown only once."""
    body = {"url": url, "events": events or get_args(WebhookEventName)}
    output.show(service.run(lambda client: client.create_webhook(body)))
    note("The secret is shown only once; a receiver needs it as CONVERTRILO_WEBHOOK_SECRET.")


@webhooks.command()
@click.argument("webhook_id")
@click.option("--url", help="The new URL to deliver events to.")
@_events_option("unchanged")
@click.option("--active/--inactive", default=None, help="Switch the webhook on or off.")
@output_options
@service_options
def update(
    webhook_id: str,
    url: str | None,
    events: tuple[str, ...],
    output: Output,
    service: ServiceTarget,
    *,
    active: bool | None,
) -> None:
    """Change a webhook, or switch it on or off."""
    body = {"url": url, "events": events or None, "isActive": active}
    if not any(value is not None for value in body.values()):
        raise click.UsageError("nothing to change: give --url, --event, --active or --inactive")
    output.show(service.run(lambda client: client.update_webhook(webhook_id, body)))


@webhooks.command()
@click.argument("webhook_id")
@output_options
@service_options
def delete(webhook_id: str, output: Output, service: ServiceTarget) -> None:
    """Delete a webhook."""
    service.run(lambda client: client.delete_webhook(webhook_id))
    output.show({"webhookId": webhook_id, "deleted": True})


@webhooks.command()
@click.argument("webhook_id")
@output_options
@service_options
def test(webhook_id: str, output: Output, service: ServiceTarget) -> None:
    """Send a `webhook.test` event. `deliveries` shows whether it arrived."""
    service.run(lambda client: client.test_webhook(webhook_id))
    output.show({"webhookId": webhook_id, "sent": True})


@webhooks.command()
@click.argument("webhook_id")
@output_options
@service_options
def deliveries(webhook_id: str, output: Output, service: ServiceTarget) -> None:
    """List the last delivery attempts, at most 50."""
    output.show(service.run(lambda client: client.get_webhook_deliveries(webhook_id)), _deliveries)


def _deliveries(wire: Mapping[str, Any]) -> None:
    names = ("createdAt", "event", "jobId", "attempt", "status", "statusCode", "durationMs", "error", "nextRetryAt")
    columns = ("when", "event", "job", "attempt", "status", "answer", "ms", "error", "next attempt")
    rows = [[each.get(name) for name in names] for each in wire.get("deliveries", ())]
    print_table(
        columns, rows, empty="There are no deliveries yet; send a test event with convertrilo webhooks test ID."
    )
