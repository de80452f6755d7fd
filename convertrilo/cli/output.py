"""What the command shows: progress on stderr, the result on stdout."""

import json
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

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
        with _bars(sys.stderr) as show:
            yield show
    else:
        yield _lines(sys.stderr)


@contextmanager
def _bars(stream: TextIO) -> Generator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]:<20}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(file=stream)) as bars:

        def show(at: Progress) -> None:
            if at.stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[at.stage] = bars.add_task(_DOING[at.stage], total=at.total, amount="")
            bars.update(tasks[at.stage], completed=at.done, total=at.total, amount=_amount(at))

        yield show


def _lines(stream: TextIO) -> Show:
    stage, at_latest = "", 0.0

    def show(at: Progress) -> None:
        nonlocal stage, at_latest
        now = time.monotonic()
        if at.stage == stage and now < at_latest:
            return
        stage, at_latest = at.stage, now + _SECONDS_BETWEEN_LINES
        percent = f" {100 * at.done / at.total:.0f} %" if at.total else ""
        stream.write(f"{_DOING[at.stage]}{percent} {_amount(at)}".rstrip() + "\n")
        stream.flush()

    return show


def _amount(at: Progress) -> str:
    if at.stage == "encode":
        return ""
    return size_text(at.done) if at.total is None else f"{size_text(at.done)} of {size_text(at.total)}"


def size_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def result(facts: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print what came out: `output`, `size`, `tookSec`; `codec`, `width`, `height` and `durationSec` if known."""
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    elif not quiet:
        parts = [size_text(facts["size"])]
        if facts.get("codec"):
            parts.append(f"{facts['codec']} {facts['width']}x{facts['height']}, {facts['durationSec']:.1f} s long")
        parts.append(f"took {facts['tookSec']:.1f} s")
        sys.stdout.write(f"{facts['output']}: {', '.join(parts)}\n")
