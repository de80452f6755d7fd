"""How far things are, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from convertrilo.cli.output import note, size_text
from convertrilo.transfers import Progress

Show = Callable[[Progress], None]

_DOING = {"upload": "uploading", "encode": "encoding", "download": "downloading"}
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(*, quiet: bool) -> Generator[Show]:
    """Yield what shows progress: as a bar on a terminal, as a line now and then elsewhere, not at all if quiet."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        yield _lines()


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
    """How fast one stage goes."""

    def __init__(self, at: Progress) -> None:
        self.stage = at.stage
        self._began = time.monotonic()
        self._first = at.done

    def rate(self, at: Progress) -> float | None:
        """Return how much is done in a second."""
        passed, done = time.monotonic() - self._began, at.done - self._first
        return done / passed if passed > 0 and done > 0 else None

    def text(self, at: Progress) -> str:
        """Return the same for people."""
        rate = self.rate(at)
        if rate is None:
            return ""
        return f"{rate:.1f} %/s" if at.stage == "encode" else f"{size_text(rate)}/s"

    def left(self, at: Progress) -> str:
        """Return how much time is left, for people."""
        rate = self.rate(at)
        if rate is None or at.total is None:
            return ""
        minutes, seconds = divmod(round((at.total - at.done) / rate), 60)
        return f"{minutes}:{seconds:02} left"


@contextmanager
def _bars() -> Generator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]:<20}"),
        TextColumn("{task.fields[rate]:>10}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    tasks: dict[str, TaskID] = {}
    pace: _Pace | None = None
    console = Console(file=cast("TextIO", Steadfast(sys.stderr)))
    with Bars(*columns, console=console) as bars:

        def show(at: Progress) -> None:
            nonlocal pace
            if at.stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[at.stage] = bars.add_task(_DOING[at.stage], total=at.total, amount="", rate="")
                pace = _Pace(at)
            assert pace is not None
            fields = {"amount": _amount(at), "rate": pace.text(at)}
            bars.update(tasks[at.stage], completed=at.done, total=at.total, **cast("dict[str, Any]", fields))

        yield show


def _lines() -> Show:
    pace: _Pace | None = None
    due = 0.0

    def show(at: Progress) -> None:
        nonlocal pace, due
        now = time.monotonic()
        if pace is not None and at.stage == pace.stage and now < due:
            return
        if pace is None or at.stage != pace.stage:
            pace = _Pace(at)
        due = now + _SECONDS_BETWEEN_LINES
        percent = f"{100 * at.done / at.total:.0f} %" if at.total else ""
        note(" ".join(filter(None, (_DOING[at.stage], percent, _amount(at), pace.text(at), pace.left(at)))))

    return show


def _amount(at: Progress) -> str:
    if at.stage == "encode":
        return ""
    return size_text(at.done) if at.total is None else f"{size_text(at.done)} of {size_text(at.total)}"
