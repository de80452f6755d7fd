"""Fixtures and settings of all tests: both async backends, both JSON libraries, fixed seeds, and the leak plugin."""

import importlib.util
import os
import random
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import Phase, settings
from object_store import ObjectStore, moto_server
from radosgw import radosgw

import convertrilo

pytest_plugins = ["leaks"]

PHASES = [Phase.explicit, Phase.generate, Phase.shrink]  # without Phase.explain, which traces every line for minutes
settings.register_profile("default", derandomize=True, deadline=None, phases=PHASES)
settings.load_profile("default")

# Processes that tests start would inherit these settings of the caller: proxies, accounts, colours, and ignored signals
# (by `nohup` or `&`).
FOREIGN = re.compile("_proxy$|^aws_|^convertrilo_(?!contract_)|color|^columns$", re.IGNORECASE)
for name in filter(FOREIGN.search, tuple(os.environ)):
    del os.environ[name]
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise each process would compile the package again
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

OBJECT_STORES = {"moto": moto_server, "radosgw": radosgw}
OBJECT_STORE = os.environ.get("OBJECT_STORE", "moto")  # radosgw must be installed: `nox -s s3`


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed randomness by the test's id: jitter, and the order in which trio runs tasks."""
    random.seed(item.nodeid)
    trio._core._run._r.seed(item.nodeid)  # trio has no public way to do this


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run every async test on asyncio and on trio."""
    return str(request.param)


@pytest.fixture
def nobody() -> Iterator[str]:
    """Return a host and port where nobody listens. The port stays reserved."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="session", params=[OBJECT_STORE])
def object_store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """Start a real S3 server."""
    with OBJECT_STORES[request.param]() as store:
        yield store


@pytest.fixture(scope="session", params=["orjson", "stdlib"])
def library(request: pytest.FixtureRequest) -> Any:
    """Return `convertrilo._json` and `convertrilo.codec` as copies that use orjson, or that cannot import it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stdlib":
            patch.setitem(sys.modules, "orjson", None)
        json = _copy(patch, "_json")
        codec = _copy(patch, "codec")
    assert hasattr(json, "orjson") is (request.param == "orjson")
    return SimpleNamespace(name=request.param, json=json, codec=codec)


def _copy(patch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Import a module of the package again, and let later imports find the copy."""
    spec = importlib.util.spec_from_file_location(
        f"convertrilo.{name}", Path(convertrilo.__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
