"""Time in the sandbox: a clock that tests advance, and times as the API writes them."""

from collections.abc import Sized
from datetime import UTC, datetime

import anyio
import anyio.lowlevel

_START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class VirtualClock:
    """A `convertrilo.Clock` that stands still until `advance` moves it.

    Args:
        start: the initial time, in seconds since 1970.
    """

    def __init__(self, start: float = _START) -> None:
        self._now = start
        self._sleepers: list[tuple[float, anyio.Event]] = []

    def time(self) -> float:
        """Return the seconds since 1970 (UTC)."""
        return self._now

    def monotonic(self) -> float:
        """Return the same as `time`: this clock never goes back."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been advanced by at least `seconds`."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = (self._now + seconds, anyio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds` and wake every sleep that has ended.

        Call this from the sandbox's event loop.
        """
        if seconds < 0:
            raise ValueError(f"the clock cannot go back: {seconds} s")
        self._now += seconds
        for due, event in self._sleepers:
            if due <= self._now:
                event.set()


def sleeps_of(clock: VirtualClock) -> Sized:
    """Return the sleeps that have not ended yet, as they come and go; for modules of this package only."""
    return clock._sleepers  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def to_datetime(seconds: float | None) -> datetime | None:
    """Return seconds since 1970 as an aware datetime; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 in the format of events, such as `2026-01-01T00:00:00.000Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
