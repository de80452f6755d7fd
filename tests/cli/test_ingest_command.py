"""`convertrilo ingest`: a folder on a real S3 server, interrupted in every way, and gone on with to a correct end."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from cli_help import Terminal, convertrilo
from object_store import ObjectStore
from support import names_in

from convertrilo.cli.app import run
from convertrilo.cli.ingest_flow import IngestOptions
from convertrilo.sandbox import Sandbox, serve_in_thread

SECRET = "moto-takes-any-secret"
COUNT = 12


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore, tmp_path: Path) -> Iterator[Sandbox]:
    """The service, and the credentials of the S3 server, in the environment."""
    sandbox = Sandbox(seed=1, allow_private_sources=True)
    with serve_in_thread(sandbox) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_access_key)
        monkeypatch.chdir(tmp_path)
        yield sandbox


@pytest.fixture
def folder(object_store: ObjectStore) -> str:
    """A folder of twelve videos, and what is none."""
    videos = {f"films/{number:02}.mp4": str(number).encode() for number in range(COUNT)}
    return f"s3://{object_store.bucket(**videos, **{'films/notes.txt': b'', 'other/a.mp4': b''})}/films/"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_video_is_encoded_once_and_the_summary_says_so(service: Sandbox, folder: str, tmp_path: Path) -> None:
    command = ("ingest", folder, "--codec", "av1", "--resolution", "720p", "--journal", "run.db")
    estimate = convertrilo(*command, "--dry-run", "--json", "--report", "dry.csv", cwd=tmp_path)
    assert (estimate.returncode, service.jobs) == (0, []), estimate.stderr
    assert json.loads(estimate.stdout)["estimated"] == sum(
        float(each["estimate"]) for each in rows(tmp_path / "dry.csv")
    )
    assert estimate.stderr.splitlines()[-1].startswith(
        f"ingesting 100 % {COUNT} listed, {COUNT} submitted, 0 succeeded"
    )
    terminal = Terminal(*command, "--wait", "--report", "out.csv", "--metadata", "from=here", cwd=tmp_path)
    code, out = terminal.end()
    assert code == 0, terminal.shown
    for each in ("12 listed", "12 submitted", "12 succeeded", "0 failed", "100%", "files/s", "0:00:0"):
        assert each in terminal.shown
    assert "listed: 12\npassedOver: 1\nsubmitted: 12\nsucceeded: 12\nfailed: 0\n" in out
    assert {each["key"]: each["job_id"] for each in rows(tmp_path / "out.csv")} == {
        f"films/{number:02}.mp4": job.id for number, job in enumerate(service.jobs)
    }
    assert {job.settings["codec"] for job in service.jobs} == {"av1"}
    assert {tuple((job.metadata or {}).items()) for job in service.jobs} == {(("from", "here"),)}
    again = convertrilo(*command, "--metadata", "from=here", "--json", "--quiet", cwd=tmp_path)
    assert json.loads(again.stdout)["succeeded"] == COUNT
    assert (again.stderr, len(service.jobs)) == ("", COUNT)
    assert SECRET.encode() not in b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert SECRET not in "".join([out, terminal.shown, again.stdout])


@pytest.mark.parametrize(
    ("end", "moment"),
    [
        (signal.SIGINT, "createJobsBulk"),
        (signal.SIGTERM, "createJobsBulk"),
        (signal.SIGTERM, "bulkStatus"),
        (None, "createJobsBulk"),
        (None, "bulkStatus"),
    ],
)
def test_interrupted_it_is_gone_on_with_to_a_correct_end(
    end: signal.Signals | None, moment: str, service: Sandbox, folder: str, tmp_path: Path
) -> None:
    if moment == "createJobsBulk":
        service.faults.lose_response(moment)  # the jobs are there, and nobody has heard of it
    service.faults.stall(moment)
    command = ["ingest", folder, "--journal", "run.db", "--wait", "--report", "out.csv"]
    terminal = Terminal(*command, cwd=tmp_path)
    terminal.read_until("12 listed")
    terminal.wait_until(lambda: any(each.fault == "stall" for each in service.requests))
    if end is None:
        terminal.close()
        code, out = terminal.ended()
    else:
        terminal.process.send_signal(end)
        code, out = terminal.end()
        said = " ".join(terminal.shown.split())
        assert "repeat the command to continue: run.db records what is done" in said
        assert ("12 submitted" if moment == "bulkStatus" else "0 submitted") in said
    assert (code, out) == (130, "")
    assert not (tmp_path / "out.csv").exists()
    done = convertrilo(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["listed"], summary["submitted"], summary["succeeded"], summary["unfinished"]) == (12, 12, 12, 0)
    assert sorted(each["job_id"] for each in rows(tmp_path / "out.csv")) == sorted(job.id for job in service.jobs)
    assert len(service.jobs) == COUNT
    service.assert_no_duplicates()


def test_what_goes_wrong_with_one_is_told_by_the_exit_code(
    service: Sandbox, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.fail_jobs("no picture")
    assert run(["ingest", folder, "--journal", "run.db", "--wait", "--field", "failed", "--report", "out.jsonl"]) == 1
    assert capsys.readouterr().out == "1\n"
    assert sum("no picture" in line for line in Path("out.jsonl").read_text().splitlines()) == 1
    assert run(["ingest", folder, "--journal", "run.db", "--from-scratch", "--max-files", "3", "--quiet"]) == 0
    assert len(service.jobs) == COUNT + 3


def test_what_may_have_a_job_is_counted_on_its_own(
    service: Sandbox, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["ingest", folder, "--journal", "lost.db", "--quiet"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another secret")
    assert run(["ingest", folder, "--journal", "run.db", "--report", "out.csv", "--json", "--quiet"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["listed"], summary["submitted"], summary["refused"], summary["unknown"]) == (COUNT, 0, 0, COUNT)
    assert [each["status"] for each in rows(Path("out.csv"))] == ["unknown"] * COUNT
    assert len(service.jobs) == COUNT


def test_a_report_that_cannot_be_written_is_found_out_before_anything_is_sent(
    service: Sandbox, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.csv"
    old.write_text("of the last run")
    old.with_name("old.csv.part").mkdir()
    long = "x" * 250 + ".csv"
    os.mkfifo("pipe.csv")
    reports = {old.name: "Is a directory", long: "File name too long", "pipe.csv": "it is not a regular file"}
    reports[""] = "Is a directory"
    for report, why in reports.items():
        assert run(["ingest", folder, "--journal", "run.db", "--report", report, "--quiet"]) == 2
        assert f"{report}: cannot be written: {why}\n" in capsys.readouterr().err
    assert old.read_text() == "of the last run"
    assert (service.requests, names_in(tmp_path)) == ([], ["old.csv", "old.csv.part", "pipe.csv"])


def test_a_report_that_fails_at_the_end_says_how_to_go_on(
    service: Sandbox, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "out.csv.part"
    part.symlink_to("/dev/full")
    command = ["ingest", folder, "--journal", "run.db", "--report", "out.csv", "--quiet"]
    assert run(command) == 2
    said = capsys.readouterr().err
    assert "out.csv: cannot be written: No space left on device; 12 objects are listed and 12 submitted; " in said
    assert "repeat the command to continue: run.db records what is done" in said
    assert not part.is_symlink()
    assert run(command) == 0
    assert [each["status"] for each in rows(tmp_path / "out.csv")] == ["submitted"] * COUNT
    assert (len(service.jobs), part.exists()) == (COUNT, False)


def test_what_to_do_is_said_in_words_that_the_command_has(
    service: Sandbox, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["ingest", folder, "--journal", "run.db", "--quiet"]
    assert run(command) == 0
    output = ["--output-s3-bucket", "b"]
    for more, what in ((["--codec", "av1"], "begin from scratch"), (output, "is for on-demand jobs")):
        assert run([*command, *more]) == 2
        said = capsys.readouterr().err
        assert what in said
        assert "=True" not in said
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    assert run(command) == 2
    said = capsys.readouterr().err
    assert "or list a public bucket as anonymous" in said
    assert not [each for each in ("=True", "S3FolderSource", "access_key_id") if each in said]


def test_a_share_and_a_choice_of_a_folder(service: Sandbox, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in ("0/2", "1/2"):
        assert run(["ingest", folder, "--journal", f"{shard[0]}.db", "--shard", shard, "--quiet"]) == 0
    assert len(service.jobs) == COUNT
    choice = ["--include", "*/0?.mp4", "--exclude", "*5.mp4", "--min-size", "1", "--modified-since", "2020-01-01"]
    assert run(["ingest", folder, "--journal", "c.db", *choice, "--dry-run", "--field", "listed"]) == 0
    assert capsys.readouterr().out == "9\n"


def test_a_small_folder_may_be_the_services_to_list(
    service: Sandbox, folder: str, object_store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    there = object_store.bucket()
    output = ["--output-s3-bucket", there, "--output-s3-endpoint", object_store.endpoint]
    options = ["--max-files", "2", "--wait", "--json"]  # more are asked for less often
    assert run(["ingest", folder, "--journal", "run.db", "--on-demand", *output, *options]) == 0
    assert json.loads(capsys.readouterr().out)["succeeded"] == 2
    assert {job.kind for job in service.jobs} == {"ondemand"}
    assert len(object_store.keys(there)) == 2


def test_in_the_sandbox_of_the_command_it_really_encodes_and_goes_on(
    service: Sandbox, object_store: ObjectStore, tmp_path: Path
) -> None:
    from cli_help import CLIP

    bucket = object_store.bucket(**{"a/clip.mp4": CLIP.read_bytes(), "a/none.mp4": b"no video"})
    command = ("ingest", f"s3://{bucket}/a", "--resolution", "480p", "--journal", "run.db", "--sandbox")
    assert convertrilo(*command, cwd=tmp_path).returncode == 0  # they are queued, and go on when the next one runs
    done = convertrilo(*command, "--wait", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["submitted"], summary["succeeded"], summary["failed"]) == (2, 1, 1)
    assert service.jobs == []


WRONG = [
    (["s3://b/x"], 2, "Missing option '--journal'"),
    (["films", "--journal", "r.db"], 2, "s3://"),
    (["s3://bucket/x", "--journal", "r.db", "--report", "none/out.csv"], 2, "there is no folder none"),
    (["s3://bucket/x", "--journal", "r.db", "--shard", "3/2"], 2, "must be i/n"),
    (["s3://missing-bucket-1/x", "--journal", "r.db"], 4, "repeat the command to continue"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), WRONG)
def test_what_is_not_right_is_one_line(
    arguments: list[str], code: int, says: str, service: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["ingest", *arguments, "--quiet"]) == code
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)
    assert set(names_in(tmp_path)) <= {"r.db"}


def test_the_options_hide_the_credentials_of_the_output() -> None:
    options: dict[str, Any] = dict.fromkeys(each.name for each in attrs.fields(IngestOptions))
    shown = repr(IngestOptions(**{**options, "output_s3": {"secretAccessKey": SECRET}}))
    assert "journal_file" in shown
    assert SECRET not in shown
