"""`convertrilo journal`: what was sent, and what was answered, as a file of `Journal` holds it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import of_output, readable_file
from convertrilo.cli.output import Output, table

if TYPE_CHECKING:
    from convertrilo.journal import Entry, Journal

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def journal() -> None:
    """Look into FILE, a journal of the SDK or of `ingest`: what was sent, and what was answered."""


@journal.command()
@_FILE
@of_output
def pending(file: Path, output: Output) -> None:
    """Show what was sent, is not answered, and may be sent again."""
    _list(file, output, lambda opened: opened.pending())


@journal.command()
@_FILE
@of_output
def answered(file: Path, output: Output) -> None:
    """Show what was answered."""
    _list(file, output, lambda opened: opened.answered())


@journal.command()
@_FILE
@of_output
def unknown(file: Path, output: Output) -> None:
    """Show what was not answered in time, and needs a decision: look for it, then `drop` it or leave it."""
    _list(file, output, lambda opened: opened.unknown())


@journal.command()
@_FILE
@click.argument("key")
@of_output
def show(file: Path, key: str, output: Output) -> None:
    """Show the operation with an idempotency key: its request, and its answer without what is secret in it."""
    from convertrilo.errors import JournalError

    entry = _with(file, lambda opened: opened.get(key))
    if entry is None:
        raise JournalError(f"the journal {file} holds no key {key}")
    output.show(_wire(entry, whole=True))


@journal.command()
@_FILE
@click.argument("key")
@of_output
def drop(file: Path, key: str, output: Output) -> None:
    """Forget the operation with an idempotency key: the next call with it is a new operation."""
    from convertrilo.errors import JournalError

    if not _with(file, lambda opened: opened.drop(key)):
        raise JournalError(f"the journal {file} holds no key {key}")
    output.show({"key": key, "dropped": True})


def _with(file: Path, work: "Callable[[Journal], Any]") -> Any:
    import anyio

    from convertrilo.journal import Journal

    readable_file(file)

    async def use() -> Any:
        async with Journal(file) as opened:
            return await work(opened)

    return anyio.run(use)


def _list(file: Path, output: Output, chosen: "Callable[[Journal], AsyncIterator[Entry]]") -> None:
    async def collect(opened: "Journal") -> list[dict[str, Any]]:
        return [_wire(entry) async for entry in chosen(opened)]

    output.show({"operations": _with(file, collect)}, _table)


def _table(wire: Any) -> None:
    names = ("firstSentAt", "operation", "name", "identity", "key")
    rows = [[each.get(name) for name in names] for each in wire["operations"]]
    table(("first sent", "operation", "name", "identity", "key"), rows, empty="There is nothing of that kind.")


def _wire(entry: "Entry", *, whole: bool = False) -> dict[str, Any]:
    wire = {
        "key": entry.key,
        "operation": entry.operation,
        "name": entry.name,
        "identity": entry.identity,
        "state": entry.state,
        "firstSentAt": entry.first_sent_at.isoformat(),
        "answeredAt": None if entry.answered_at is None else entry.answered_at.isoformat(),
    }
    if whole:
        wire |= {"request": _readable(entry.body), "answer": None if entry.answer is None else _readable(entry.answer)}
    return wire


def _readable(body: bytes) -> Any:
    """Return a body without the temporary permissions, such as upload URLs, that it may hold."""
    import json

    from convertrilo._http.redaction import hider, secrets_in, without_secrets

    text = body.decode(errors="backslashreplace")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return without_secrets(value, hider(text, secrets_in(value)))
