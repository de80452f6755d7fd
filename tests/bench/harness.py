"""Measuring and printing: contestants take turns, ratios are medians, and each section has one table."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from statistics import median
from typing import Any, Literal, TextIO

import anyio
import attrs


@attrs.frozen
class Sample:
    """Seconds of one operation in one measurement: wall time, and the CPU time of this process (all threads)."""

    wall: float
    cpu: float


Call = Callable[[], Awaitable[object]]
Measure = Callable[[], Awaitable[Sample]]
Rounds = Mapping[str, Sequence[Sample]]
"""The samples of each contestant, round by round."""

Quantity = Literal["wall", "cpu"]


@attrs.frozen
class Scale:
    """The size of the measurements: full, or just large enough to run everything once."""

    quick: bool

    def rounds(self, full: int) -> int:
        return 1 if self.quick else full

    def seconds(self, full: float) -> float:
        return min(full, 0.02) if self.quick else full

    def count(self, full: int) -> int:
        return min(full, 10) if self.quick else full


# ---- measuring


async def in_turns(contestants: Mapping[str, Measure], rounds: int) -> Rounds:
    """Measure A B C, A B C, …, so that a disturbance longer than a round affects all contestants."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            samples[name].append(await measure())
    return samples


def typical(rounds: Rounds, name: str, quantity: Quantity = "wall") -> float:
    """Return the median of a contestant's samples."""
    return median(_values(rounds[name], quantity))


def ratios(rounds: Rounds, numerator: str, denominator: str, quantity: Quantity = "wall") -> list[float]:
    """Return the numerator's time divided by the denominator's, for each round."""
    pairs = zip(_values(rounds[numerator], quantity), _values(rounds[denominator], quantity), strict=True)
    return [one / other for one, other in pairs]


def _values(samples: Sequence[Sample], quantity: Quantity) -> list[float]:
    return [sample.cpu if quantity == "cpu" else sample.wall for sample in samples]


def repeated(call: Callable[[], object], seconds: float) -> Measure:
    """Measure a plain function, which is called for about this number of seconds."""
    count = 0

    async def measure() -> Sample:
        nonlocal count
        if not count:
            call()  # fills caches
            started = time.perf_counter()
            call()
            count = max(1, math.ceil(seconds / (time.perf_counter() - started)))
        started, started_cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        return Sample((time.perf_counter() - started) / count, (time.process_time() - started_cpu) / count)

    return measure


def awaited(call: Callable[[], Awaitable[object]], count: int, in_flight: int = 1) -> Measure:
    """Measure `count` calls of a coroutine function, `in_flight` of them at a time."""

    async def measure() -> Sample:
        left = count

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await call()

        started, started_cpu = time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(in_flight):
                tasks.start_soon(work)
        return Sample((time.perf_counter() - started) / count, (time.process_time() - started_cpu) / count)

    return measure


def flooded(client: Callable[[], AbstractAsyncContextManager[Call]], in_flight: int, seconds: float) -> Measure:
    """Measure some seconds in the middle of a steady flood of calls of a new client.

    The flood ends by cancellation, because a client that slows down under load might not finish its calls. The client
    is new each time, because cancellation may damage its pool.
    """

    async def measure() -> Sample:
        done = 0

        async def work(call: Call) -> None:
            nonlocal done
            while True:
                await call()
                done += 1

        async with client() as call, anyio.create_task_group() as tasks:
            for _ in range(in_flight):
                tasks.start_soon(work, call)
            await anyio.sleep(seconds / 2)
            first, started, started_cpu = done, time.perf_counter(), time.process_time()
            with anyio.move_on_after(60):
                await anyio.sleep(seconds)
                while done == first:  # noqa: ASYNC110  # a busy machine may need longer for a single call
                    await anyio.sleep(seconds)
            elapsed, elapsed_cpu = time.perf_counter() - started, time.process_time() - started_cpu
            count = done - first
            tasks.cancel_scope.cancel()
        return Sample(elapsed / count, elapsed_cpu / count) if count else Sample(math.inf, math.inf)

    return measure


# ---- printing


class Page:
    """Prints tables row by row, and collects the missed targets.

    Args:
        out: Where to print.
        judging: Whether the numbers are meaningful enough to compare with targets.
    """

    def __init__(self, out: TextIO, *, judging: bool) -> None:
        self._out = out
        self._judging = judging
        self._started = time.monotonic()
        self._widths: list[int] = []
        self._title = ""
        self._targets = 0
        self._missed: list[str] = []
        self._lines: list[str] = []

    def line(self, text: str = "") -> None:
        self._lines += text.split("\n")
        self._out.write(f"{text}\n")
        self._out.flush()

    def table(self, title: str, columns: Sequence[str], *notes: str) -> None:
        """Begin a section. The first column holds the names of the rows."""
        self._title = title
        self._widths = [max(len(columns[0]), 35), *(max(len(column), 11) for column in columns[1:])]
        self.line(f"\n## {title}")
        for note in notes:
            self.line(note)
        self.row(*columns)

    def row(self, name: str, *cells: Any) -> None:
        texts = (f"{cell:>{width}}" for cell, width in zip(cells, self._widths[1:], strict=True))
        self.line("  ".join([f"{name:<{self._widths[0]}}", *texts]).rstrip())

    def against(
        self, row: str, values: Sequence[float], *, at_least: float = -math.inf, at_most: float = math.inf
    ) -> str:
        """Return a cell with the median over the rounds, the range, the target, and whether it was reached."""
        value = median(values)
        if not self._judging:
            return f"{value:.2f}"
        reached = at_least <= value <= at_most
        self._targets += 1
        if not reached:
            self._missed.append(f"{self._title}: {row}")
        bound = f">= {at_least:g}" if at_least > -math.inf else f"<= {at_most:g}"
        return f"{value:.2f} ({min(values):.2f}-{max(values):.2f}), {bound}: {'reached' if reached else 'MISSED'}"

    def end(self) -> None:
        """Print the summary."""
        reached = f"{self._targets - len(self._missed)} of {self._targets} targets reached" if self._judging else "Done"
        self.line(f"\n{reached}, in {time.monotonic() - self._started:.0f} s")
        for each in self._missed:
            self.line(f"missed: {each}")

    def markdown(self) -> str:
        """Return the printed lines as a Markdown page, with its tables as text blocks."""
        head, *sections = "\n".join(self._lines).split("\n## ")
        title, *told = head.strip().splitlines()
        texts = [title, "\n".join(told)]
        for section in sections:
            name, _, table = section.partition("\n")
            texts += [f"## {name}", f"```text\n{table.rstrip()}\n```"]
        return "\n\n".join(texts) + "\n"


def micro(seconds: float) -> str:
    """Format a duration in microseconds."""
    return "-" if math.isinf(seconds) else f"{seconds * 1e6:,.{1 if seconds < 1e-4 else 0}f}"


def rate(seconds: float) -> str:
    """Format a duration as operations per second."""
    return f"{1 / seconds:,.0f}"


@attrs.frozen(kw_only=True)
class Bench:
    """The arguments of every section."""

    page: Page
    scale: Scale
    url: str
    """The URL of the loopback server."""
    directory: Path
    """A folder for files, which is removed at the end."""
    generated: bool
    """Whether the generated client exists. It is below `directory`."""
