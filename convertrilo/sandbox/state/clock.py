"""A clock that a test moves."""

import anyio
import anyio.lowlevel

_START = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class VirtualClock:
    """A `convertrilo.Clock` that stands still until `advance` moves it, for the sandbox and all that use its time.

    Args:
        start: seconds since 1970 at which it stands first.
    """

    def __init__(self, start: float = _START) -> None:
        self._now = start
        self._sleepers: list[tuple[float, anyio.Event]] = []

    def time(self) -> float:
        """Return the seconds since 1970 (UTC)."""
        return self._now

    def monotonic(self) -> float:
        """Return the same: this clock does not go back."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by that many seconds in all."""
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
        """Move the clock on by that many seconds and wake who waited for it; called in the sandbox's event loop."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now += seconds
        for due, event in self._sleepers:
            if due <= self._now:
                event.set()
