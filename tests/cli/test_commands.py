"""Every command as people and scripts run it: a process of its own, against a sandbox on a port."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from cli_help import COMMAND, Terminal, convertrilo
from fake_clock import FakeClock
from loopback import until
from support import names_in

from convertrilo import AsyncClient, JobCreateRequest, Journal, OnDemandEncodeRequest, WaitTimeoutError
from convertrilo.cli.app import run
from convertrilo.cli.job_wait import JobWait
from convertrilo.cli.output import print_line
from convertrilo.cli.settings import state_folder
from convertrilo.sandbox import Rules, Sandbox, SandboxServer, serve_in_thread

URL = "https://example.com/holiday.mov"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as base_url:
        yield SandboxServer(base_url, sandbox.api_key, sandbox)


@pytest.fixture(autouse=True)
def here(server: SandboxServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, with the service in the environment."""
    monkeypatch.setenv("CONVERTRILO_API_KEY", server.api_key)
    monkeypatch.setenv("CONVERTRILO_BASE_URL", server.base_url)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def token(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An access token in the environment."""
    body = {"email": server.sandbox.email, "password": server.sandbox.password}
    answer = httpx.post(f"{server.base_url}/auth/login", json=body, trust_env=False)
    monkeypatch.setenv("CONVERTRILO_ACCESS_TOKEN", answer.json()["accessToken"])
    return str(answer.json()["accessToken"])


def answered(*arguments: str, stdin: str = "") -> Any:
    """What a command that works prints with --json: JSON alone, and the exit code 0."""
    done = convertrilo(*arguments, "--json", cwd=Path(), stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it prints for people; in this process, as another one costs a third of a second."""
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


def failed(code: int, *arguments: str) -> str:
    """What a command that fails says: one line on stderr, nothing on stdout, and the exit code of its kind."""
    done = convertrilo(*arguments, cwd=Path())
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("convertrilo: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def on_demand() -> str:
    """Make a job of a URL."""

    async def create() -> str:
        async with AsyncClient() as client:
            return (await client.on_demand_encode(OnDemandEncodeRequest(source_url=URL))).job_id

    return anyio.run(create)


def waiting_for_its_file() -> str:
    """Make a job that is to be uploaded."""

    async def create() -> str:
        async with AsyncClient() as client:
            return (await client.create_job(JobCreateRequest(codec="h264", resolution="720p", fps=30))).job_id

    return anyio.run(create)


def test_status_wait_and_download_of_a_job(
    server: SandboxServer, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = on_demand()
    done = answered("wait", job_id, "--poll-interval-ms", "100")
    assert (done["jobId"], done["status"], done["sourceFilename"]) == (job_id, "success", "holiday.mov")
    assert text(capsys, "status", job_id).splitlines()[0] == f"jobId: {job_id}"
    fetched = answered("download", job_id, "--wait")
    size = len(Path(fetched["output"]).read_bytes())
    assert fetched == {"jobId": job_id, "output": done["outputFilename"], "size": size, "status": "success"}
    assert names_in(here) == [done["outputFilename"]]
    for command in ("status", "wait", "download"):
        assert "404 not_found" in failed(3, command, NOBODY)


def test_a_download_takes_no_place_that_nobody_gave_it(
    server: SandboxServer, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = on_demand()
    assert run(["wait", job_id]) == 0
    (here / "holiday.mp4").write_text("the source")  # what the service calls the result, too
    capsys.readouterr()
    assert run(["download", job_id, "--quiet"]) == 2
    said = "convertrilo: holiday.mp4 already exists: name the output file with --output\n"
    assert capsys.readouterr().err == said
    assert (here / "holiday.mp4").read_text() == "the source"
    assert run(["download", job_id, "--quiet", "-o", "none/out.mp4"]) == 2
    assert run(["download", job_id, "--quiet", "-o", "holiday.mp4"]) == 0
    assert (here / "holiday.mp4").read_bytes() != b"the source"


def test_wait_tells_a_job_that_failed_by_its_exit_code(server: SandboxServer) -> None:
    server.sandbox.fail_jobs("the picture is upside down")
    assert failed(1, "wait", on_demand(), "--quiet").endswith("failed: the picture is upside down\n")


def test_cancel(server: SandboxServer) -> None:
    job_id = waiting_for_its_file()
    assert answered("cancel", job_id) == {"jobId": job_id, "status": "canceled"}
    done = on_demand()
    assert answered("wait", done)["status"] == "success"
    refused = convertrilo("cancel", done, cwd=Path())
    assert refused.returncode == 1
    assert refused.stderr == f"convertrilo: job {done} is success, and can no longer be canceled\n"


def test_cancel_ends_what_runs_on_demand_wherever_else_the_service_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(seed=1, encode_seconds=3600, rules=Rules(bulk_status_on_demand=True))
    with serve_in_thread(sandbox) as base_url:
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        job_id = on_demand()
        anyio.run(until, lambda: sandbox.jobs[0].status == "running")
        reserved = sandbox.tokens.reserved
        assert reserved > 0
        assert answered("cancel", job_id) == {"jobId": job_id, "status": "canceled", "released": reserved}
        assert sandbox.tokens.reserved == 0


def test_balance_and_a_key_that_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    balance = answered("balance")
    assert set(balance) == {"available", "reserved", "trialExpiresAt", "trialGrantRemaining"}
    assert text(capsys, "balance").startswith(f"available: {balance['available']}\n")
    monkeypatch.setenv("CONVERTRILO_API_KEY", "cvr_wrong")
    assert failed(5, "balance").endswith("; log in with convertrilo login, or set CONVERTRILO_API_KEY\n")


def test_upload_and_confirm_a_job_that_waits_for_its_file(server: SandboxServer, here: Path) -> None:
    job_id = waiting_for_its_file()
    (here / "in.mp4").write_bytes(b"some video")
    done = answered("upload", job_id, "in.mp4", "--confirm", "--journal", "run.db")
    assert (done["jobId"], done["size"]) == (job_id, 10)
    assert answered("wait", job_id)["status"] == "success"
    assert names_in(here) == ["in.mp4", "run.db"]
    assert "there is no file none.mp4 (see convertrilo upload --help)" in failed(2, "upload", job_id, "none.mp4")


def test_webhooks(server: SandboxServer, capsys: pytest.CaptureFixture[str]) -> None:
    made = answered("webhooks", "create", "https://hooks.example/in", "--event", "job.failed")
    assert (made["url"], made["events"], made["isActive"]) == ("https://hooks.example/in", ["job.failed"], True)
    assert made["secret"]
    webhook_id = made["id"]
    changed = answered("webhooks", "update", webhook_id, "--inactive", "--event", "job.created")
    assert (changed["isActive"], changed["events"]) == (False, ["job.created"])
    listed = text(capsys, "webhooks", "list").splitlines()
    assert listed[0].split() == ["id", "state", "failures", "url", "events", "last", "failure"]
    assert listed[1].split()[:5] == [webhook_id, "off", "0", "https://hooks.example/in", "created"]
    assert answered("webhooks", "update", webhook_id, "--active")["isActive"] is True
    assert answered("webhooks", "test", webhook_id) == {"webhookId": webhook_id, "sent": True}
    (attempt,) = answered("webhooks", "deliveries", webhook_id)["deliveries"]
    assert (attempt["event"], attempt["webhookId"]) == ("webhook.test", webhook_id)
    assert answered("webhooks", "delete", webhook_id) == {"webhookId": webhook_id, "deleted": True}
    assert answered("webhooks", "list") == {"webhooks": []}


def test_an_id_can_be_copied_from_a_terminal(here: Path) -> None:
    webhook_id = answered("webhooks", "create", "https://hooks.example/with-a-long-path/in")["id"]
    terminal = Terminal("webhooks", "list", cwd=here, stdout=True, COLUMNS="80")
    code, _ = terminal.end()
    assert (code, terminal.shown.count(webhook_id)) == (0, 1)
    assert run(["webhooks", "delete", webhook_id]) == 0


def test_what_webhooks_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[int, Sequence[str], str]] = [
        (2, ["update", NOBODY], "nothing to change"),
        (2, ["create", "https://a.test", "--event", "job.lost"], "'job.lost' is not one of"),
        *((3, [name, NOBODY], "404 webhook_not_found") for name in ("delete", "test", "deliveries")),
    ]
    for code, arguments, says in cases:
        assert run(["webhooks", *arguments]) == code
        out, err = capsys.readouterr()
        assert says in err
        assert out == ""
    assert failed(2, "webhooks", "create", "nowhere") == "convertrilo: url: must be an absolute URL, not 'nowhere'\n"


@pytest.mark.usefixtures("token")
def test_keys(capsys: pytest.CaptureFixture[str]) -> None:
    made = answered("keys", "create", "ci", "--scope", "jobs:read", "--expires-in-days", "30")
    assert (made["name"], made["scopes"]) == ("ci", ["jobs:read"])
    assert made["key"].startswith(made["prefix"])
    listed = convertrilo("keys", "list", cwd=Path()).stdout
    assert "begins with" in listed
    assert made["id"] in listed
    assert made["key"] not in listed
    assert answered("keys", "revoke", made["id"]) == {"keyId": made["id"], "revoked": True}
    assert "404 not_found" in failed(3, "keys", "revoke", made["id"])


def test_keys_need_more_than_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "log in with convertrilo login --email" in failed(2, "keys", "list")
    monkeypatch.setenv("CONVERTRILO_ACCESS_TOKEN", "expired")
    assert failed(5, "keys", "list").endswith("log in with convertrilo login --email YOU@EXAMPLE.COM\n")


def test_journal(server: SandboxServer, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = JobCreateRequest(codec="h264", resolution="720p", fps=30, external_id="clip-1")

    async def fill() -> None:
        async with AsyncClient(journal=Journal("run.db")) as client:
            await client.create_job(job)
        async with Journal("run.db") as journal:
            await journal.begin(
                service="localhost", operation="createJob", key="k-1", body=b"{}", identity="key", name=None
            )
        async with Journal("run.db", replay_window=0) as journal:
            assert [each.key async for each in journal.unknown()] == ["k-1"]

    anyio.run(fill)
    (entry,) = answered("journal", "answered", "run.db")["operations"]
    assert (entry["operation"], entry["state"], entry["identity"]) == ("createJob", "answered", "external_id")
    shown = answered("journal", "show", "run.db", entry["key"])
    assert shown["request"]["externalId"] == "clip-1"
    assert shown["answer"]["jobId"] == server.sandbox.assert_created_once(external_id="clip-1").id
    assert "signature=" not in json.dumps(shown)  # the upload URL is a permission
    assert "k-1" in text(capsys, "journal", "pending", "run.db")
    assert answered("journal", "unknown", "run.db") == {"operations": []}
    assert answered("journal", "drop", "run.db", "k-1") == {"key": "k-1", "dropped": True}
    assert failed(2, "journal", "drop", "run.db", "k-1") == "convertrilo: the journal run.db holds no key k-1\n"


def test_a_journal_that_is_none_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "notes.txt").write_text("no journal")
    for name in ("pending", "answered", "unknown"):
        assert run(["journal", name, "missing.db"]) == 2
        assert "there is no file missing.db" in capsys.readouterr().err
        assert run(["journal", name, "notes.txt"]) == 2
        assert "notes.txt cannot be used: it is not a SQLite file" in capsys.readouterr().err
    assert names_in(here) == ["notes.txt"]


def test_config_login_and_logout(server: SandboxServer, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.delenv("CONVERTRILO_API_KEY")
    monkeypatch.delenv("CONVERTRILO_BASE_URL")
    file = home / "config" / "convertrilo" / "config.json"
    assert answered("config", "set", "baseUrl", server.base_url)["baseUrl"] == server.base_url
    saved = answered("login", stdin=f"{server.api_key}\n")
    assert saved == {"profile": "default", "baseUrl": server.base_url, "path": str(file)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert answered("balance")["available"] > 0
    shown = convertrilo("config", "get", cwd=Path())
    assert "apiKey: [saved]" in shown.stdout
    assert server.api_key not in shown.stdout + shown.stderr
    assert answered("logout")["loggedOut"] is True
    assert server.api_key not in file.read_text()
    assert "no API key: log in with convertrilo login" in failed(2, "balance")
    assert "'url' is not one of" in failed(2, "config", "set", "url", "x")


@pytest.mark.parametrize(("shell", "says"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no")])
def test_completion(shell: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert says in capsys.readouterr().out


def test_the_help_of_completion_has_a_line_for_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("bash", "zsh", "fish")] == ["bash", "zsh", "fish"]


def test_a_shell_can_complete_commands_and_options() -> None:
    def completed(words: str, word: str) -> list[str]:
        asked = {"_CONVERTRILO_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": word}
        done = subprocess.run(COMMAND, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("convertrilo wa", "1") == ["wait"]
    assert completed("convertrilo webhooks del", "2") == ["delete", "deliveries"]
    assert "--resolution" in completed("convertrilo encode --res", "2")
    assert convertrilo("completion", "tcsh", cwd=Path()).returncode == 2


# ---- what every command does with its surroundings


def test_what_may_have_happened_has_an_exit_code_of_its_own(
    server: SandboxServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.sandbox.faults.lose_response("createWebhook")
    assert run(["webhooks", "create", "https://hooks.example/lost"]) == 7
    assert "webhooks" in capsys.readouterr().err


def test_who_waits_at_a_terminal_hears_why(server: SandboxServer, here: Path) -> None:
    server.sandbox.faults.status("getBalance", 503, headers={"retry-after": "1"})
    terminal = Terminal("balance", "--json", cwd=here)
    code, out = terminal.end()
    assert (code, json.loads(out).keys()) == (0, {"available", "reserved", "trialExpiresAt", "trialGrantRemaining"})
    assert "getBalance: no answer yet (503), next attempt in 1 s" in terminal.shown


def test_the_sandbox_serves_one_command_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_in_thread(Sandbox(state=state_folder())):
        assert run(["balance", "--sandbox"]) == 2
    assert "in use: another sandbox runs on it. Wait until the other command has ended" in capsys.readouterr().err
    assert run(["balance", "--sandbox"]) == 0


async def asked(*, interval: float | None) -> int:
    """How often a job of which nothing becomes is asked for, in twenty seconds of virtual time."""
    clock = FakeClock(sleepers="wait")
    async with (
        Sandbox(clock=clock, encode_seconds=1e9) as sandbox,
        sandbox.client(clock=clock) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(clock.run)
        job = await client.on_demand_encode(OnDemandEncodeRequest(source_url=URL))
        with pytest.raises(WaitTimeoutError):
            await JobWait(20.0, interval, quiet=True, clock=clock).wait(client, job.job_id, lambda _: None)
        tasks.cancel_scope.cancel()
    return sum("tatus" in each.operation for each in sandbox.requests)


def test_a_poll_interval_has_it_asked_more_often() -> None:
    assert anyio.run(partial(asked, interval=0.1)) > 2 * anyio.run(partial(asked, interval=None)) > 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen([*COMMAND, "balance"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("encoding", "text", "printed"),
    [
        ("utf-8", os.fsdecode(b"out-\xe9.mp4"), b"out-\xe9.mp4\n"),  # the name of the file, as it is
        ("latin-1", "\xe9 \u2600", b"\xe9 \\u2600\n"),
    ],
)
def test_a_result_is_printed_though_stdout_has_no_such_text(
    encoding: str, text: str, printed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    print_line(text)
    assert written.getvalue() == printed


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_is_for_terminals_that_want_it(environment: dict[str, str], here: Path, *, coloured: bool) -> None:
    terminal = Terminal("status", on_demand(), cwd=here, stdout=True, **environment)
    code, _ = terminal.end()
    assert code == 0
    assert "holiday.mov" in terminal.shown
    assert ("\x1b[" in terminal.shown) is coloured


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, None])
def test_an_interrupted_wait_says_how_to_go_on(
    end: signal.Signals | None, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    with serve_in_thread(slow := Sandbox(encode_seconds=3600)) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", slow.api_key)
        job_id = on_demand()
        terminal = Terminal("wait", job_id, cwd=here)
        terminal.read_until("encoding")
        if end is None:
            terminal.close()  # SIGHUP, and nobody is left to say anything to
            assert terminal.ended() == (130, "")
            return
        terminal.process.send_signal(end)
        assert terminal.end() == (130, "")
    says = f"interrupted; the job is still running: wait for it again with convertrilo wait {job_id}"
    assert says in " ".join(terminal.shown.split())
