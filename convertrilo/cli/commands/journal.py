"""`convertrilo journal`: inspect the file of a `Journal`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convertrilo.cli.files import check_readable
from convertrilo.cli.options import output_options
from convertrilo.cli.output import Output, print_table

if TYPE_CHECKING:
    from convertrilo.journal import Entry, Journal

T = TypeVar("T")

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def journal() -> None:
    """Inspect FILE, a journal of the SDK or of a command: the operations sent and their answers."""


@journal.command()
@_FILE
@output_options
def pending(file: Path, output: Output) -> None:
    """List operations without an answer that may be sent again."""
    _list(file, output, lambda opened: opened.pending())


@journal.command()
@_FILE
@output_options
def answered(file: Path, output: Output) -> None:
    """List operations that have an answer."""
    _list(file, output, lambda opened: opened.answered())


@journal.command()
@_FILE
@output_options
def unknown(file: Path, output: Output) -> None:
    """List operations whose outcome is unknown. Find out what happened to each, then `drop` it or keep it."""
    _list(file, output, lambda opened: opened.unknown())


@journal.command()
@_FILE
@click.argument("key")
@output_options
def show(file: Path, key: str, output: Output) -> None:
    """Show the request and answer of an operation. KEY is its idempotency key; secrets are left out."""
    from convertrilo.errors import JournalError

    entry = _run(file, lambda opened: opened.get(key))
    if entry is None:
        raise JournalError(f"the journal {file} holds no key {key}")
    output.show(_wire(entry, whole=True))


@journal.command()
@_FILE
@click.argument("key")
@output_options
def drop(file: Path, key: str, output: Output) -> None:
    """Forget an operation. KEY is its idempotency key; the next call with that key is a new operation."""
    from convertrilo.errors import JournalError

    if not _run(file, lambda opened: opened.drop(key)):
        raise JournalError(f"the journal {file} holds no key {key}")
    output.show({"key": key, "dropped": True})


def _run(file: Path, work: "Callable[[Journal], Awaitable[T]]") -> T:
    """Run work on the journal in a file, which must exist."""
    import anyio

    from convertrilo.journal import Journal

    check_readable(file)

    async def use() -> T:
        async with Journal(file) as opened:
            return await work(opened)

    return anyio.run(use)


def _list(file: Path, output: Output, select: "Callable[[Journal], AsyncIterator[Entry]]") -> None:
    async def collect(opened: "Journal") -> list[dict[str, Any]]:
        return [_wire(entry) async for entry in select(opened)]

    output.show({"operations": _run(file, collect)}, _table)


def _table(wire: Mapping[str, Any]) -> None:
    names = ("firstSentAt", "operation", "name", "identity", "key")
    rows = [[each.get(name) for name in names] for each in wire["operations"]]
    print_table(("first sent", "operation", "name", "identity", "key"), rows, empty="There are no such operations.")


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
    """Return a body for display, without secrets such as presigned URLs."""
    import json

    from convertrilo._http.redaction import hider, secrets_in, without_secrets

    text = body.decode(errors="backslashreplace")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return without_secrets(value, hider(text, secrets_in(value)))
