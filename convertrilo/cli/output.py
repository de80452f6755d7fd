"""What the commands print: the result on stdout, for people or for programs; all else on stderr."""

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
"""What a state looks like on a terminal."""

_FIRST = frozenset({"jobId", "status", "available"})

_ENDLESS = 10_000
"""Columns of what is no terminal: nothing is wrapped, and nothing cut off."""


class Output:
    """How the result of a command is printed.

    Args:
        as_json: As JSON, for programs.
        field: This field of it only.
    """

    def __init__(self, *, as_json: bool, field: str | None = None) -> None:
        self.as_json = as_json
        self.field = field

    @property
    def is_for_programs(self) -> bool:
        """Whether JSON or a field was asked for."""
        return self.as_json or self.field is not None

    def line(self, result: Mapping[str, Any]) -> None:
        """Print one of many results for programs: a line of JSON, or a field."""
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
        """Print a result, under the names of the wire.

        Args:
            result: What came out.
            for_people: Prints it when nobody asked for JSON or a field; by default each field has a line.
            quiet: Whether people want to see nothing.
        """
        wire = result if isinstance(result, Mapping) else wire_of(result)
        if self.is_for_programs:
            self._print(wire, indent=2)
            if self.field is not None and self.field not in wire:
                note(f"There is no field {self.field} here; there are {', '.join(wire)}.")
        elif not quiet:
            (for_people or facts)(wire)


def wire_of(model: "Model") -> dict[str, Any]:
    """Return an answer in the wire's shape; what says which job it is about says it as `jobId`."""
    from convertrilo.codec import to_wire
    from convertrilo.models import StatusResponse

    wire = to_wire(model)
    return {"jobId": model.id, **wire} if isinstance(model, StatusResponse) else wire


def facts(wire: Mapping[str, Any]) -> None:
    """Print a line for each field that is set, what matters most first."""
    for name, value in sorted(wire.items(), key=lambda field: field[0] not in _FIRST):
        if value is not None and not (name == "id" and "jobId" in wire):
            print_line(f"{click.style(name, bold=True)}: {_text(value)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table, or what is said when there is nothing in it.

    Args:
        columns: Their heads.
        rows: Their values.
        empty: What to say if there are no rows; on stderr, as it is no result.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # An id is whole, to be copied into the next command.
    heads = [Column(each, overflow="fold", no_wrap=each == "id") for each in columns]
    grid = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in map(_plain, row)))
    if not grid.rows:
        note(empty)
        return
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _ENDLESS
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().splitlines():
        print_line(line.rstrip())


def _text(value: Any) -> str:
    text = _plain(value)
    return click.style(text, fg=_COLOURS[text]) if text in _COLOURS else text


def _plain(value: Any) -> str:
    """Return a value as people read it."""
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
    """Return a text in which nothing makes a terminal do anything: names of files come from anywhere."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_line(text: str) -> None:
    """Print a line on stdout; whoever has read enough of it, or closed the terminal, need not be told the rest."""
    try:
        try:
            click.echo(text)
        except UnicodeEncodeError:  # the name of a file that is no text, or text that this terminal cannot show
            click.echo(_encoded(text, sys.stdout.encoding))
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            error.filename = "stdout"
            raise
        _give_up(sys.stdout)


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")


def note(text: str) -> None:
    """Say something that is no result: on stderr."""
    with suppress(OSError):  # the terminal has been closed
        click.echo(text, err=True)


def size_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def tokens_text(tokens: float) -> str:
    """Return a number of tokens as people read it, with all of its digits."""
    return f"{tokens:,.6f}".rstrip("0").rstrip(".")


def _give_up(stream: TextIO) -> None:
    """Let what a stream still holds, and what is written to it from now on, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
