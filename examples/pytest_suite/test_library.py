"""The library's tests, on the fixtures that come with the SDK: no network, no account, no waiting.

    pip install -e ".[sandbox]" pytest
    pytest examples/pytest_suite

Each test has a sandbox of its own, in process or on a port; `library.py` is the code that is tested.
"""

import pytest
from library import Library

from convertrilo import AsyncClient
from convertrilo.sandbox import Sandbox, SandboxServer

pytestmark = pytest.mark.anyio
SOURCE = "https://media.example/metropolis.mov"


@pytest.fixture
def library(convertrilo_client: AsyncClient) -> Library:
    return Library(convertrilo_client)


async def test_a_published_film_can_be_watched(library: Library) -> None:
    film = await library.publish("metropolis", SOURCE)
    assert film.url is not None
    assert film.problem is None


@pytest.mark.convertrilo(encode_seconds=3 * 3600)
async def test_three_hours_of_encoding_pass_at_once(library: Library) -> None:
    assert (await library.publish("metropolis", SOURCE)).url is not None


async def test_a_film_is_encoded_once_although_answers_get_lost_and_it_is_published_again(
    library: Library, convertrilo_sandbox: Sandbox
) -> None:
    convertrilo_sandbox.faults.lose_response("onDemandEncode", times=2)
    first = await library.publish("metropolis", SOURCE)
    again = await library.publish("metropolis", SOURCE)
    assert first.url == again.url
    convertrilo_sandbox.assert_created_once(external_id="metropolis")


async def test_a_film_that_cannot_be_encoded_says_why(library: Library, convertrilo_sandbox: Sandbox) -> None:
    convertrilo_sandbox.fail_jobs("the film tore")
    assert "the film tore" in ((await library.publish("metropolis", SOURCE)).problem or "")


async def test_it_works_over_a_port_too(convertrilo_server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERTRILO_BASE_URL", convertrilo_server.base_url)
    monkeypatch.setenv("CONVERTRILO_API_KEY", convertrilo_server.api_key)
    async with AsyncClient() as client:
        await Library(client).publish("metropolis", SOURCE)
    convertrilo_server.sandbox.assert_no_duplicates()
