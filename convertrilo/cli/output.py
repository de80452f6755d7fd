"""What the commands print: results on stdout, for people or for programs; everything else on stderr."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

if TYPE_CHECKING:
    from convertrilo._model import Model

_COLOURS = {
    **dict.fromkeys(("success", "answered", "ok", "active"), "green"),
    **dict.fromkeys(("failed", "unknown", "off"), "red"),
    **dict.fromkeys(("canceled", "pending", "warning", "failing"), "yellow"),
    **dict.fromkeys(("running", "queued"), "cyan"),
}
"""The colour of each state on a terminal."""

_SHOWN_FIRST = frozenset({"jobId", "status", "available"})

_UNLIMITED_WIDTH = 10_000
"""Width of tables in columns if stdout is not a terminal, so that no cell is wrapped or cut off."""


class Output:
    """How the result of a command is printed.

    Args:
        as_json: Whether to print JSON.
        field: The only field to print; `None` prints the whole result.
    """

    def __init__(self, *, as_json: bool, field: str | None = None) -> None:
        self.as_json = as_json
        self.field = field

    @property
    def is_for_programs(self) -> bool:
        """Whether JSON or a field was asked for."""
        return self.as_json or self.field is not None

    def print_item(self, result: Mapping[str, Any]) -> None:
        """Print one of many results for programs: one line of JSON, or one field."""
        self._print(result, indent=None)

    def _print(self, wire: Mapping[str, Any], *, indent: int | None) -> None:
        if self.field is None:
            print_line(json.dumps(wire, indent=indent))
            return
        value = wire.get(self.field)
        print_line("" if value is None else value if isinstance(value, str) else json.dumps(value))

    def show(
        self,
        result: "Model | Mapping[str, Any]",
        for_people: Callable[[Mapping[str, Any]], None] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        """Print a result, with the field names of the wire.

        Args:
            result: The result.
            for_people: Prints the result if neither JSON nor a field was asked for; by default one line per field.
            quiet: Whether to print nothing for people.
        """
        wire = result if isinstance(result, Mapping) else wire_of(result)
        if self.is_for_programs:
            self._print(wire, indent=2)
            if self.field is not None and self.field not in wire:
                note(f"The result has no field {self.field}; its fields are {', '.join(wire)}.")
        elif not quiet:
            (for_people or print_fields)(wire)


def wire_of(model: "Model") -> dict[str, Any]:
    """Return an answer in the wire's shape; a job's id is always `jobId`."""
    from convertrilo.codec import to_wire
    from convertrilo.models import StatusResponse

    wire = to_wire(model)
    return {"jobId": model.id, **wire} if isinstance(model, StatusResponse) else wire


def print_fields(wire: Mapping[str, Any]) -> None:
    """Print one line for each field that is set, the most important ones first."""
    for name, value in sorted(wire.items(), key=lambda field: field[0] not in _SHOWN_FIRST):
        if value is not None and not (name == "id" and "jobId" in wire):
            print_line(f"{click.style(name, bold=True)}: {_text(value)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table, or a note if it has no rows.

    Args:
        columns: The headings.
        rows: The values of each row.
        empty: The note for an empty table, printed on stderr.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # An id is never wrapped, so that it can be copied into the next command.
    heads = [Column(each, overflow="fold", no_wrap=each == "id") for each in columns]
    grid = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in map(_plain, row)))
    if not grid.rows:
        note(empty)
        return
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED_WIDTH
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().splitlines():
        print_line(line.rstrip())


def _text(value: Any) -> str:
    text = _plain(value)
    return click.style(text, fg=_COLOURS[text]) if text in _COLOURS else text


def _plain(value: Any) -> str:
    """Return a value as text for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, cast("Sequence[Any]", value)))
    return json.dumps(value) if isinstance(value, dict) else readable(str(value))


def readable(text: str) -> str:
    """Escape unprintable characters, so that a file name or message cannot control the terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_line(text: str) -> None:
    """Print a line on stdout; once its reader is gone, discard the output silently."""
    try:
        try:
            click.echo(text)
        except UnicodeEncodeError:  # a file name that is not valid text, or text outside stdout's encoding
            click.echo(_encoded(text, sys.stdout.encoding))
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            error.filename = "stdout"
            raise
        _discard(sys.stdout)


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")


def note(text: str) -> None:
    """Print a line on stderr, such as a hint or an error."""
    with suppress(OSError):  # the terminal has been closed
        click.echo(text, err=True)


def size_text(size: float) -> str:
    """Return a size in bytes as text, with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def tokens_text(tokens: float) -> str:
    """Return a number of tokens as text, with all significant digits."""
    return f"{tokens:,.6f}".rstrip("0").rstrip(".")


def _discard(stream: TextIO) -> None:
    """Redirect a stream and its buffered output to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
