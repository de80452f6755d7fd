"""The attempts of one call: their number, the time that is left, and the charge to the retry budget."""

from convertrilo._clock import Clock
from convertrilo.retry import RetryBudget, RetryPolicy


class Attempts:
    """Counts the attempts of one call, within its deadline and the client's retry budget."""

    __slots__ = ("_budget", "_clock", "_deadline", "_is_charged", "_is_unused", "_policy", "_started", "made")

    def __init__(self, policy: RetryPolicy, budget: RetryBudget, clock: Clock) -> None:
        self.made = 0
        """The attempts so far, the current one included."""
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self._started = clock.monotonic()
        self._deadline = self._started + policy.deadline
        self._is_charged = False  # a retry of this call was charged to the budget
        self._is_unused = False  # ... and its attempt has not begun yet

    def begin(self) -> None:
        """Count one more attempt."""
        self.made += 1
        self._is_unused = False

    def left(self) -> float:
        """Return the seconds until the call's deadline."""
        return self._deadline - self._clock.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since the call began."""
        return self._clock.monotonic() - self._started

    @property
    def are_left(self) -> bool:
        """Whether the policy allows another attempt."""
        return self.made < self._policy.max_attempts

    def charge(self) -> bool:
        """Charge the next attempt to the retry budget; return False if the budget is too low."""
        if not self._budget.spend():
            return False
        self._is_charged = self._is_unused = True
        return True

    def succeeded(self) -> None:
        """Pay into the retry budget: the cost of one retry, or the reward for a success at the first attempt."""
        if self._is_charged:
            self._budget.give_back()
        elif self.made == 1:
            self._budget.reward()

    def end(self) -> None:
        """Return the cost of a retry whose attempt was never made."""
        if self._is_unused:
            self._budget.give_back()
