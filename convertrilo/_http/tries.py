"""Tries: how often a flow repeats one of its steps, and the waits in between. A step may consist of several calls."""

from convertrilo._http.context import Context
from convertrilo.retry import RetryPolicy


class Tries:
    """Counts the tries of one step, and sleeps between them as the retry policy says.

    Args:
        context: Provides the clock and the random numbers.
        policy: Limits the number of tries and sets the backoff.
        most: The maximum number of tries; by default the policy's `max_attempts`.
        made: The number of tries that were made before.
    """

    def __init__(self, context: Context, policy: RetryPolicy, *, most: int | None = None, made: int = 0) -> None:
        self.made = made
        """The tries so far, the current one included."""
        self._context = context
        self._policy = policy
        self._most = policy.max_attempts if most is None else most

    def begin(self) -> int:
        """Count one more try, and return its number, from 1."""
        self.made += 1
        return self.made

    def restart(self) -> None:
        """Count the current try as the first one, because it made progress."""
        self.made = 1

    @property
    def are_left(self) -> bool:
        """Whether there may be another try."""
        return self.made < self._most

    def backoff(self) -> float:
        """Return the seconds to wait before the next try, with jitter."""
        return self._policy.backoff(self.made, self._context.random)

    async def wait(self) -> None:
        """Sleep until the next try."""
        await self._context.clock.sleep(self.backoff())
