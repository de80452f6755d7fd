"""The fake clock of the tests and the benchmarks."""

import asyncio
import math
import time
from typing import Any, Literal

import anyio
import anyio.lowlevel

START = 1_900_000_000.0
"""Seconds since the epoch at which a fake clock starts by default."""

_REAL_SHARE = 1 / 200  # of a sleep, where sleepers hurry


class FakeClock:
    """A `convertrilo.Clock` that stands still until somebody sleeps or a test moves it.

    Args:
        now: Seconds since the epoch at the start.
        sleepers: What a sleeper does:

            - `"advance"`: It moves the clock by the length of its sleep and goes on.
            - `"wait"`: It waits until `advance` or `run` has moved the clock far enough.
            - `"hurry"`: It sleeps for a 200th of the time, and the clock skips the rest. Between sleeps the clock runs
              in real time, for tests whose work is done in threads, which no fake clock can wait for. A busy machine
              still comes no nearer to a deadline.
    """

    def __init__(self, now: float = START, *, sleepers: Literal["advance", "wait", "hurry"] = "advance") -> None:
        self.now = now
        self.sleeps: list[float] = []
        """The seconds of every sleep so far."""
        self.suspended = 0.0
        """Seconds for which the machine is suspended in each sleep. Only the wall clock counts them."""
        self._sleepers = sleepers
        self._due: dict[anyio.Event, float] = {}
        """Who waits, and until when."""
        self._asleep = anyio.Event()
        """Set by the next sleeper that waits."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self.now + time.monotonic() if self._sleepers == "hurry" else self.now

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return time.time() if self._sleepers == "hurry" else self.now + self.suspended * len(self.sleeps)

    async def sleep(self, seconds: float) -> None:
        """Sleep in the way that was chosen for all sleepers."""
        self.sleeps.append(seconds)
        if self._sleepers == "wait" and seconds > 0:
            await self._wait_until(self.now + seconds)
        elif self._sleepers == "hurry":
            await anyio.sleep(seconds * _REAL_SHARE)
            self.now += seconds * (1 - _REAL_SHARE)
        else:
            await anyio.lowlevel.checkpoint()
            self.now += max(0.0, seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake the sleepers whose time has come."""
        self._move_to(self.now + seconds)

    async def run(self) -> None:
        """Move the clock to the next end of a sleep whenever all tasks wait; never return."""
        while True:
            await _all_tasks_wait()
            nearest = min(self._due.values(), default=math.inf)
            if nearest == math.inf:
                await self._next_sleeper()
            else:
                self._move_to(max(self.now, nearest))

    async def settle(self) -> None:
        """Wait until all other tasks wait, without moving the clock. `run` must be running."""
        await self._wait_until(self.now)

    async def until_asleep(self, seconds: float | None = None) -> None:
        """Wait until somebody sleeps: for so many seconds from now, or for any time."""
        with anyio.fail_after(60):
            while not any(seconds is None or abs(due - self.now - seconds) < 1e-6 for due in self._due.values()):
                await self._next_sleeper()

    async def _next_sleeper(self) -> None:
        if self._asleep.is_set():
            self._asleep = anyio.Event()
        await self._asleep.wait()

    async def _wait_until(self, due: float) -> None:
        woken = anyio.Event()
        self._due[woken] = due
        self._asleep.set()
        try:
            await woken.wait()
        finally:
            del self._due[woken]

    def _move_to(self, moment: float) -> None:
        self.now = moment
        for woken, due in self._due.items():
            if due <= moment:
                woken.set()


async def _all_tasks_wait() -> None:
    # On asyncio, anyio.wait_all_tasks_blocked takes a tenth of a second each time.
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:  # the backend is trio
        await anyio.wait_all_tasks_blocked()
        return
    can_run = loop._ready
    await anyio.lowlevel.checkpoint()
    while can_run:
        await anyio.lowlevel.checkpoint()
