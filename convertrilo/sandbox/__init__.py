"""A local Convertrilo: an ASGI app with state that keeps the contract and really encodes.

async with Sandbox() as sandbox, sandbox.client() as client:    # in process: no socket, no network
    job = await client.on_demand_encode({"sourceUrl": "https://example.com/in.mp4"})

async with Sandbox(encoder="ffmpeg") as sandbox, serve(sandbox, port=8080) as base_url:    # over a port
    ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import httpx

# Before anything else, so that its message is the one that is seen.
import convertrilo.sandbox.extra  # noqa: F401  # pyright: ignore[reportUnusedImport]
from convertrilo._clock import SYSTEM_CLOCK, Clock
from convertrilo.sandbox.api import accounts, replay
from convertrilo.sandbox.api import tokens as books
from convertrilo.sandbox.api.app import make_app
from convertrilo.sandbox.api.service import Service
from convertrilo.sandbox.encoding.probe import end_orphans
from convertrilo.sandbox.encoding.worker import Encoder, Worker, requeue, sweep
from convertrilo.sandbox.outside import deliveries
from convertrilo.sandbox.outside.drive import Drive
from convertrilo.sandbox.outside.drive_standin import DriveStandIn, StoredFile
from convertrilo.sandbox.outside.network import Network
from convertrilo.sandbox.outside.places import Places
from convertrilo.sandbox.outside.s3 import S3
from convertrilo.sandbox.outside.sources import Sources
from convertrilo.sandbox.server import SandboxServer, serve, serve_in_thread, serve_until_stopped
from convertrilo.sandbox.state import inspect
from convertrilo.sandbox.state.clock import VirtualClock
from convertrilo.sandbox.state.faults import Faults
from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.inspect import Delivery
from convertrilo.sandbox.state.records import Account, Job, RequestRecord, Tokens
from convertrilo.sandbox.state.rules import Rules
from convertrilo.sandbox.state.store import Store, Tx
from convertrilo.sandbox.transport import InProcessTransport

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from convertrilo.client import AsyncClient

__all__ = [
    "Account",
    "Delivery",
    "DriveStandIn",
    "Faults",
    "Job",
    "RequestRecord",
    "Rules",
    "Sandbox",
    "SandboxServer",
    "StoredFile",
    "Tokens",
    "VirtualClock",
    "serve",
    "serve_in_thread",
    "serve_until_stopped",
]

T = TypeVar("T")

_REQUESTS_KEPT = 100_000
_ENCODES = {"ffmpeg": 2, "instant": 1_000}


class Sandbox:
    """A Convertrilo of one's own, entered with `async with` on asyncio or trio.

    Args:
        encoder: `instant` answers every job with a tiny mp4 and fetches no source unless `source_transport` is given;
            `ffmpeg` fetches and encodes for real, with the ffmpeg of the extra `sandbox`.
        state: a folder for what shall survive a restart, used by one sandbox at a time; None keeps it in memory and
            in a temporary folder.
        clock: the time; a `VirtualClock` stands still until it is advanced.
        seed: makes ids, keys and the faults' chances the same in every run.
        tokens: what the account has to spend (neu).
        rules: what the API's documents leave open.
        allow_private_sources: whether sources and S3 endpoints may be on this machine and in private networks.
        source_transport: what sources are fetched and S3 is reached through, instead of connections.
        webhook_transport: what webhooks are delivered through, instead of connections.
        max_encodes: how many jobs run at once; two with `ffmpeg`.
        encode_seconds: how long an instant encode takes by the clock.
        base_url: whose host `transport()` serves.
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
        if encoder not in _ENCODES:
            raise ValueError(f"there is no encoder {encoder!r}; there are {', '.join(_ENCODES)}")
        if tokens < 0 or (max_encodes is not None and max_encodes < 1):
            raise ValueError(f"tokens must be at least 0 and max_encodes at least 1, not {tokens} and {max_encodes}")
        self.clock: Clock = clock
        self.faults: Faults = Faults(seed)
        self.base_url = base_url
        self.email = email
        self.password = password
        self.api_key: str = ""
        """A key with all scopes; set once the sandbox is entered."""
        self._encoder: Encoder = encoder
        self._state = None if state is None else Path(state)
        self._seed = seed
        self._granted = tokens
        self._rules = rules or Rules()
        self._allow_private_sources = allow_private_sources
        self._source_transport = source_transport
        self._webhook_transport = webhook_transport
        self._max_encodes = max_encodes or _ENCODES[encoder]
        self._encode_seconds = encode_seconds
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS_KEPT)
        self._exit: AsyncExitStack | None = None

    # ---- life

    async def __aenter__(self) -> Self:
        if self._exit is not None:
            raise RuntimeError("the sandbox is entered already: make another one")
        async with AsyncExitStack() as stack:
            if self._state is not None:
                self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = Store(None if self._state is None else self._state / "sandbox.db", self.clock, self._seed)
            stack.callback(self._store.close)
            if self._state is not None:
                end_orphans(self._state / "files")
            files = Files(None if self._state is None else self._state / "files")
            stack.callback(files.close)
            self.folder: Path = files.folder
            prepared: tuple[str, str, str] = await self._store.transaction(self._prepare)
            self.account_id: str = prepared[0]
            self.api_key = prepared[1]
            secret = prepared[2]
            await self._store.transaction(lambda tx: sweep(tx, files))
            limit = self._rules.max_source_bytes
            self.drive: DriveStandIn = DriveStandIn(self._store, files, limit=limit, secret=secret.encode())
            fetches = self._encoder == "ffmpeg" or self._source_transport is not None
            network = Network(self._source_transport, allow_private=self._allow_private_sources)
            places = Places(
                self._rules,
                web=Sources(self._rules, network, fetches=fetches),
                s3=S3(network),
                drive=Drive(self.base_url, self.transport),
            )
            self._worker = Worker(
                self._store,
                self.clock,
                files,
                places,
                encoder=self._encoder,
                limit=self._max_encodes,
                seconds=self._encode_seconds,
            )
            self._deliverer = deliveries.Deliverer(self._store, self.clock, self._webhook_transport)
            service = Service(
                store=self._store,
                clock=self.clock,
                rules=self._rules,
                files=files,
                places=places,
                worker=self._worker,
                faults=self.faults,
                secret=secret.encode(),
            )
            self.app: ASGIApp = make_app(service, self._requests.append, self.drive.routes())
            self._store.before_commit = deliveries.emit
            self._store.on_commit = self._committed
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
        # What the block raised stays what it is: a task group that heard of it would wrap it in an ExceptionGroup.
        try:
            await self._exit.aclose()
        finally:
            self._exit = None

    def _prepare(self, tx: Tx) -> tuple[str, str, str]:
        """Find, or make, the account, its API key and the signing secret; clear away what a crash left."""
        replay.forget_unfinished(tx)
        requeue(tx)
        known = dict(tx.rows("SELECT name, value FROM meta"))
        if "account" in known:
            return known["account"], known["api_key"], known["secret"]
        account = books.open_account(tx, self.email, accounts.secret_hash(self.password), self._granted)
        key = accounts.make_api_key(tx, account.id, "sandbox").key
        assert key is not None
        made = {"account": account.id, "api_key": key, "secret": tx.ids.secret()}
        tx.db.executemany("INSERT INTO meta VALUES (?, ?)", made.items())
        return made["account"], made["api_key"], made["secret"]

    def _committed(self, tx: Tx) -> None:
        self._worker.moved(tx.moved)
        if tx.sent:
            self._deliverer.wake()

    # ---- ways in

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport that reaches this sandbox without a socket, on the host of `base_url`."""
        self._check_entered()
        return InProcessTransport(self.app, self.task_group, self.base_url)

    def client(self, **options: Any) -> AsyncClient:
        """Return an `AsyncClient` of this sandbox, in process; options are `AsyncClient`'s own."""
        from convertrilo.client import AsyncClient

        given: dict[str, Any] = {"api_key": self.api_key, "base_url": self.base_url, "transport": self.transport()}
        return AsyncClient(**{**given, **options})

    # ---- what can be seen, from any thread

    @property
    def jobs(self) -> Sequence[Job]:
        """Every job there ever was, in order of creation."""
        return self._read(lambda tx: tx.jobs())

    @property
    def requests(self) -> Sequence[RequestRecord]:
        """The requests seen, in order of their end; the last 100,000."""
        return list(self._requests)

    @property
    def tokens(self) -> Tokens:
        """The account's books."""
        return self._read(lambda tx: books.balance_of(tx, self.account_id))

    @property
    def webhooks(self) -> Sequence[Delivery]:
        """The attempts to deliver webhook events, in order."""
        return self._read(inspect.deliveries)

    def assert_created_once(self, *, external_id: str) -> Job:
        """Return the one job with this external id; fail with the requests that led there if there is not one."""
        __tracebackhide__ = True
        return inspect.assert_created_once(self.jobs, self.requests, external_id)

    def assert_no_duplicates(self) -> None:
        """Fail with the requests that led there if an external id or an idempotency key made jobs twice."""
        __tracebackhide__ = True
        inspect.assert_no_duplicates(self.jobs, self.requests)

    def _read(self, work: Callable[[Tx], T]) -> T:
        self._check_entered()
        return self._store.read(work)

    def _check_entered(self) -> None:
        if self._exit is None:
            raise RuntimeError("the sandbox is not entered: use it within its `async with`, or that of its server")

    # ---- what can be done

    async def add_account(self, email: str, password: str, *, tokens: int = 0) -> tuple[Account, str]:
        """Open another account, and return it with an API key that has all scopes."""

        def open_account(tx: Tx) -> tuple[Account, str]:
            account = books.open_account(tx, email, accounts.secret_hash(password), tokens)
            key = accounts.make_api_key(tx, account.id, "sandbox").key
            assert key is not None
            return account, key

        return await self._store.transaction(open_account)

    async def ban(self, account_id: str | None = None, *, banned: bool = True) -> None:
        """Bar an account, the sandbox's own unless another is named: `account_banned`; or let it in again."""
        account = account_id or self.account_id
        await self._store.transaction(lambda tx: tx.run("UPDATE accounts SET banned = ? WHERE id = ?", banned, account))

    def fail_jobs(self, message: str, *, times: int = 1) -> None:
        """Let the next jobs that are taken on fail with this message."""
        self._worker.fail_next(message, times)

    async def wait_until_idle(self) -> None:
        """Wait until no job is queued or running, and every delivery that is due was tried."""
        await self._worker.wait_until_idle()
        await self._deliverer.wait_until_quiet()
