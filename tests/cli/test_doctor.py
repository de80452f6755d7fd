"""`convertrilo doctor`: what it finds, and what it says to do."""

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from cli_help import convertrilo

from convertrilo.cli.app import run
from convertrilo.cli.settings import config_file
from convertrilo.sandbox import Sandbox, serve_in_thread

NAMES = ["settings", "service", "key", "tokens", "clock", "webhooks", "ffmpeg"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    sandbox = Sandbox(seed=1, tokens=0)
    with serve_in_thread(sandbox) as sandbox.base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        yield sandbox


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert run(["doctor", "--json"]) == code
    wire = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in wire["checks"]] == NAMES
    assert wire["ok"] is (code == 0)
    return {each["name"]: each for each in wire["checks"]}


def test_all_is_well_but_for_the_tokens(service: Sandbox, tmp_path: Path) -> None:
    done = convertrilo("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        [name, "warning" if name == "tokens" else "ok"] for name in NAMES
    ]
    assert "apiKey from CONVERTRILO_API_KEY" in lines[1]
    assert "0 available, 0 reserved" in lines[4]
    assert service.api_key not in done.stdout + done.stderr
    assert service.jobs == []


def test_scopes_that_a_key_lacks_are_named(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"email": service.email, "password": service.password}
    token = httpx.post(f"{service.base_url}/auth/login", json=body, trust_env=False).json()["accessToken"]
    monkeypatch.setenv("CONVERTRILO_ACCESS_TOKEN", token)
    scopes = ["jobs:read", "tokens:read"]
    created = ["keys", "create", "small", "--expires-in-days", "3", *(f"--scope={each}" for each in scopes)]
    assert run([*created, "--field", "key"]) == 0
    monkeypatch.setenv("CONVERTRILO_API_KEY", capsys.readouterr().out.strip())
    key = examined(capsys)["key"]
    assert key["state"] == "warning"
    assert key["says"].startswith("expires at ")
    assert key["keyName"] == "small"
    assert [scope for scope, has in key["scopes"].items() if has] == ["jobs:read", "tokens:read"]
    monkeypatch.delenv("CONVERTRILO_ACCESS_TOKEN")
    assert examined(capsys)["key"]["says"] == "lacks jobs:create, jobs:cancel, webhooks:manage"


def test_webhooks_that_fail_or_are_switched_off_are_named(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    ids = []
    for _ in range(2):
        assert run(["webhooks", "create", "http://127.0.0.1:9/in", "--field", "id"]) == 0
        ids.append(capsys.readouterr().out.strip())
    assert run(["webhooks", "update", ids[1], "--inactive"]) == 0
    capsys.readouterr()
    webhooks = examined(capsys)["webhooks"]
    assert webhooks["state"] == "warning"
    assert webhooks["webhooks"] == {ids[0]: "active", ids[1]: "off"}
    assert f"{ids[1]} is off: convertrilo webhooks deliveries ID shows why" in webhooks["says"]


def test_a_key_that_is_refused(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERTRILO_API_KEY", "cvr_wrong")
    checks = examined(capsys, code=5)
    assert (checks["service"]["state"], checks["key"]["state"], checks["webhooks"]["state"]) == (
        "ok",
        "failed",
        "skipped",
    )
    assert "log in with convertrilo login" in checks["key"]["says"]


def test_a_service_that_is_not_there(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERTRILO_API_KEY", "cvr_key")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", f"http://{nobody}")
    assert examined(capsys, code=4)["service"]["state"] == "failed"


def test_no_settings_and_settings_that_others_can_read(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "set", "apiKey", service.api_key]) == 0
    monkeypatch.delenv("CONVERTRILO_API_KEY")
    config_file().chmod(0o644)
    capsys.readouterr()
    settings = examined(capsys)["settings"]
    assert (settings["state"], settings["says"]) == (
        "warning",
        f"other users can read {config_file()}: chmod 600 {config_file()}",
    )
    assert run(["logout"]) == 0
    capsys.readouterr()
    assert "convertrilo login" in examined(capsys, code=2)["settings"]["says"]


class _Late(BaseHTTPRequestHandler):
    """Answers as a service whose clock is ten minutes ahead of ours."""

    def do_GET(self) -> None:
        body = b'{"available": 5}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002  # that it is called with
        return formatdate(time.time() + 600, usegmt=True)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that http.server calls it by
        pass


def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Late)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("CONVERTRILO_API_KEY", "cvr_key")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        clock = examined(capsys)["clock"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert clock["state"] == "warning"
    assert clock["skewSec"] == pytest.approx(600, abs=30)
    assert "behind the service's" in clock["says"]


def test_the_sandbox_of_the_command_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--sandbox", "--json"]) == 0
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert (checks["key"]["state"], checks["clock"]["state"], checks["ffmpeg"]["state"]) == ("ok", "skipped", "ok")
