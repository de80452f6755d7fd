"""The implementation of `convertrilo_sandbox`, `convertrilo_client` and `convertrilo_server` under three async plugins.

A sandbox has tasks, so it lives in the event loop of the test, which belongs to anyio's plugin, pytest-trio or
pytest-asyncio. Each plugin runs only its own kind of async fixture. This module has a fixture of each kind, and
`open_sandbox` requests the fixture that fits the test.
"""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from convertrilo.client import AsyncClient

if TYPE_CHECKING:
    from convertrilo.sandbox import Sandbox, SandboxServer, VirtualClock

_NATIVE = "_convertrilo_sandbox_in_this_task"
_ASYNCIO = "_convertrilo_sandbox_in_the_loop_of_a_"
_QUIET_TURNS = 25  # turns of the event loop: more than any step of client or sandbox takes between two waits
_PAUSE = 0.001  # seconds of real time, while the sandbox is busy fetching a source or delivering an output
_PAUSES = 1_000  # the maximum, because a busy sandbox may be waiting for the client
_LOOP_SCOPES = ("function", "class", "module", "package", "session")


def open_sandbox(request: pytest.FixtureRequest) -> "Sandbox":
    """Return the sandbox of a test, entered in the test's event loop: the fixture `convertrilo_sandbox`."""
    plugins = request.config.pluginmanager
    if not plugins.has_plugin(_NATIVE):
        plugins.register(_fixtures(), _NATIVE)
    sandbox: Sandbox = request.getfixturevalue(_fixture_for(request))
    return sandbox


def client_of(sandbox: "Sandbox") -> AsyncClient:
    """Return a client that uses the sandbox's clock: the fixture `convertrilo_client`. It need not be closed."""
    from convertrilo.sandbox import VirtualClock
    from convertrilo.sandbox.sandbox import busy_check_of
    from convertrilo.sandbox.transport import InProcessTransport

    if not isinstance(sandbox.clock, VirtualClock):
        return sandbox.client()
    clock = AutojumpClock(sandbox.clock, busy_check_of(sandbox, sandbox.clock))

    async def counting_app(*arguments: Any) -> None:
        clock.requests += 1
        try:
            await sandbox.app(*arguments)
        finally:
            clock.requests -= 1

    transport = InProcessTransport(counting_app, sandbox.task_group, sandbox.base_url)
    return sandbox.client(clock=clock, transport=transport)


@contextmanager
def open_server(request: pytest.FixtureRequest) -> "Generator[SandboxServer]":
    """Serve a sandbox on a free port: the fixture `convertrilo_server`."""
    module = _sandbox_module()
    sandbox = module.Sandbox(**{"seed": 0, **_options(request)})
    with module.serve_in_thread(sandbox) as base_url:
        yield module.SandboxServer(base_url, sandbox.api_key, sandbox)


class AutojumpClock:
    """The client's view of a sandbox's clock: when every task waits, the clock jumps to the end of the next sleep.

    Args:
        clock: The sandbox's clock.
        is_busy: Returns whether the sandbox is doing work that does not wait for the clock; time stands still then.
    """

    def __init__(self, clock: "VirtualClock", is_busy: Callable[[], bool]) -> None:
        self.requests = 0
        """How many requests the sandbox is processing; time stands still until they are answered."""
        self._clock = clock
        self._is_busy = is_busy
        self._due: list[float] = []

    def monotonic(self) -> float:
        """Return the sandbox's time, which never goes back."""
        return self._clock.time()

    def time(self) -> float:
        """Return the sandbox's time."""
        return self._clock.time()

    async def sleep(self, seconds: float) -> None:
        """Let the other tasks run until all of them wait, then jump to the end of this sleep if it is the next."""
        due = self._clock.time() + seconds
        if math.isinf(due):
            await anyio.sleep_forever()
        self._due.append(due)
        try:
            await anyio.lowlevel.checkpoint()
            quiet = 0
            while (now := self._clock.time()) < due:
                busy = self._is_busy()
                await (anyio.sleep(_PAUSE) if busy else anyio.lowlevel.checkpoint())
                moved = self._clock.time() != now or self._is_busy() != busy
                quiet = 0 if self.requests or moved else quiet + 1
                if quiet >= (_PAUSES if busy else _QUIET_TURNS) and due == min(self._due):
                    self._clock.advance(due - now)
        finally:
            self._due.remove(due)


# ---- one fixture per kind of async plugin


def _fixture_for(request: pytest.FixtureRequest) -> str:
    """Return the name of the fixture that the test's async plugin runs in the test's event loop."""
    plugins, node = request.config.pluginmanager, request.node
    if "anyio_backend" in request.fixturenames:
        return _NATIVE
    if plugins.has_plugin("trio") and node.get_closest_marker("trio"):
        return _NATIVE
    marker = node.get_closest_marker("asyncio")
    if plugins.has_plugin("asyncio") and marker:
        found = version("pytest-asyncio")
        if tuple(map(int, found.split(".")[:2])) < (1, 1):  # older versions run only fixtures that they collected
            pytest.fail(f"{request.fixturename} needs pytest-asyncio 1.1 or later, not {found}", pytrace=False)
        default = request.config.getini("asyncio_default_test_loop_scope")
        return f"{_ASYNCIO}{marker.kwargs.get('loop_scope') or marker.kwargs.get('scope') or default}"
    pytest.fail(
        f"{request.fixturename} needs an async test that anyio's plugin, pytest-asyncio or pytest-trio runs; none of"
        f" them runs {node.name} (is its marker missing?). convertrilo_server works in every test.",
        pytrace=False,
    )


def _fixtures() -> ModuleType:
    """Return the fixtures as a pytest plugin; those for pytest-asyncio only if it is loaded."""
    plugin = ModuleType(_NATIVE)
    setattr(plugin, _NATIVE, pytest.fixture(_sandbox_in_this_task))
    pytest_asyncio = sys.modules.get("pytest_asyncio")
    if pytest_asyncio is not None:
        for scope in _LOOP_SCOPES:  # the scope of the loop; every test has its own sandbox
            setattr(plugin, _ASYNCIO + scope, pytest_asyncio.fixture(_held_sandbox(), loop_scope=scope))
    return plugin


async def _sandbox_in_this_task(request: pytest.FixtureRequest) -> AsyncIterator["Sandbox"]:
    async with _sandbox(request) as sandbox:
        yield sandbox


def _held_sandbox() -> Callable[[pytest.FixtureRequest], AsyncIterator["Sandbox"]]:
    """Return a new function for each fixture, because pytest-asyncio stores the loop's scope on the function."""

    async def fixture(request: pytest.FixtureRequest) -> AsyncIterator["Sandbox"]:
        # A task group must be entered and left by one task, but pytest-asyncio sets up and tears down in two.
        entered, leave = asyncio.Event(), asyncio.Event()

        async def hold(sandbox: "Sandbox") -> None:
            try:
                async with sandbox:
                    entered.set()
                    await leave.wait()
            finally:
                entered.set()

        sandbox = _sandbox(request)
        holder = asyncio.create_task(hold(sandbox))
        await entered.wait()
        if not holder.done():
            yield sandbox
        leave.set()
        await holder

    return fixture


# ---- the sandbox of a test


def _sandbox(request: pytest.FixtureRequest) -> "Sandbox":
    module = _sandbox_module()
    options = _options(request)
    given: dict[str, Any] = {"seed": 0, "webhook_transport": httpx.MockTransport(lambda _: httpx.Response(200))}
    if options.get("encoder") != "ffmpeg":  # ffmpeg takes real time: the client's waits would end first
        given["clock"] = module.VirtualClock()
    sandbox: Sandbox = module.Sandbox(**{**given, **options})
    return sandbox


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the options of the `convertrilo` markers; the closest marker wins."""
    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("convertrilo"):
        if marker.args:
            pytest.fail("pytest.mark.convertrilo takes options of Sandbox by name, as in tokens=5", pytrace=False)
        options = {**marker.kwargs, **options}
    return options


def _sandbox_module() -> Any:
    try:
        from convertrilo import sandbox
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("convertrilo"):
            raise
        module = error.name.partition(".")[0]
        pytest.fail(f'the sandbox needs {module}; install it with: pip install "convertrilo[sandbox]"', pytrace=False)
    return sandbox
