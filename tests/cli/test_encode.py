"""`convertrilo encode` as people run it: in a process of its own, with a sandbox that really encodes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from cli_help import CLIP, COMMAND, Terminal, convertrilo
from loopback import web_server
from support import encoders_of, lives, names_in

from convertrilo.cli.app import COMMANDS, run
from convertrilo.sandbox import Sandbox, serve_in_thread
from convertrilo.sandbox.encoding.probe import MediaInfo, probe


def media(path: Path) -> MediaInfo:
    return anyio.run(probe, path)


# ---- in the sandbox, with the real encoder


def test_a_file_is_encoded_on_this_machine(tmp_path: Path) -> None:
    done = convertrilo("encode", CLIP, "--sandbox", "--resolution", "480p", "-o", "out.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    info = media(tmp_path / "out.mp4")
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 854, 480, 30)
    assert info.duration == pytest.approx(5, abs=0.5)
    assert done.stdout.startswith("out.mp4: ")
    assert "h264 854x480, 5." in done.stdout
    assert done.stdout.count("\n") == 1
    steps = dict.fromkeys(line.split()[0] for line in done.stderr.splitlines())
    assert list(steps) == ["uploading", "encoding", "downloading"]
    assert names_in(tmp_path) == ["out.mp4"]


def test_with_json_stdout_holds_nothing_else(tmp_path: Path) -> None:
    arguments = ("--sandbox", "--codec", "av1", "--resolution", "480p", "--fps", "24", "--json", "--quiet")
    done = convertrilo("encode", CLIP, *arguments, "-o", "out.webm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["output"] == "out.webm"
    assert facts["size"] == (tmp_path / "out.webm").stat().st_size
    assert (facts["codec"], facts["width"], facts["height"]) == ("av1", 854, 480)
    assert facts["durationSec"] == pytest.approx(5, abs=0.5)
    assert facts["tookSec"] > 0
    assert facts["jobId"]
    assert done.stderr == ""
    info = media(tmp_path / "out.webm")
    assert (info.codec, info.fps) == ("av1", 24)
    assert "webm" in info.format


@pytest.fixture
def web() -> Iterator[str]:
    """A web server that has the clip."""
    with web_server(CLIP.parent) as url:
        yield url


def test_a_url_is_encoded_on_demand(tmp_path: Path, web: str) -> None:
    done = convertrilo(
        "encode",
        f"{web}/{CLIP.name}",
        "--sandbox",
        "--resolution",
        "480p",
        "--priority",
        "high",
        "-o",
        "out.mp4",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path) == ["out.mp4"]
    assert media(tmp_path / "out.mp4").height == 480


def bad_files(folder: Path) -> dict[str, Path]:
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(CLIP.read_bytes()[:300_000])
    return {each.stem: each for each in folder.iterdir()}


@pytest.mark.parametrize(("name", "says"), [("text", "not a video"), ("empty", "0 bytes"), ("cut", "truncated")])
def test_a_file_that_is_no_video_fails_and_leaves_nothing(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = bad_files(tmp_path / "in")[name]
    done = convertrilo("encode", source, "--sandbox", "--quiet", "-o", tmp_path / "out.mp4", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("convertrilo: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert names_in(tmp_path) == ["in"]


def test_what_the_service_refuses_is_another_matter_than_a_job_that_fails(tmp_path: Path) -> None:
    done = convertrilo("encode", CLIP, "--sandbox", "--quiet", "-o", "out.webm", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr == "convertrilo: container webm cannot carry h264; it carries av1 (400 invalid_body)\n"


def test_interrupted_it_leaves_no_ffmpeg_and_goes_on_when_run_again(tmp_path: Path, home: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    arguments = [
        "encode",
        str(CLIP),
        "--sandbox",
        "--resolution",
        "480p",
        "--preset",
        "slow",
        "-o",
        "out.mp4",
        "--json",
    ]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("encoding"):
        assert line, "it ended early"
    children: set[int] = set()
    while not children:
        assert process.poll() is None
        children = encoders_of(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    said = re.fullmatch(
        r"convertrilo: interrupted; job (\S+) is kept: repeat the command with --idempotency-key (\S+) to continue",
        err.splitlines()[-1],
    )
    assert said is not None, err
    assert not [each for each in children if lives(each)]
    assert (names_in(scratch), names_in(tmp_path)) == ([], ["tmp"])
    done = convertrilo(*arguments, "--idempotency-key", said[2], cwd=tmp_path)
    assert json.loads(done.stdout)["jobId"] == said[1], done.stderr
    assert media(tmp_path / "out.mp4").height == 480
    assert list((home / "state").glob("convertrilo/sandbox/files/out/*")) != []


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    terminal = Terminal("encode", str(CLIP), "--sandbox", "--resolution", "480p", "-o", "out.mp4", cwd=tmp_path)
    code, out = terminal.end()
    assert code == 0, terminal.shown
    assert out.startswith("out.mp4: ")
    for each in ("uploading", "encoding", "downloading", "━", "100%", "B/s", " %/s", "0:00:0"):
        assert each in terminal.shown


# ---- against a service on a port, with the instant encoder


URL = "https://example.com/in.mp4"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(seed=1)
    with serve_in_thread(sandbox) as sandbox.base_url:
        yield sandbox


@pytest.fixture
def service(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    """The sandbox as the real service: in the environment."""
    monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
    monkeypatch.setenv("CONVERTRILO_BASE_URL", sandbox.base_url)
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLIP, "in.mp4")
    return sandbox


def test_without_sandbox_it_speaks_to_the_service_and_passes_all_options_on(
    service: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "codec": "av1",
        "resolution": "720p",
        "fps": 24,
        "preset": "slow",
        "bitrate-tier": "high",
        "quality": "best",
        "passes": 2,
        "external-id": "holiday",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    given += ["--metadata", "from=here", "--metadata", '{"album": {"year": 2026}}']
    code = run(["encode", "in.mp4", *given, "-o", "out.mkv", "--json"])
    assert code == 0, capsys.readouterr().err
    (job,) = service.jobs
    assert job.settings["container"] == "mkv"
    assert job.settings["bitrateTier"] == "high"
    for name in ("codec", "resolution", "fps", "preset", "quality", "passes"):
        assert job.settings[name] == options[name]
    assert (job.kind, job.external_id, job.source_filename) == ("upload", "holiday", "in.mp4")
    assert job.metadata == {"from": "here", "album": {"year": 2026}}
    assert json.loads(capsys.readouterr().out)["jobId"] == job.id


def test_the_defaults_are_sensible(service: Sandbox) -> None:
    assert run(["encode", "in.mp4", "--quiet"]) == 0
    (job,) = service.jobs
    wanted = {"codec": "h264", "resolution": "1080p", "fps": 30, "container": "mp4"}
    assert {name: job.settings[name] for name in wanted} == wanted
    assert Path("in.h264.mp4").exists()


@pytest.mark.parametrize("same", [["--external-id", "holiday"], ["--idempotency-key", "k-1"]])
@pytest.mark.parametrize("source", ["in.mp4", URL])
def test_the_same_name_twice_is_the_same_job(source: str, same: list[str], service: Sandbox) -> None:
    for name in ("first.mp4", "second.mp4"):
        assert run(["encode", source, *same, "-o", name, "--quiet"]) == 0
    assert len(service.jobs) == 1
    assert Path("first.mp4").read_bytes() == Path("second.mp4").read_bytes()


def test_a_url_is_only_sent_unless_it_is_waited_for(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--priority", "high", "--webhook", "https://hooks.example/in", "--output-expiry", "7200"]
    assert run(["encode", URL, *options, "--metadata", "a=b", "--json"]) == 0
    created = json.loads(capsys.readouterr().out)
    (job,) = service.jobs
    assert (created["jobId"], created["status"], created["webhook"]) == (job.id, "queued", "https://hooks.example/in")
    assert (job.kind, job.high_priority, job.output_expiry, job.metadata) == ("ondemand", True, 7200, {"a": "b"})
    assert names_in(Path()) == ["in.mp4"]
    assert run(["encode", URL, "--wait", "--poll-interval-ms", "50", "--timeout-ms", "60000", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["status"], done["progress"], done["destination"]["type"]) == ("success", 100, "cdn")
    assert names_in(Path()) == ["in.mp4"]


@pytest.mark.parametrize(
    ("option", "field"),
    [("--job-id-only", "jobId"), ("--download-url-only", "downloadUrl"), ("--field=sourceFilename", "sourceFilename")],
)
def test_one_field_alone_is_for_scripts(
    option: str, field: str, service: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["encode", URL, "--wait", "--quiet", option]) == 0
    out, err = capsys.readouterr()
    (job,) = service.jobs
    assert run(["status", job.id, "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)[field].partition("?")[0]
    assert out.partition("?")[0].strip() == wanted
    assert (out.count("\n"), err) == (1, "")


def test_a_field_that_is_none_is_said_to_be(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["balance", "--field", "availabel"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (
        "\n",
        "The result has no field availabel; its fields are available, reserved, trialExpiresAt, trialGrantRemaining.\n",
    )


def test_what_only_a_job_of_its_own_can_be_told_makes_one(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["encode", URL, "--optimize", "vmaf", "--vmaf-target", "93", "--wait", "--json"]) == 0
    (job,) = service.jobs
    assert json.loads(capsys.readouterr().out)["jobId"] == job.id
    assert (job.kind, job.settings["optimize"], job.settings["vmafTarget"], job.status) == (
        "url",
        "vmaf",
        93,
        "success",
    )


def test_an_output_in_s3_is_told_to_the_service_and_its_secret_to_nobody_else(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERTRILO_OUTPUT_S3_SECRET_ACCESS_KEY", "a-secret-of-s3")
    place = {
        "bucket": "bucket",
        "key": "k.mp4",
        "region": "eu",
        "endpoint": "https://127.0.0.1:9",
        "access-key-id": "AK",
    }
    place["access-key-id"] = "AK"
    options = [f"--output-s3-{name}={value}" for name, value in place.items()]
    assert run(["encode", URL, *options, "--output-s3-force-path-style"]) == 3  # the sandbox does not go to such places
    said = "".join(capsys.readouterr())
    assert "private_ip_blocked" in said
    assert "a-secret-of-s3" not in said


def test_quiet_is_quiet(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["encode", "in.mp4", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_job_that_fails_says_why(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    service.fail_jobs("the picture is upside down")
    assert run(["encode", "in.mp4", "--quiet", "-o", "out.mp4"]) == 1
    assert capsys.readouterr().err.endswith("failed: the picture is upside down\n")
    assert not Path("out.mp4").exists()


def test_an_interrupted_upload_is_gone_on_with_or_given_up(
    service: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.faults.stall("putObject")
    process = subprocess.Popen([*COMMAND, "encode", "in.mp4", "-o", "out.mp4"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("uploading")
    while not any(each.fault == "stall" for each in service.requests):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    (job,) = service.jobs
    assert process.returncode == 130
    key = err.partition("--idempotency-key ")[2].partition(" ")[0]
    assert err.splitlines()[-1] == (
        f"convertrilo: interrupted; job {job.id} is kept: repeat the command with --idempotency-key {key} to continue, "
        f"or convertrilo cancel {job.id} to give it up"
    )
    assert names_in(tmp_path) == ["in.mp4"]
    assert run(["encode", "in.mp4", "-o", "out.mp4", "--idempotency-key", key]) == 0
    assert [each.status for each in service.jobs] == ["success"]


def test_too_few_tokens_and_a_key_of_another_request_are_told_apart(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fps, code in ((30, 0), (25, 3)):
        assert run(["encode", URL, "--fps", str(fps), "--idempotency-key", "k", "--quiet"]) == code
    err = capsys.readouterr().err
    assert (
        "(409 idempotency_conflict); this idempotency key or external id was used for a different request before" in err
    )
    with serve_in_thread(poor := Sandbox(tokens=0)) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", poor.api_key)
        assert run(["encode", URL]) == 6
    err = capsys.readouterr().err
    assert re.search(r"\(402 insufficient_tokens\); \d+ tokens are required, 0 are available\n", err), err


def test_a_wait_has_an_end(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_in_thread(slow := Sandbox(encode_seconds=3600)) as base_url:
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", slow.api_key)
        assert run(["encode", "in.mp4", "--quiet", "--timeout-ms", "500", "--external-id", "e"]) == 4
        (job,) = slow.jobs
    said = capsys.readouterr().err
    assert "running after 0.5 seconds; " in said
    assert said.endswith(f"job {job.id} is kept: repeat the command to continue\n")


# ---- what is said before anything is done

NAMES = ["in.mp4", "out.mp4.part"]
WRONG: list[tuple[list[str], str]] = [
    (["encode"], "Missing argument 'SOURCE'"),
    (["encode", "none.mp4"], "there is no file none.mp4"),
    (["encode", "."], ". is a folder"),
    (["encode", ""], ". is a folder"),
    (["encode", "x" * 300], "File name too long"),
    (["encode", "in.mp4", "-o", "x" * 300], "File name too long"),
    (["encode", "in.mp4", "--codec", "vp9"], "'vp9' is not one of 'h264', 'h265', 'av1'"),
    (["encode", "in.mp4", "--fps", "0"], "0 is not in the range"),
    (["encode", "in.mp4", "--timeout-ms", "0"], "0 is not in the range"),
    (["encode", "in.mp4", "--json", "--job-id-only"], "exclude each other"),
    (["encode", "in.mp4", "-o", "none/out.mp4"], "there is no folder none"),
    (["encode", "in.mp4", "-o", ""], ". is not a regular file"),
    (["encode", "in.mp4", "-o", "in.mp4"], "in.mp4 is the source itself"),
    (["encode", "in.mp4", "-o", "./in.mp4"], "in.mp4 is the source itself"),
    (["encode", "out.mp4.part", "-o", "out.mp4"], "out.mp4.part is the source itself"),
    (["encode", "in.mp4", "-o", "out.mkv", "--container", "mp4"], "out.mkv ends in .mkv, but --container is mp4"),
    (["encode", "in.mp4", "--priority", "high", "--output-s3-bucket", "b"], "--priority, --output-s3-…: only for URLs"),
    (["encode", URL, "--passes", "2", "--webhook", URL], "--passes cannot be given together with --webhook"),
    (
        ["encode", URL, "--output-s3-bucket", "b", "--output-s3-key", "k", "-o", "out.mp4"],
        "the output has one destination",
    ),
    (["encode", URL, "--output-s3-key", "k"], "outputS3.bucket: is required"),
    (["encode", "https://a.test/in.mp4", "--resolution", "4320p"], "resolution"),
    (["encode", "ftp://a.test/in.mp4"], "only http and https"),
    (["encode", "in.mp4", "--metadata", "nothing"], "KEY=VALUE or a JSON object"),
    (["encode", "in.mp4", "--metadata", "{"], "not a JSON object"),
    (["encode", "in.mp4", "--external-id", "x" * 256], "externalId: must have at most 255"),
    (["encode", "in.mp4"], "no API key: log in with convertrilo login, set CONVERTRILO_API_KEY, or use this"),
    (["unknown"], "No such command 'unknown'"),
    (["encode", "in.mp4", "--unknown"], "No such option"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), WRONG, ids=lambda value: " ".join(value)[:40] if value is not str else ""
)
def test_what_is_not_right_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVERTRILO_API_KEY", raising=False)
    for name in NAMES:
        Path(name).write_bytes(b"0")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("convertrilo: ")
    assert err.count("\n") == 1
    assert says in err
    assert out == ""
    assert names_in(tmp_path) == NAMES


def test_where_nothing_can_be_written_nothing_is_encoded(
    service: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    assert run(["encode", "in.mp4", "-o", "pipe"]) == 2
    assert "pipe is not a regular file" in capsys.readouterr().err
    assert Path("pipe").is_fifo()
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    assert run(["encode", "in.mp4"]) == 2
    assert "in.h264.mp4 cannot be written: permission denied" in capsys.readouterr().err
    assert service.jobs == []


def test_a_result_that_cannot_be_printed_names_its_job(service: Sandbox) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "encode", URL], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    (job,) = service.jobs
    says = f"job {job.id} was created: convertrilo status {job.id} shows it"
    assert (done.returncode, done.stderr) == (2, f"convertrilo: stdout: No space left on device; {says}\n")


def test_a_name_that_is_no_text_is_one_all_the_same(service: Sandbox) -> None:
    name = os.fsdecode(b"in-\xe9.mp4")
    Path("in.mp4").rename(name)
    assert run(["encode", name, "-o", os.fsdecode(b"out-\xe9.mp4"), "--quiet"]) == 0
    assert [each.source_filename for each in service.jobs] == ["in-\ufffd.mp4"]
    assert {os.fsencode(each) for each in Path().iterdir()} == {b"in-\xe9.mp4", b"out-\xe9.mp4"}


def test_an_empty_external_id_names_no_job(
    sandbox: Sandbox, service: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.faults.status("createJob", 503, headers={"retry-after": "86400"})
    assert run(["encode", "in.mp4", "--external-id", ""]) == 4
    assert "repeat the command with --idempotency-key cli-" in capsys.readouterr().err


# ---- help, and what is missing


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["encode", "--help"], ["--version"]])
def test_help_goes_to_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == (0 if arguments else 2)
    out, err = capsys.readouterr()
    assert err == ""
    assert "convertrilo" in out
    if arguments != ["--version"]:
        assert "130  interrupted" in out
        assert "  0    success" in out


def test_every_command_is_there() -> None:
    for name in COMMANDS:
        assert run([name, "--help"]) == 0


def test_help_imports_no_client() -> None:
    script = "import sys; from convertrilo.cli.app import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not {"httpx", "attrs", "rich", "convertrilo.client", "convertrilo.models"} & loaded


def test_the_help_of_a_command_imports_no_client_and_no_flow() -> None:
    script = (
        "import sys; from convertrilo.cli.app import run; "
        "[run([name, '--help']) for name in sys.argv[1:]]; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *COMMANDS], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "convertrilo.cli.commands.encode" in loaded
    assert not {"httpx", "anyio", "rich", "convertrilo.client"} & loaded
    assert not [name for name in loaded if name.startswith("convertrilo.cli.") and name.endswith("_flow")]


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        ("click", ["--help"], 'pip install "convertrilo[cli]"'),
        ("platformdirs", ["balance"], 'pip install "convertrilo[cli]"'),
        ("botocore.session", ["ingest", "s3://bucket/a", "--journal", "r.db"], 'pip install "convertrilo[s3]"'),
        ("starlette", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
        ("uvicorn", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
        ("imageio_ffmpeg", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    missing: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from convertrilo.cli import main; main()"
    command, environment = [sys.executable, "-c", script, *arguments], {**os.environ, "CONVERTRILO_API_KEY": "k"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert names_in(tmp_path) == []
