"""The watch for leaks sees every kind of leak: each is made on purpose, in a test run of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import logging, subprocess, sys
import anyio, httpx
import pytest
from credentials import API_KEY, SECRET_ACCESS_KEY
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from convertrilo import AsyncClient, AttemptEvent, ConvertriloError, JobCreateRequest, Journal, StatusResponse, models
from convertrilo.sandbox import Sandbox

def in_the_log():
    logging.getLogger("convertrilo").debug("sending with %s", API_KEY)

def in_another_log():
    logging.getLogger("some.library").warning("sending with %s", API_KEY)

def in_the_log_of_an_exception():
    try:
        raise ValueError(API_KEY)
    except ValueError:
        logging.getLogger("convertrilo").exception("it failed")

def in_an_error():
    raise ConvertriloError(f"no such key: {API_KEY}")

def in_a_note():
    error = ConvertriloError("no such key")
    error.add_note(API_KEY)

def in_an_attribute():
    ConvertriloError("no").code = API_KEY

def in_a_cause():
    raise ConvertriloError("no") from ValueError(API_KEY)

def in_a_line_of_a_traceback():
    raise ConvertriloError("no")  # sk_live_9f8e7d6c5b4a

def in_the_repr_of_an_answer():
    asked({"id": "j", "status": "queued", "sourceFilename": API_KEY})

def in_the_repr_of_a_request():
    asked({"id": "j", "status": "queued"}, JobCreateRequest(
        codec="av1", resolution="720p", fps=30, external_id=SECRET_ACCESS_KEY))

def in_a_span():
    with TracerProvider().get_tracer("x").start_as_current_span("call", attributes={"header": API_KEY}):
        pass

def in_an_event():
    AttemptEvent(operation="createJob", attempt=1, outcome="ok", elapsed=0.1, request_id=API_KEY)

def in_a_counter():
    METER.create_counter("c").add(1, {"key": API_KEY})

def in_an_up_down_counter():
    METER.create_up_down_counter("u").add(1, attributes={"key": API_KEY})

def in_a_histogram():
    METER.create_histogram("h").record(1, {"key": API_KEY})

def in_a_gauge():
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("x")
    meter.create_observable_gauge("g", [lambda _: [Observation(1, {"key": API_KEY})]])
    reader.get_metrics_data()

def in_what_is_printed():
    print(API_KEY)

def in_what_is_printed_to_stderr():
    print(API_KEY, file=sys.stderr)

def in_what_a_process_prints():
    subprocess.run([sys.executable, "-c", f"print('{API_KEY}')"], capture_output=True)

def in_what_a_process_prints_to_stderr():
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; print('{API_KEY}', file=sys.stderr)"], stderr=subprocess.PIPE, text=True)
    process.communicate()

def in_what_a_process_prints_that_is_awaited():
    async def run():
        await anyio.run_process([sys.executable, "-c", f"print('{API_KEY}')"])
    anyio.run(run)

def in_what_a_process_prints_where_this_one_does():
    subprocess.run([sys.executable, "-c", f"print('{API_KEY}')"])

def of_the_first_of_many_keys():
    for number in range(1000, 1500):
        AsyncClient(f"sk_made_up_{number}")
    logging.getLogger("convertrilo").info("sk_made_up_1000")

def of_a_key_that_nobody_told_of():
    client = AsyncClient("sk_made_up_1234567890")
    logging.getLogger("convertrilo").info("sk_made_up_1234567890")

def of_a_password_that_was_made_up():
    asked({"accessToken": "t"}, login={"email": "a@b.test", "password": "made-up-pass-1"})
    logging.getLogger("convertrilo").info("made-up-pass-1")

METER = MeterProvider().get_meter("x")

def asked(answer, job=None, login=None, key=None):
    async def ask():
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
        async with AsyncClient("k", transport=transport, base_url="https://api.test") as client:
            try:
                await (client.create_job(job) if job else client.login(login) if login
                       else client.create_api_key(key) if key else client.job_status("j"))
            except ConvertriloError:
                pass
    anyio.run(ask)

def kept(folder, external_id):
    async def keep():
        async with Sandbox(seed=0) as sandbox, sandbox.client(journal=Journal(folder / "journal.db")) as client:
            await client.create_job({"codec": "av1", "resolution": "720p", "fps": 30, "externalId": external_id})
    anyio.run(keep)

def quietly(leak):
    try:
        leak()
    except (ConvertriloError, TypeError):
        pass
"""
NAMES = [line.split()[1].partition("(")[0] for line in HEAD.splitlines() if line.startswith(("def in_", "def of_"))]


def run(folder: Path, body: str) -> str:
    (folder / "test_it.py").write_text(HEAD + body)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    options = ["-p", "leaks", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:trio", "-q"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    with (folder / "output").open("w") as output:  # no pipe: this run's own watch need not see it
        subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    return (folder / "output").read_text()


WITH_FIXTURES = """
def test_in_a_journal(tmp_path):
    kept(tmp_path, SECRET_ACCESS_KEY)

def test_in_what_capsys_reads(capsys):
    print(API_KEY, file=sys.stderr)
    capsys.readouterr()

def test_nothing(tmp_path):
    kept(tmp_path, "harmless")

def test_what_was_asked_for_may_be_printed():
    asked({"id": "k", "key": "sk_new_1234567890"}, key={"name": "n"})
    print("sk_new_1234567890")

@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")

def test_in_a_journal_elsewhere(elsewhere):
    kept(elsewhere, SECRET_ACCESS_KEY)
"""
HARMLESS = {"test_nothing", "test_what_was_asked_for_may_be_printed"}


def test_every_kind_of_leak_is_an_error_of_its_test(tmp_path: Path) -> None:
    tests = "\n".join([f"def test_{name}(): quietly({name})" for name in NAMES]) + WITH_FIXTURES
    expected = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    done = run(tmp_path, tests)
    assert set(re.findall(r"^ERROR test_it\.py::(\w+)", done, re.MULTILINE)) == expected - HARMLESS, done
    assert f"{len(expected)} passed, {len(expected - HARMLESS)} errors" in done


@pytest.mark.parametrize("secret", ["sk_live_9f8e7d6c5b4a"])
def test_what_is_seen_is_said(secret: str, tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): quietly(in_the_log)")
    assert f"credentials are seen:\nthe log convertrilo shows '{secret}'" in done
