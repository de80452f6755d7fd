"""The watch for leaks sees every kind of leak: each is made on purpose, in a test run of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import logging, sqlite3
import anyio, httpx
from credentials import API_KEY, SECRET_ACCESS_KEY
from opentelemetry.sdk.trace import TracerProvider
from convertrilo import AsyncClient, ConvertriloError, JobCreateRequest, Journal, StatusResponse, models
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

def of_a_key_that_nobody_told_of():
    client = AsyncClient("sk_made_up_1234567890")
    logging.getLogger("convertrilo").info("sk_made_up_1234567890")

def of_a_password_that_was_made_up():
    asked({"accessToken": "t"}, login={"email": "a@b.test", "password": "made-up-pass-1"})
    logging.getLogger("convertrilo").info("made-up-pass-1")

def asked(answer, job=None, login=None):
    async def ask():
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
        async with AsyncClient("k", transport=transport, base_url="https://api.test") as client:
            try:
                await (client.create_job(job) if job else client.login(login) if login else client.job_status("j"))
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


def run(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    (folder / "test_it.py").write_text(HEAD + body)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    options = ["-p", "leaks", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:trio", "-q"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_kind_of_leak_is_an_error_of_its_test(tmp_path: Path) -> None:
    tests = [f"def test_{name}(): quietly({name})" for name in NAMES]
    tests += ["def test_in_a_journal(tmp_path): kept(tmp_path, SECRET_ACCESS_KEY)"]
    tests += ["def test_nothing(tmp_path): kept(tmp_path, 'harmless')"]
    done = run(tmp_path, "\n".join(tests))
    errors = set(re.findall(r"^ERROR test_it\.py::(\w+)", done.stdout, re.MULTILINE))
    assert errors == {f"test_{name}" for name in NAMES} | {"test_in_a_journal"}, done.stdout + done.stderr
    assert f"{len(tests)} passed, {len(tests) - 1} errors" in done.stdout


@pytest.mark.parametrize("secret", ["sk_live_9f8e7d6c5b4a"])
def test_what_is_seen_is_said(secret: str, tmp_path: Path) -> None:
    done = run(tmp_path, "def test_it(): quietly(in_the_log)")
    assert f"credentials are seen:\nthe log convertrilo shows '{secret}'" in done.stdout
