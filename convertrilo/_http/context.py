"""What the calls of one client share: address, credentials, transport, retry budget, rate limiter and clock."""

import random
from collections.abc import Awaitable, Callable

import anyio
import attrs
import httpx

from convertrilo._clock import Clock
from convertrilo._http.credentials import Credentials
from convertrilo._http.limiter import RateLimiter
from convertrilo.events import Listener, Observer
from convertrilo.retry import RetryBudget, RetryPolicy


@attrs.frozen(kw_only=True)
class Options:
    """The settings of one view of a client, which `with_options` can change."""

    retry: RetryPolicy
    timeout: httpx.Timeout
    operation: str | None = None
    """The name of the logical operation that keyed calls carry out, unless a call names its own."""


Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Context:
    """The settings and the state that the calls of one client share."""

    def __init__(
        self,
        *,
        base_url: httpx.URL,
        credentials: Credentials,
        send: Send,
        budget: RetryBudget,
        clock: Clock,
        on_event: Listener | None,
    ) -> None:
        self.base_url = base_url
        self.credentials = credentials
        self.send = send
        self.budget = budget
        self.clock = clock
        self.on_event = on_event
        self.observer: Observer | None = None
        self.limiter: RateLimiter = RateLimiter()
        self.limiter_lock: anyio.Lock = anyio.Lock()
        """Held by the one task that asks the limiter again; other tasks that must wait queue for this lock."""
        self.random: Callable[[], float] = random.random
        """Draws the jitter of every backoff; tests replace it."""
        self.closed = False
