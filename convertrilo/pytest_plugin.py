"""The pytest fixtures, loaded by pytest in every suite of an environment that has the SDK.

So nothing is imported here but names; what a fixture needs is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from convertrilo import AsyncClient
    from convertrilo.sandbox import Sandbox, SandboxServer


def pytest_configure(config: pytest.Config) -> None:
    """Say which marker there is."""
    config.addinivalue_line("markers", "convertrilo(**options): options of `Sandbox` for the convertrilo_* fixtures.")


@pytest.fixture
def convertrilo_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A local Convertrilo in this test's event loop: no socket, seeded ids, and a clock that the test advances."""
    from convertrilo import _pytest_fixtures

    return _pytest_fixtures.open_sandbox(request)


@pytest.fixture
def convertrilo_client(convertrilo_sandbox: Sandbox) -> AsyncClient:
    """An `AsyncClient` of `convertrilo_sandbox`; its retries and waits advance the clock and take no time."""
    from convertrilo import _pytest_fixtures

    return _pytest_fixtures.client_of(convertrilo_sandbox)


@pytest.fixture
def convertrilo_server(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    """A local Convertrilo on a port of its own: `base_url`, `api_key`, `sandbox`. For any test, async or not."""
    from convertrilo import _pytest_fixtures

    with _pytest_fixtures.open_server(request) as server:
        yield server
