"""Time as a parameter: the clock that the client, the journal and the sandbox use instead of the system's."""

import math
import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Tells the time and sleeps. Tests pass a clock that they move, such as `convertrilo.sandbox.VirtualClock`."""

    def monotonic(self) -> float:
        """Return a time in seconds that never goes back, for measuring durations."""
        ...

    def time(self) -> float:
        """Return the seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds, which may be 0 or `math.inf`. A cancellation point."""
        ...


class SystemClock:
    """The system's clock, on asyncio and trio."""

    def monotonic(self) -> float:
        """Return the system's monotonic time."""
        return time.monotonic()

    def time(self) -> float:
        """Return the system's time."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running event loop."""
        if math.isinf(seconds):  # not every event loop accepts infinity
            await anyio.sleep_forever()
        await anyio.sleep(max(seconds, 0.0))  # trio rejects negative times


SYSTEM_CLOCK: Clock = SystemClock()
