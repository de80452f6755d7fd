"""Time as a parameter: what the client, the journal and the sandbox ask instead of the system."""

import math
import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Tells the time and sleeps. A test passes one that it moves itself, such as `convertrilo.sandbox.VirtualClock`."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for durations."""
        ...

    def time(self) -> float:
        """Return seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, which may be none or `math.inf`; a cancellation point."""
        ...


class SystemClock:
    """The real time, on asyncio and trio."""

    def monotonic(self) -> float:
        """Return the system's monotonic time."""
        return time.monotonic()

    def time(self) -> float:
        """Return the system's time."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running event loop."""
        if math.isinf(seconds):  # not every event loop can count so far
            await anyio.sleep_forever()
        await anyio.sleep(max(seconds, 0.0))  # trio takes nothing that is past for an error


SYSTEM_CLOCK: Clock = SystemClock()
