"""Progress on stderr: a bar on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import attrs

from convertrilo.cli.output import note, size_text
from convertrilo.transfers import Progress

ShowProgress = Callable[[Progress], None]

_STEP_NAMES = {"upload": "uploading", "encode": "encoding", "download": "downloading"}
_SECONDS_BETWEEN_LINES = 5.0


@attrs.frozen
class StepProgress:
    """The progress of one step of a command."""

    name: str
    done: float
    total: float | None
    """`None` while it is unknown."""
    amount: str = ""
    """How much is done, in words."""
    unit: Callable[[float], str] = "{:.1f} %".format
    """Formats how much is done per second."""


@contextmanager
def show_progress(*, quiet: bool) -> Generator[ShowProgress]:
    """Yield a callback that shows the progress of one job's transfers and encode."""
    with show_steps(quiet=quiet) as show:
        yield lambda at: show(_step_of(at))


def _step_of(at: Progress) -> StepProgress:
    if at.stage == "encode":
        return StepProgress(_STEP_NAMES[at.stage], at.done, at.total)
    amount = size_text(at.done) if at.total is None else f"{size_text(at.done)} of {size_text(at.total)}"
    return StepProgress(_STEP_NAMES[at.stage], at.done, at.total, amount, size_text)


@contextmanager
def show_steps(*, quiet: bool) -> Generator[Callable[[StepProgress], None]]:
    """Yield a callback that shows steps: a bar on a terminal, an occasional line elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars() as show:
            yield show
    else:
        with _lines() as show:
            yield show


class ForgivingStream:
    """A stream that ignores write errors: a closed terminal must not break the work in progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, and ignore write errors."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, and ignore write errors."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _StepRate:
    """The rate and the remaining time of one step."""

    def __init__(self, at: StepProgress) -> None:
        self.name = at.name
        self._began = time.monotonic()
        self._first = at.done

    def _per_second(self, at: StepProgress) -> float | None:
        passed, done = time.monotonic() - self._began, at.done - self._first
        return done / passed if passed > 0 and done > 0 else None

    def text(self, at: StepProgress) -> str:
        """Return how much is done per second, as text."""
        per_second = self._per_second(at)
        return "" if per_second is None else f"{at.unit(per_second)}/s"

    def time_left(self, at: StepProgress) -> str:
        """Return the estimated time left, as text."""
        per_second = self._per_second(at)
        if per_second is None or at.total is None:
            return ""
        minutes, seconds = divmod(round((at.total - at.done) / per_second), 60)
        return f"{minutes}:{seconds:02} left"


@contextmanager
def _bars() -> Generator[Callable[[StepProgress], None]]:
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
    rate: _StepRate | None = None
    console = Console(file=cast("TextIO", ForgivingStream(sys.stderr)))
    # Results printed to the same terminal appear above the bars; a redirected stdout is left alone.
    with Bars(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bars:

        def show(at: StepProgress) -> None:
            nonlocal rate
            if at.name not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[at.name] = bars.add_task(at.name, total=at.total, amount="", rate="")
                rate = _StepRate(at)
            assert rate is not None
            fields: dict[str, Any] = {"amount": at.amount, "rate": rate.text(at)}
            bars.update(tasks[at.name], completed=at.done, total=at.total, **fields)

        yield show


@contextmanager
def _lines() -> Generator[Callable[[StepProgress], None]]:
    rate: _StepRate | None = None
    due = 0.0
    unprinted: StepProgress | None = None

    def print_step(at: StepProgress) -> None:
        assert rate is not None
        percent = f"{100 * at.done / at.total:.0f} %" if at.total else ""
        note(" ".join(filter(None, (at.name, percent, at.amount, rate.text(at), rate.time_left(at)))))

    def show(at: StepProgress) -> None:
        nonlocal rate, due, unprinted
        now = time.monotonic()
        unprinted = at
        if rate is not None and at.name == rate.name and now < due:
            return
        if rate is None or at.name != rate.name:
            rate = _StepRate(at)
        due, unprinted = now + _SECONDS_BETWEEN_LINES, None
        print_step(at)

    yield show
    if unprinted is not None:
        print_step(unprinted)
