"""The fixtures in complete suites, each run like a user's project: in its own process and folder."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convertrilo import _pytest_fixtures

SUITE = """
import pytest
{imports}
from convertrilo import AsyncClient, RateLimitError
from convertrilo.sandbox import Rules

JOB = {{"codec": "h264", "resolution": "720p", "fps": 30}}
SOURCE = "https://media.example/holiday.mov"

{fixture}
async def created(convertrilo_client):
    job = await convertrilo_client.create_job(JOB)
    yield job.job_id
    await convertrilo_client.cancel_job(job.job_id)

@pytest.fixture
def ledger(convertrilo_sandbox):
    return convertrilo_sandbox

{mark}
async def test_lost_answer(convertrilo_sandbox, convertrilo_client):
    convertrilo_sandbox.faults.lose_response("createJob", times=1)
    await convertrilo_client.create_job(JOB)
    assert len(convertrilo_sandbox.jobs) == 1

{mark}
async def test_fixtures_of_the_suite_stand_on_ours(created, ledger, convertrilo_client):
    assert [job.id for job in ledger.jobs] == [created]
    assert (await convertrilo_client.job_status(created)).status == "created"

{mark}
async def test_every_test_has_a_sandbox_of_its_own_with_the_same_ids(convertrilo_sandbox, convertrilo_client):
    assert convertrilo_sandbox.jobs == []
    assert convertrilo_sandbox.requests == []
    job = await convertrilo_client.create_job(JOB)
    IDS.add(job.job_id)
    assert len(IDS) == 1

IDS = set()

{mark}
async def test_and_so_has_the_next(convertrilo_sandbox, convertrilo_client):
    await test_every_test_has_a_sandbox_of_its_own_with_the_same_ids(convertrilo_sandbox, convertrilo_client)

{mark}
@pytest.mark.convertrilo(encode_seconds=3600)
async def test_an_hours_encode_takes_no_time(convertrilo_sandbox, convertrilo_client):
    began = convertrilo_sandbox.clock.time()
    job = await convertrilo_client.on_demand_encode({{"sourceUrl": SOURCE}})
    done = await convertrilo_client.wait_for_on_demand(job.job_id, timeout=7200)
    assert done.status == "success"
    assert convertrilo_sandbox.clock.time() - began >= 3600

{mark}
@pytest.mark.convertrilo(encode_seconds=60)
async def test_the_clock_is_the_tests_to_advance(convertrilo_sandbox, convertrilo_client):
    job = await convertrilo_client.on_demand_encode({{"sourceUrl": SOURCE}})
    await convertrilo_client.on_demand_status(job.job_id)
    convertrilo_sandbox.clock.advance(60)
    await convertrilo_sandbox.wait_until_idle()
    assert (await convertrilo_client.on_demand_status(job.job_id)).status == "success"

{mark}
async def test_a_retry_takes_no_time(convertrilo_sandbox, convertrilo_client):
    began = convertrilo_sandbox.clock.time()
    convertrilo_sandbox.faults.rate_limit("getBalance", retry_after="45", times=2)
    await convertrilo_client.get_balance()
    assert convertrilo_sandbox.clock.time() - began >= 90

{mark}
@pytest.mark.convertrilo(tokens=7, seed=3, rules=Rules(key_lifetime=60))
async def test_a_marker_says_what_sandbox_it_is(convertrilo_sandbox, convertrilo_client):
    assert (await convertrilo_client.get_balance()).available == 7
    for _ in range(2):
        await convertrilo_client.create_job(JOB, idempotency_key="once")
        convertrilo_sandbox.clock.advance(61)
    assert len(convertrilo_sandbox.jobs) == 2

{mark}
async def test_webhooks_arrive_nowhere_and_are_seen(convertrilo_sandbox, convertrilo_client):
    hook = await convertrilo_client.create_webhook({{"url": "https://app.example/hook", "events": ["job.completed"]}})
    job = await convertrilo_client.on_demand_encode({{"sourceUrl": SOURCE}})
    await convertrilo_sandbox.wait_until_idle()
    [delivery] = convertrilo_sandbox.webhooks
    assert (delivery.event, delivery.job, delivery.webhook) == ("job.completed", job.job_id, hook.id)
    assert (delivery.status, delivery.attempt) == ("success", 1)
    assert delivery.payload["data"]["jobId"] == job.job_id

{mark}
@pytest.mark.convertrilo(tokens=9)
async def test_a_server_on_a_port(convertrilo_server):
    server = convertrilo_server
    async with AsyncClient(server.api_key, base_url=server.base_url) as client:
        assert (await client.get_balance()).available == 9
        await client.create_job(JOB)
    assert len(server.sandbox.jobs) == 1
    assert server.api_key not in repr(server)

def test_a_server_serves_tests_that_are_not_async(convertrilo_server):
    assert convertrilo_server.base_url.startswith("http://127.0.0.1:")
"""
TESTS = SUITE.count("def test_")
ASYNC_TESTS = SUITE.count("async def test_")

NO_ASYNCIO, NO_TRIO = ("-p", "no:asyncio"), ("-p", "no:trio")
LOOP = ("-o", "asyncio_default_fixture_loop_scope=function")
SESSION_LOOP = ("-o", "asyncio_default_fixture_loop_scope=session", "-o", "asyncio_default_test_loop_scope=session")

PLAIN, FORCED = "@pytest.fixture", "@pytest_asyncio.fixture"
BOTH_BACKENDS = TESTS + ASYNC_TESTS
WAYS = {
    "anyio, by its marker": (PLAIN, "@pytest.mark.anyio", (*NO_ASYNCIO, *NO_TRIO), BOTH_BACKENDS),
    "anyio, by its marker, beside pytest-asyncio": (PLAIN, "@pytest.mark.anyio", (*LOOP, *NO_TRIO), BOTH_BACKENDS),
    "anyio, auto": (PLAIN, "", (*NO_ASYNCIO, *NO_TRIO, "-o", "anyio_mode=auto"), BOTH_BACKENDS),
    "pytest-asyncio, auto": (PLAIN, "", (*NO_TRIO, *LOOP, "-o", "asyncio_mode=auto"), TESTS),
    "pytest-asyncio, strict": (FORCED, "@pytest.mark.asyncio", (*NO_TRIO, *LOOP), TESTS),
    "pytest-asyncio, one loop for all": (PLAIN, "", (*NO_TRIO, *SESSION_LOOP, "-o", "asyncio_mode=auto"), TESTS),
    "pytest-trio, trio_mode": (PLAIN, "", (*NO_ASYNCIO, "-o", "trio_mode=true"), TESTS),
    "pytest-trio, by its marker": (PLAIN, "@pytest.mark.trio", (*LOOP,), TESTS),
}


def run(folder: Path, suite: str, *options: str) -> tuple[int, str]:
    """Run a suite with warnings as errors, and return its exit status and output."""
    (folder / "test_suite.py").write_text(suite, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-W", "error", "-p", "no:cacheprovider"]
    foreign = [f"-pno:{each}" for each in ("schemathesis", "xdist", "faker", "hypothesispytest")]  # slow
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *foreign, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_fixtures_work(tmp_path: Path, way: str) -> None:
    fixture, mark, options, passed = WAYS[way]
    imports = "import pytest_asyncio" if fixture == FORCED else ""
    status, output = run(tmp_path, SUITE.format(fixture=fixture, mark=mark, imports=imports), *options)
    assert f"{passed} passed in" in output
    assert status == 0


ANYIO = (*NO_ASYNCIO, *NO_TRIO, "-o", "anyio_mode=auto")


def test_a_suite_that_asks_for_no_fixture_imports_nothing_heavy(tmp_path: Path) -> None:
    suite = """
import sys

def test_nothing_is_imported(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("convertrilo")
    heavy = {"convertrilo.client", "convertrilo.models", "httpx", "cattrs", "starlette", "uvicorn"}
    assert heavy & sys.modules.keys() == set()
"""
    status, output = run(tmp_path, suite, *ANYIO)
    assert status == 0, output


def test_without_the_sandboxs_extra_only_who_asks_for_a_fixture_is_told_what_to_install(tmp_path: Path) -> None:
    suite = """
import sys
import pytest

sys.modules["starlette"] = None

async def test_sandbox(convertrilo_sandbox): ...
async def test_client(convertrilo_client): ...
def test_server(convertrilo_server): ...
def test_neither(): ...
"""
    _, output = run(tmp_path, suite, *ANYIO)
    assert 'starlette is not installed: pip install "convertrilo[sandbox]"' in output
    assert "1 passed, 5 errors in" in output


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("def test_x(convertrilo_sandbox): ...", "convertrilo_server works in every test"),
        ("async def test_x(convertrilo_sandbox): ...", "is its marker missing?"),
        ("def test_x(convertrilo_client): ...", "is its marker missing?"),
        ("@pytest.mark.convertrilo(5)\ndef test_x(convertrilo_server): ...", "by name, as in tokens=5"),
        (
            "@pytest.mark.convertrilo(token=5)\ndef test_x(convertrilo_server): ...",
            "unexpected keyword argument 'token'",
        ),
    ],
)
def test_a_wrong_use_is_explained(tmp_path: Path, test: str, message: str) -> None:
    status, output = run(tmp_path, f"import pytest\n{test}\n", *NO_ASYNCIO, *NO_TRIO)
    assert status == 1
    assert message in output
    assert "1 error" in output


@pytest.mark.parametrize("version", ["0.25.3", "1.0.0"])
def test_a_pytest_asyncio_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(_pytest_fixtures, "version", lambda _: version)
    config = SimpleNamespace(pluginmanager=SimpleNamespace(has_plugin=lambda _: True))
    node = SimpleNamespace(get_closest_marker=lambda name: name == "asyncio")
    request: Any = SimpleNamespace(config=config, node=node, fixturenames=[], fixturename="convertrilo_sandbox")
    with pytest.raises(pytest.fail.Exception, match=f"convertrilo_sandbox needs pytest-asyncio 1.1 .*not {version}"):
        _pytest_fixtures._fixture_for(request)


def test_the_closest_marker_wins(tmp_path: Path) -> None:
    suite = """
import pytest

pytestmark = pytest.mark.convertrilo(tokens=5, seed=1)

class TestHere:
    @pytest.mark.convertrilo(tokens=6)
    async def test_it(self, convertrilo_sandbox):
        assert convertrilo_sandbox.tokens.available == 6
"""
    status, output = run(tmp_path, suite, *ANYIO)
    assert status == 0, output


def test_a_failing_test_fails_as_it_would_without_the_fixture_and_leaves_nothing(tmp_path: Path) -> None:
    suite = """
import threading

async def test_it(convertrilo_sandbox, convertrilo_server):
    raise ValueError("its own fault")

def test_nothing_is_left():
    assert threading.active_count() == 1
"""
    for options in (ANYIO, (*NO_TRIO, *LOOP, "-o", "asyncio_mode=auto"), (*NO_ASYNCIO, "-o", "trio_mode=true")):
        _, output = run(tmp_path, suite, *options)
        assert "its own fault" in output.rpartition("short test summary")[2]
        assert f"{output.count('FAILED')} failed, 1 passed in" in output
