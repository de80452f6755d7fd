"""`Sandbox`: assembles the state, the encoder, the outside connections, the API and the web pages, and runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import attrs
import httpx

from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo.sandbox.api import accounts, replay
from convertrilo.sandbox.api.app import make_app
from convertrilo.sandbox.api.authentication import secret_hash
from convertrilo.sandbox.api.backend import Backend
from convertrilo.sandbox.encoding.job_encoder import Encoder, JobEncoder
from convertrilo.sandbox.encoding.process import end_orphans
from convertrilo.sandbox.encoding.worker import Worker
from convertrilo.sandbox.outside.deliveries import Deliverer
from convertrilo.sandbox.outside.drive import Drive
from convertrilo.sandbox.outside.drive_standin import DriveStandIn
from convertrilo.sandbox.outside.network import Network
from convertrilo.sandbox.outside.places import Places
from convertrilo.sandbox.outside.s3 import S3
from convertrilo.sandbox.outside.sources import Sources
from convertrilo.sandbox.state import books, inspect, outbox, recovery
from convertrilo.sandbox.state.clock import VirtualClock, sleeps_of
from convertrilo.sandbox.state.faults import Faults
from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.inspect import Delivery
from convertrilo.sandbox.state.records import Account, Job, RequestRecord, Tokens
from convertrilo.sandbox.state.rules import Rules
from convertrilo.sandbox.state.store import Store, Tx
from convertrilo.sandbox.transport import InProcessTransport
from convertrilo.sandbox.web import routes as web

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from convertrilo.client import AsyncClient

T = TypeVar("T")

_REQUESTS_KEPT = 100_000
_MAX_ENCODES = {"ffmpeg": 2, "instant": 1_000}


@attrs.frozen(kw_only=True)
class _Settings:
    """The arguments of `Sandbox` that are used when the sandbox is entered."""

    encoder: Encoder
    state: Path | None
    seed: int | None
    tokens: int
    rules: Rules
    allow_private_sources: bool
    source_transport: httpx.AsyncBaseTransport | None
    webhook_transport: httpx.AsyncBaseTransport | None
    max_encodes: int
    encode_seconds: float


class Sandbox:
    """A local Convertrilo, entered with `async with` on asyncio or trio.

    Args:
        encoder: `instant` produces a tiny mp4 for every job, and fetches no source unless `source_transport` is given;
            `ffmpeg` fetches and encodes for real, with the ffmpeg of the extra `sandbox`.
        state: a folder for the data that must survive a restart, used by one sandbox at a time; None keeps the data in
            memory and in a temporary folder.
        clock: the source of time; a `VirtualClock` stands still until it is advanced.
        seed: makes ids, keys and the faults' random numbers the same in every run.
        tokens: the account's initial tokens (neu).
        rules: the behaviour that the API's documents leave open.
        allow_private_sources: whether sources and S3 endpoints may be on this machine and in private networks.
        source_transport: replaces the network connections to sources and S3.
        webhook_transport: replaces the network connections to webhook receivers.
        max_encodes: how many jobs run at once; by default 2 with `ffmpeg`, 1,000 with `instant`.
        encode_seconds: how long an instant encode takes by the clock.
        base_url: the URL whose host `transport()` serves.
        email: the account's e-mail address, for `login`.
        password: the account's password, at least 8 characters.
    """

    def __init__(
        self,
        *,
        encoder: Encoder = "instant",
        state: str | Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
        seed: int | None = None,
        tokens: int = 1_000_000,
        rules: Rules | None = None,
        allow_private_sources: bool = False,
        source_transport: httpx.AsyncBaseTransport | None = None,
        webhook_transport: httpx.AsyncBaseTransport | None = None,
        max_encodes: int | None = None,
        encode_seconds: float = 0.0,
        base_url: str = "http://convertrilo.localhost",
        email: str = "someone@example.com",
        password: str = "sandbox-password",  # noqa: S107 - it opens nothing but a sandbox
    ) -> None:
        if encoder not in _MAX_ENCODES:
            raise ValueError(f"there is no encoder {encoder!r}; the encoders are {', '.join(_MAX_ENCODES)}")
        if tokens < 0 or (max_encodes is not None and max_encodes < 1):
            raise ValueError(f"tokens must be at least 0 and max_encodes at least 1, not {tokens} and {max_encodes}")
        self.clock: Clock = clock
        self.faults: Faults = Faults(seed)
        self.base_url = base_url
        self.email = email
        self.password = password
        self.api_key: str = ""
        """An API key with all scopes; set when the sandbox is entered."""
        self._settings = _Settings(
            encoder=encoder,
            state=None if state is None else Path(state),
            seed=seed,
            tokens=tokens,
            rules=rules or Rules(),
            allow_private_sources=allow_private_sources,
            source_transport=source_transport,
            webhook_transport=webhook_transport,
            max_encodes=max_encodes or _MAX_ENCODES[encoder],
            encode_seconds=encode_seconds,
        )
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS_KEPT)
        self._exit: AsyncExitStack | None = None

    # ---- entering and leaving

    async def __aenter__(self) -> Self:
        if self._exit is not None:
            raise RuntimeError("the sandbox was entered already: create another one")
        async with AsyncExitStack() as stack:
            files = self._open_state(stack)
            account: tuple[str, str, str] = await self._store.transaction(self._prepare)
            self.account_id: str = account[0]
            self.api_key = account[1]
            await self._store.transaction(lambda tx: recovery.remove_leftovers(tx, files))
            self._assemble(files, secret=account[2].encode())
            self.task_group: anyio.abc.TaskGroup = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(self.task_group.cancel_scope.cancel)
            self.task_group.start_soon(self._worker.run)
            self.task_group.start_soon(self._deliverer.run)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._exit is not None
        # Do not pass the block's exception on: the task group would wrap it in an ExceptionGroup.
        try:
            await self._exit.aclose()
        finally:
            self._exit = None

    def _open_state(self, stack: AsyncExitStack) -> Files:
        state = self._settings.state
        if state is not None:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = Store(None if state is None else state / "sandbox.db", self.clock, self._settings.seed)
        stack.callback(self._store.close)
        if state is not None:
            end_orphans(state / "files")
        files = Files(None if state is None else state / "files")
        stack.callback(files.close)
        self.folder: Path = files.folder
        return files

    def _prepare(self, tx: Tx) -> tuple[str, str, str]:
        """Return the account's id, its API key and the signing secret; create them if the state is new.

        After a crash, also forget the unfinished idempotency keys, and queue the interrupted jobs again.
        """
        replay.forget_unfinished(tx)
        recovery.requeue_interrupted(tx)
        known = dict(tx.rows("SELECT name, value FROM meta"))
        if "account" in known:
            return known["account"], known["api_key"], known["secret"]
        account, key = self._open_account(tx, self.email, self.password, self._settings.tokens)
        created = {"account": account.id, "api_key": key, "secret": tx.ids.secret()}
        tx.db.executemany("INSERT INTO meta VALUES (?, ?)", created.items())
        return created["account"], created["api_key"], created["secret"]

    @staticmethod
    def _open_account(tx: Tx, email: str, password: str, tokens: int) -> tuple[Account, str]:
        account = books.open_account(tx, email, secret_hash(password), tokens)
        key = accounts.make_api_key(tx, account.id, "sandbox").key
        assert key is not None
        return account, key

    def _assemble(self, files: Files, *, secret: bytes) -> None:
        settings = self._settings
        rules = settings.rules
        self.drive: DriveStandIn = DriveStandIn(self._store, files, limit=rules.max_source_bytes, secret=secret)
        fetches = settings.encoder == "ffmpeg" or settings.source_transport is not None
        network = Network(settings.source_transport, allow_private=settings.allow_private_sources)
        places = Places(
            rules,
            web=Sources(rules, network, fetches=fetches),
            s3=S3(network),
            drive=Drive(self.base_url, self.transport),
        )
        self._encoder = JobEncoder(
            self._store, self.clock, files, places, encoder=settings.encoder, seconds=settings.encode_seconds
        )
        self._worker = Worker(self._store, self._encoder, limit=settings.max_encodes)
        self._deliverer = Deliverer(self._store, self.clock, settings.webhook_transport)
        backend = Backend(
            store=self._store,
            clock=self.clock,
            rules=rules,
            files=files,
            places=places,
            encoder=self._encoder,
            worker=self._worker,
            faults=self.faults,
            secret=secret,
        )
        self.app: ASGIApp = make_app(backend, self._requests.append, [*self.drive.routes(), *web.routes(backend)])
        self._store.before_commit = outbox.emit
        self._store.on_commit = self._committed

    def _committed(self, tx: Tx) -> None:
        self._worker.jobs_changed(tx.changed_jobs)
        if tx.new_deliveries:
            self._deliverer.wake()

    # ---- clients

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport that reaches this sandbox without a socket, on the host of `base_url`."""
        self._check_entered()
        return InProcessTransport(self.app, self.task_group, self.base_url)

    def client(self, **options: Any) -> AsyncClient:
        """Return an `AsyncClient` of this sandbox, in process; `options` are those of `AsyncClient`."""
        from convertrilo.client import AsyncClient

        given: dict[str, Any] = {"api_key": self.api_key, "base_url": self.base_url, "transport": self.transport()}
        return AsyncClient(**{**given, **options})

    # ---- inspection, from any thread

    @property
    def jobs(self) -> Sequence[Job]:
        """All jobs, in order of creation."""
        return self._read(lambda tx: tx.jobs())

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """The last 100,000 requests, in the order of their responses."""
        return list(self._requests)

    @property
    def tokens(self) -> Tokens:
        """The account's books."""
        return self._read(lambda tx: books.balance_of(tx, self.account_id))

    @property
    def webhooks(self) -> Sequence[Delivery]:
        """The finished attempts to deliver webhook events, in order."""
        return self._read(inspect.deliveries)

    def assert_created_once(self, *, external_id: str) -> Job:
        """Return the only job with this external id.

        Raises:
            AssertionError: there is no such job, or more than one; the message lists the requests behind the failure.
        """
        __tracebackhide__ = True
        return inspect.assert_created_once(self.jobs, self.requests, external_id)

    def assert_no_duplicates(self) -> None:
        """Check that no external id and no idempotency key created jobs twice.

        Raises:
            AssertionError: there are duplicates; the message lists the requests behind the failure.
        """
        __tracebackhide__ = True
        inspect.assert_no_duplicates(self.jobs, self.requests)

    def _read(self, work: Callable[[Tx], T]) -> T:
        self._check_entered()
        return self._store.read(work)

    def _check_entered(self) -> None:
        if self._exit is None:
            raise RuntimeError(
                "the sandbox is not entered: use it inside its `async with` block, or inside its server's"
            )

    # ---- control

    async def add_account(self, email: str, password: str, *, tokens: int = 0) -> tuple[Account, str]:
        """Open another account, and return it with an API key that has all scopes."""
        return await self._store.transaction(lambda tx: self._open_account(tx, email, password, tokens))

    async def ban(self, account_id: str | None = None, *, banned: bool = True) -> None:
        """Ban an account, so that its requests fail with `account_banned`, or lift the ban.

        Args:
            account_id: the account; by default the sandbox's own.
            banned: True bans the account; False lifts the ban.
        """
        account = account_id or self.account_id
        await self._store.transaction(lambda tx: tx.run("UPDATE accounts SET banned = ? WHERE id = ?", banned, account))

    def fail_jobs(self, message: str, *, times: int = 1) -> None:
        """Make the next `times` encodes fail with this message."""
        self._encoder.fail_next(message, times)

    async def wait_until_idle(self) -> None:
        """Wait until no job is queued or running and every due webhook delivery has been attempted."""
        await self._worker.wait_until_idle()
        await self._deliverer.wait_until_quiet()


def busy_check_of(sandbox: Sandbox, clock: VirtualClock) -> Callable[[], bool]:
    """Return a function that says whether an entered sandbox is doing work that does not wait for its clock.

    For modules of this package only.

    Args:
        sandbox: the sandbox.
        clock: the sandbox's clock.
    """
    worker = sandbox._worker  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    deliverer = sandbox._deliverer  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    sleeps = sleeps_of(clock)
    # The deliverer sleeps on the same clock, but is not one of the worker's tasks.
    return lambda: worker.busy > len(sleeps) - deliverer.is_asleep
