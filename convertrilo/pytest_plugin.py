"""The pytest fixtures. pytest loads this module in every environment that has the SDK installed.

The module therefore imports nothing of the SDK. Each fixture imports what it needs when a test requests it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from convertrilo import AsyncClient
    from convertrilo.sandbox import Sandbox, SandboxServer


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `convertrilo`."""
    config.addinivalue_line("markers", "convertrilo(**options): options of `Sandbox` for the convertrilo_* fixtures.")


@pytest.fixture
def convertrilo_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A local Convertrilo in this test's event loop: no socket, seeded ids, and a clock that the test advances."""
    from convertrilo import _pytest_fixtures

    return _pytest_fixtures.open_sandbox(request)


@pytest.fixture
def convertrilo_client(convertrilo_sandbox: Sandbox) -> AsyncClient:
    """An `AsyncClient` of `convertrilo_sandbox`; its retries and waits advance the clock instead of taking time."""
    from convertrilo import _pytest_fixtures

    return _pytest_fixtures.client_of(convertrilo_sandbox)


@pytest.fixture
def convertrilo_server(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    """A local Convertrilo on its own port, with `base_url`, `api_key` and `sandbox`; for any test, async or not."""
    from convertrilo import _pytest_fixtures

    with _pytest_fixtures.open_server(request) as server:
        yield server
