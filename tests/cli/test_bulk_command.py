"""`convertrilo bulk`: a file of jobs, a result for each, and no job twice however often it is run."""

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from cli_help import COMMAND, Terminal, convertrilo
from support import names_in

from convertrilo.cli.app import run
from convertrilo.cli.settings import state_folder
from convertrilo.sandbox import Sandbox, serve, serve_in_thread

URL = "https://example.com/in.mp4"
JOB = {"codec": "h264", "resolution": "720p", "fps": 30, "sourceUrl": URL}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        monkeypatch.chdir(tmp_path)
        yield sandbox


def write(*jobs: Any, name: str = "jobs.jsonl") -> None:
    lines = (each if isinstance(each, str) else json.dumps(each) for each in jobs)
    Path(name).write_text("\n".join(lines) + "\n")


def named(number: int, **more: Any) -> dict[str, Any]:
    return {**JOB, "externalId": f"clip-{number}", **more}


def test_each_line_has_a_result_and_bad_ones_are_their_own(service: Sandbox, tmp_path: Path) -> None:
    write(named(1), "", "{", named(3, fps=1000), JOB, named(5, resolution="999p"), named(6))
    done = convertrilo("bulk", "jobs.jsonl", "--confirm", "--wait", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    results = {each["line"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert sorted(results) == [1, 3, 4, 5, 6, 7]
    assert {line for line, each in results.items() if "error" not in each} == {1, 7}
    assert results[1]["status"] == "success"
    assert results[1]["jobId"] == service.assert_created_once(external_id="clip-1").id
    assert results[3]["error"].startswith("is not valid JSON")
    assert "fps" in results[4]["error"]
    assert results[5]["error"].startswith("has no externalId")
    assert done.stderr.splitlines()[-1].startswith("2 submitted, 2 succeeded, 4 failed; ")
    assert [job.status for job in service.jobs] == ["success", "success"]


def test_for_people_there_is_a_summary_and_what_failed(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    service.fail_jobs("no picture")
    write(named(1), named(2))
    assert run(["bulk", "jobs.jsonl", "--confirm", "--wait"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("2 submitted, 1 succeeded, 1 failed; ")
    assert "failed: no picture\n" in err
    assert "submitting" in err


def test_on_a_terminal_there_is_a_bar_and_the_results_go_where_they_are_sent(service: Sandbox, tmp_path: Path) -> None:
    write(named(1), "{", named(3))
    terminal = Terminal("bulk", "jobs.jsonl", "--confirm", "--wait", "--job-id-only", cwd=tmp_path)
    code, out = terminal.end()
    assert code == 1
    assert sorted(out.split()) == sorted(job.id for job in service.jobs)
    for each in ("submitting", "━", "3 read, 2 submitted, 2 done, 1 failed", "jobs/s", "100%", "0:00:0"):
        assert each in terminal.shown


def test_a_name_that_would_move_the_cursor_does_not(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    service.fail_jobs("up\x1b[2Aand\nover")
    write(named(1))
    assert run(["bulk", "jobs.jsonl", "--confirm", "--wait"]) == 1
    assert "failed: up\\x1b[2Aand\\nover\n" in capsys.readouterr().err


def test_run_again_it_makes_no_job_twice(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    write(named(1), named(2))
    ids = []
    for _ in range(2):
        assert run(["bulk", "jobs.jsonl", "--job-id-only", "--quiet"]) == 0
        ids.append(capsys.readouterr().out)
    assert ids[0] == ids[1] == "".join(f"{job.id}\n" for job in service.jobs)


def test_of_a_file_that_has_grown_only_what_is_new_is_made(service: Sandbox) -> None:
    for count in (2, 3):
        write(*map(named, range(count)))
        assert run(["bulk", "jobs.jsonl", "--confirm", "--quiet"]) == 0
    assert sorted(str(job.external_id) for job in service.jobs) == ["clip-0", "clip-1", "clip-2"]
    assert names_in(Path()) == ["jobs.jsonl", "jobs.jsonl.db"]


def test_what_was_made_is_refused_with_other_settings_and_not_made_again(
    service: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    write(named(1))
    assert run(["bulk", "jobs.jsonl"]) == 0
    assert run(["bulk", "jobs.jsonl", "--confirm"]) == 1
    assert "line 1: another job has this external_id" in capsys.readouterr().err
    assert service.assert_created_once(external_id="clip-1").status == "created"


@pytest.mark.parametrize(("name", "infix"), [("a/b", ".a%2Fb"), ("sandbox", ".sandbox")])
def test_each_profile_has_a_journal_of_its_own(name: str, infix: str, service: Sandbox) -> None:
    write(named(1, sourceUrl=None))
    with serve_in_thread(other := Sandbox()) as base_url:
        for setting, value in (("apiKey", other.api_key), ("baseUrl", base_url)):
            assert run(["config", "set", setting, value, "--profile", name]) == 0
        for more in ([], ["--sandbox"], ["--profile", name], ["--dry-run"], ["--journal", "mine"]):
            assert run(["bulk", "jobs.jsonl", "--quiet", *more]) == 0
        assert len(service.jobs) == len(other.jobs) == 1
    assert names_in(Path()) == sorted(["jobs.jsonl", "jobs.jsonl.db", f"jobs.jsonl{infix}.db", "mine"])


def test_a_journal_goes_with_the_jobs_of_the_sandbox(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    ids = []
    for folder, fps, begins_anew in ((one, 24, False), (one, 24, False), (other, 25, False), (one, 24, True)):
        if begins_anew:
            shutil.rmtree(state_folder())
        folder.mkdir(exist_ok=True)
        write(named(1, sourceUrl=None, fps=fps), name=str(folder / "jobs.jsonl"))
        assert run(["bulk", str(folder / "jobs.jsonl"), "--sandbox", "--job-id-only", "--quiet"]) == 0
        ids.append(capsys.readouterr().out.strip())
        assert run(["status", ids[-1], "--sandbox", "--field", "externalId"]) == 0
        assert capsys.readouterr().out == "clip-1\n"
        assert names_in(folder) == ["jobs.jsonl"]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


async def more_keys(sandbox: Sandbox) -> tuple[str, str]:
    """Return another key of the sandbox's own account, and one of another account."""

    async def get_token() -> str:
        return (await client.login({"email": sandbox.email, "password": sandbox.password})).access_token or ""

    async with sandbox.client(get_token=get_token) as client:
        new = await client.create_api_key({"name": "new"})
    _, others = await sandbox.add_account("other@example.com", "other-password", tokens=1_000)
    assert new.key is not None
    return new.key, others


def test_answers_to_another_key_are_not_taken_for_this_account_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        anyio.from_thread.start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(Sandbox(seed=1)) as service,
        portal.wrap_async_context_manager(serve(service)) as base_url,
    ):
        new, others = portal.call(more_keys, service)
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", service.api_key)
        write(named(1))
        assert run(["bulk", "jobs.jsonl", "--quiet"]) == 0
        write(named(1), named(2))
        seen = len(service.requests)
        for key in (new, others):
            monkeypatch.setenv("CONVERTRILO_API_KEY", key)
            capsys.readouterr()
            assert run(["bulk", "jobs.jsonl", "--confirm"]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert "the journal jobs.jsonl.db was last used with another API key at 20" in err
            assert "If they do, repeat the command with --journal jobs.jsonl.db: no job is created twice" in err
            assert key not in err
        assert len(service.requests) == seen
        monkeypatch.setenv("CONVERTRILO_API_KEY", others)
        assert run(["bulk", "jobs.jsonl", "--journal", "other.db", "--quiet"]) == 0
        monkeypatch.setenv("CONVERTRILO_API_KEY", new)
        assert run(["bulk", "jobs.jsonl", "--journal", "jobs.jsonl.db", "--quiet"]) == 0
        accounts = [(job.external_id, job.account == service.account_id) for job in service.jobs]
        assert sorted(accounts) == [("clip-1", False), ("clip-1", True), ("clip-2", False), ("clip-2", True)]


def test_of_a_journal_of_another_service_that_is_said_first(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(named(1))
    assert run(["bulk", "jobs.jsonl", "--quiet"]) == 0
    monkeypatch.setenv("CONVERTRILO_API_KEY", "another")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", "https://convertrilo.test")
    assert run(["bulk", "jobs.jsonl"]) == 2
    assert "the client uses https://convertrilo.test; use another file. Nothing was sent." in capsys.readouterr().err


def test_without_a_journal_nothing_is_sent(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    write(named(1))
    Path("jobs.jsonl.db").mkdir()
    assert run(["bulk", "jobs.jsonl"]) == 2
    assert "jobs.jsonl.db cannot be used: it cannot be opened; its directory must" in capsys.readouterr().err
    assert service.jobs == []


# ---- stdin


def test_from_stdin_and_only_to_estimate(service: Sandbox, tmp_path: Path) -> None:
    done = convertrilo("bulk", "-", "--dry-run", cwd=tmp_path, stdin=json.dumps(JOB))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 would be created, 0 failed; ")
    assert service.jobs == []


def test_from_stdin_every_line_is_a_job_however_many_there_are(service: Sandbox, tmp_path: Path) -> None:
    lines = [json.dumps(named(number, metadata={"about": "x" * 200})) for number in range(1200)]
    lines[700] = "{"
    done = convertrilo("bulk", "-", "--journal", "run.db", "--json", cwd=tmp_path, stdin="\n".join(lines))
    assert done.returncode == 1, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    assert sorted(each["line"] for each in results) == list(range(1, 1201))
    assert [each["line"] for each in results if "error" in each] == [701]
    assert len(service.jobs) == 1199


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_line_that_has_arrived_is_submitted_and_a_signal_ends_what_waits_for_more(
    end: signal.Signals, service: Sandbox, tmp_path: Path
) -> None:
    command = [*COMMAND, "bulk", "-", "--confirm", "--json", "--journal", "run.db"]
    lines = [json.dumps(named(number)).encode() + b"\n" for number in range(3)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for number, piece in enumerate((lines[0], lines[1] + lines[2][:10])):
            process.stdin.write(piece)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["externalId"] == f"clip-{number}"
        process.send_signal(end)
        assert process.wait() == 130  # while stdin is open
        guard.cancel()
        assert process.stdout.read() == b""
        assert process.stderr.read().decode().splitlines()[-1] == (
            "convertrilo: interrupted; 2 jobs are submitted; repeat the command to continue, no job is created twice"
        )
    done = subprocess.run(command, cwd=tmp_path, input=b"".join(lines), stdout=pipe, timeout=60, check=True)
    assert [json.loads(line)["jobId"] for line in done.stdout.splitlines()] == [job.id for job in service.jobs]
    service.assert_no_duplicates()


def test_what_was_sent_together_goes_out_again_though_its_lines_arrive_apart(service: Sandbox, tmp_path: Path) -> None:
    command = [*COMMAND, "bulk", "-", "--confirm", "--json", "--journal", "run.db"]
    pipe = subprocess.PIPE
    urls = [f"{URL}?X-Amz-Credential=of-{number}&X-Amz-Signature=ab" for number in range(4)]
    lines = [json.dumps(named(number, sourceUrl=url)).encode() + b"\n" for number, url in enumerate(urls)]
    service.faults.lose_response("createJobsBulk")
    service.faults.stall("createJobsBulk")
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdin is not None
        process.stdin.write(b"".join(lines))
        process.stdin.close()
        while not any(each.fault == "stall" for each in service.requests):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        guard.cancel()
    assert len(service.jobs) == 4
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"".join(lines[:2]) + json.dumps(named(5)).encode() + b"\n")
        process.stdin.flush()
        results = [json.loads(process.stdout.readline())]
        while results[-1]["externalId"] != "clip-5":  # after which the first two lines are not waited for any more
            results.append(json.loads(process.stdout.readline()))
        process.stdin.write(b"".join(lines[2:]))
        process.stdin.close()
        results += map(json.loads, process.stdout)
        assert process.wait() == 0, results
        guard.cancel()
    assert sorted((each["line"], each["externalId"], each["jobId"]) for each in results) == [
        (line, f"clip-{number}", service.assert_created_once(external_id=f"clip-{number}").id)
        for line, number in ((1, 0), (2, 1), (3, 5), (4, 2), (5, 3))
    ]
    service.assert_no_duplicates()


def test_stdin_that_cannot_be_read_is_said_to_be(service: Sandbox, tmp_path: Path) -> None:
    command = [*COMMAND, "bulk", "-", "--dry-run"]
    with (tmp_path / "out").open("wb") as only_written:
        done = subprocess.run(
            command, cwd=tmp_path, stdin=only_written, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "convertrilo: -: cannot be read: Bad file descriptor\n"
    assert service.jobs == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_standard_stream_that_is_closed_is_as_if_it_were_empty(closed: str, service: Sandbox, tmp_path: Path) -> None:
    command = f'"$@" bulk - --dry-run {closed}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND],
        cwd=tmp_path,
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert ("0 would be created" in done.stdout) is (closed != ">&-")
    assert ("submitting" in done.stderr) is (closed != "2>&-")
    assert service.jobs == []


# ---- interrupted, and what is not right


@pytest.mark.parametrize("end", [signal.SIGINT, None])
def test_interrupted_it_is_run_again_and_makes_no_job_twice(
    end: signal.Signals | None, service: Sandbox, tmp_path: Path
) -> None:
    service.faults.lose_response("createJobsBulk")
    service.faults.stall("createJobsBulk")
    write(*map(named, range(5)))
    command = ["bulk", "jobs.jsonl", "--confirm", "--wait", "--journal", "run.db"]
    terminal = Terminal(*command, cwd=tmp_path)
    terminal.wait_until(lambda: any(each.fault == "stall" for each in service.requests))
    if end is None:
        terminal.close()
        assert terminal.ended() == (130, "")
    else:
        terminal.process.send_signal(end)
        assert terminal.end() == (130, "")
        assert "repeat the command to continue, no job is created twice" in " ".join(terminal.shown.split())
    assert convertrilo(*command, cwd=tmp_path).stdout.startswith("5 submitted, 5 succeeded, 0 failed")
    assert len(service.jobs) == 5
    service.assert_no_duplicates()


WRONG = [
    (["none.jsonl"], 2, "there is no file none.jsonl"),
    (["-"], 2, "stdin has no default journal: name one with --journal"),
    (["jobs.jsonl", "--wait"], 2, "--wait would wait forever without --confirm"),
    (["jobs.jsonl", "--json", "--job-id-only"], 2, "exclude each other"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG)
def test_what_is_not_right_is_one_line(
    arguments: list[str], code: int, says: str, service: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    write(named(1))
    assert run(["bulk", *arguments]) == code
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)
    assert service.jobs == []
