"""How far things are, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import attrs

from convertrilo.cli.output import note, size_text
from convertrilo.transfers import Progress

Show = Callable[[Progress], None]

_DOING = {"upload": "uploading", "encode": "encoding", "download": "downloading"}
_SECONDS_BETWEEN_LINES = 5.0


@attrs.frozen
class Step:
    """How far one step of a command is, for people."""

    name: str
    done: float
    total: float | None
    """`None` if it is not known."""
    amount: str = ""
    """What is done, of what."""
    unit: Callable[[float], str] = "{:.1f} %".format
    """Writes how much of it is done in a second."""


@contextmanager
def progress(*, quiet: bool) -> Generator[Show]:
    """Yield what shows how far the transfers and the encode of one job are."""
    with steps(quiet=quiet) as show:
        yield lambda at: show(_step_of(at))


def _step_of(at: Progress) -> Step:
    if at.stage == "encode":
        return Step(_DOING[at.stage], at.done, at.total)
    amount = size_text(at.done) if at.total is None else f"{size_text(at.done)} of {size_text(at.total)}"
    return Step(_DOING[at.stage], at.done, at.total, amount, size_text)


@contextmanager
def steps(*, quiet: bool) -> Generator[Callable[[Step], None]]:
    """Yield what shows steps: as a bar on a terminal, as a line now and then elsewhere, not at all if quiet."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        with _lines() as show:
            yield show


class Steadfast:
    """A stream whose end is no error: who closes the terminal wants the work to be left in order, not to break."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if there still is somebody to read."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if there still is somebody to read."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Pace:
    """How fast one step goes."""

    def __init__(self, at: Step) -> None:
        self.name = at.name
        self._began = time.monotonic()
        self._first = at.done

    def _rate(self, at: Step) -> float | None:
        passed, done = time.monotonic() - self._began, at.done - self._first
        return done / passed if passed > 0 and done > 0 else None

    def rate(self, at: Step) -> str:
        """Return how much is done in a second."""
        rate = self._rate(at)
        return "" if rate is None else f"{at.unit(rate)}/s"

    def left(self, at: Step) -> str:
        """Return how much time is left."""
        rate = self._rate(at)
        if rate is None or at.total is None:
            return ""
        minutes, seconds = divmod(round((at.total - at.done) / rate), 60)
        return f"{minutes}:{seconds:02} left"


@contextmanager
def _bars() -> Generator[Callable[[Step], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]:<20}"),
        TextColumn("{task.fields[rate]:>10}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    tasks: dict[str, TaskID] = {}
    pace: _Pace | None = None
    console = Console(file=cast("TextIO", Steadfast(sys.stderr)))
    # What is printed meanwhile appears above the bars; a result that goes elsewhere goes there.
    with Bars(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bars:

        def show(at: Step) -> None:
            nonlocal pace
            if at.name not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[at.name] = bars.add_task(at.name, total=at.total, amount="", rate="")
                pace = _Pace(at)
            assert pace is not None
            fields: dict[str, Any] = {"amount": at.amount, "rate": pace.rate(at)}
            bars.update(tasks[at.name], completed=at.done, total=at.total, **fields)

        yield show


@contextmanager
def _lines() -> Generator[Callable[[Step], None]]:
    pace: _Pace | None = None
    due = 0.0
    unsaid: Step | None = None

    def say(at: Step) -> None:
        assert pace is not None
        percent = f"{100 * at.done / at.total:.0f} %" if at.total else ""
        note(" ".join(filter(None, (at.name, percent, at.amount, pace.rate(at), pace.left(at)))))

    def show(at: Step) -> None:
        nonlocal pace, due, unsaid
        now = time.monotonic()
        unsaid = at
        if pace is not None and at.name == pace.name and now < due:
            return
        if pace is None or at.name != pace.name:
            pace = _Pace(at)
        due, unsaid = now + _SECONDS_BETWEEN_LINES, None
        say(at)

    yield show
    if unsaid is not None:
        say(unsaid)
