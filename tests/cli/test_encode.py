"""`convertrilo encode` as people run it: in a process of its own, with a sandbox that really encodes."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import encoders_of, lives

from convertrilo import errors
from convertrilo.cli.app import COMMANDS, exit_code, run
from convertrilo.sandbox import Sandbox, serve_in_thread
from convertrilo.sandbox.probe import MediaInfo, probe

CLIP = Path(__file__).parents[2] / "examples" / "media" / "big-buck-bunny-5s.mp4"
COMMAND = [sys.executable, "-m", "convertrilo.cli"]


def convertrilo(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("CONVERTRILO_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def media(path: Path) -> MediaInfo:
    return anyio.run(probe, path)


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


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


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that http.server calls it by
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """A web server that has the clip."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(CLIP.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_encoded_on_demand(tmp_path: Path, web: str) -> None:
    done = convertrilo(
        "encode", f"{web}/{CLIP.name}", "--sandbox", "--resolution", "480p", "--priority", "high", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path) == ["big-buck-bunny-5s.h264.mp4"]
    assert media(tmp_path / "big-buck-bunny-5s.h264.mp4").height == 480


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_ffmpeg_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    options = ("--sandbox", "--codec", "av1", "--resolution", "1080p", "--preset", "slow", "-o", "out.mp4")
    process = subprocess.Popen(
        [*COMMAND, "encode", str(CLIP), *options],
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
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "convertrilo: interrupted; the job has ended with the sandbox"
    assert out == ""
    assert not [each for each in children if lives(each)]
    assert names_in(scratch) == []
    assert names_in(tmp_path) == ["tmp"]


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "encode", str(CLIP), "--sandbox", "--resolution", "480p", "-o", "out.mp4"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    while chunk := _read_terminal(ours):
        shown += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("out.mp4: ")
    for each in ("uploading", "encoding", "downloading", "━", "100%"):
        assert each in shown.decode()


def _read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side is closed
        return b""


# ---- against a service on a port, with the instant encoder


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
@pytest.mark.parametrize("source", ["in.mp4", "https://example.com/in.mp4"])
def test_the_same_name_twice_is_the_same_job(source: str, same: list[str], service: Sandbox) -> None:
    for name in ("first.mp4", "second.mp4"):
        assert run(["encode", source, *same, "-o", name, "--quiet"]) == 0
    assert len(service.jobs) == 1
    assert Path("first.mp4").read_bytes() == Path("second.mp4").read_bytes()


def test_quiet_is_quiet(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["encode", "in.mp4", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_job_that_fails_says_why(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    service.fail_jobs("the picture is upside down")
    assert run(["encode", "in.mp4", "--quiet", "-o", "out.mp4"]) == 1
    assert capsys.readouterr().err.endswith("failed: the picture is upside down\n")
    assert not Path("out.mp4").exists()


def test_an_interrupted_upload_cancels_its_job(service: Sandbox, tmp_path: Path) -> None:
    service.faults.stall("putObject", times=None)
    process = subprocess.Popen([*COMMAND, "encode", "in.mp4", "-o", "out.mp4"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("uploading")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    (job,) = service.jobs
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"convertrilo: interrupted; job {job.id} is canceled"
    assert job.status == "canceled"
    assert names_in(tmp_path) == ["in.mp4"]


def test_a_wait_has_an_end(service: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    service.faults.status("jobStatus", 503, times=None)
    assert run(["encode", "in.mp4", "--quiet", "--timeout", "0.5"]) == 4
    assert "after 0.5 seconds" in capsys.readouterr().err


# ---- what is said before anything is done

WRONG: list[tuple[list[str], str]] = [
    (["encode"], "Missing argument 'SOURCE'"),
    (["encode", "none.mp4"], "there is no file none.mp4"),
    (["encode", "."], ". is a folder"),
    (["encode", "in.mp4", "--codec", "vp9"], "'vp9' is not one of 'h264', 'h265', 'av1'"),
    (["encode", "in.mp4", "--fps", "0"], "0 is not in the range"),
    (["encode", "in.mp4", "--timeout", "0"], "0.0 is not in the range"),
    (["encode", "in.mp4", "-o", "none/out.mp4"], "there is no folder none"),
    (["encode", "in.mp4", "-o", "in.mp4"], "in.mp4 is the source itself"),
    (["encode", "in.mp4", "-o", "./in.mp4"], "in.mp4 is the source itself"),
    (["encode", "in.mp4", "-o", "out.mkv", "--container", "mp4"], "out.mkv says mkv, and --container mp4"),
    (["encode", "in.mp4", "--priority", "high"], "--priority is for URLs only"),
    (["encode", "https://a.test/in.mp4", "--passes", "2"], "--passes is for files only"),
    (["encode", "https://a.test/in.mp4", "--resolution", "4320p"], "resolution"),
    (["encode", "ftp://a.test/in.mp4"], "only http and https"),
    (["encode", "in.mp4", "--metadata", "nothing"], "KEY=VALUE or a JSON object"),
    (["encode", "in.mp4", "--metadata", "{"], "no JSON object"),
    (["encode", "in.mp4", "--external-id", "x" * 256], "externalId: must have at most 255"),
    (["encode", "in.mp4"], "no API key: set CONVERTRILO_API_KEY, or encode on this machine with --sandbox"),
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
    Path("in.mp4").write_bytes(b"0")
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("convertrilo: ")
    assert err.count("\n") == 1
    assert says in err
    assert out == ""
    assert names_in(tmp_path) == ["in.mp4"]


API = {"status": 400, "code": "c"}
CODES: list[tuple[errors.ConvertriloError, int]] = [
    (errors.JobFailedError("m", job_id="j"), 1),
    (errors.JobCanceledError("m", job_id="j"), 1),
    (errors.InvalidRequestError("m", status=400, code="probe_failed"), 1),
    (errors.ValidationError("s", []), 2),
    (errors.ConfigurationError("m"), 2),
    (errors.InvalidRequestError("m", status=400, code="invalid_body"), 3),
    (errors.InsufficientTokensError("m", status=402, code="insufficient_tokens"), 3),
    (errors.RateLimitError("m", status=429, code="rate_limit_exceeded"), 3),
    (errors.ServerError("m", status=502, code="http_502"), 4),
    (errors.TransportError("m"), 4),
    (errors.TransferError("m"), 4),
    (errors.WaitTimeoutError("m", job_id="j"), 4),
    (errors.DecodeError("m"), 4),
    (errors.OutcomeUnknownError("m", find_out="f"), 4),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_the_exit_code_tells_the_kind_of_failure(error: errors.ConvertriloError, code: int) -> None:
    assert exit_code(error) == code


# ---- help, and what is missing


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["encode", "--help"], ["--version"]])
def test_help_goes_to_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == (0 if arguments else 2)
    out, err = capsys.readouterr()
    assert err == ""
    assert "convertrilo" in out
    if arguments != ["--version"]:
        assert "130  interrupted" in out
        assert "  0    it worked" in out


def test_every_command_is_there() -> None:
    for name in COMMANDS:
        assert run([name, "--help"]) == 0


def test_help_imports_no_client() -> None:
    script = "import sys; from convertrilo.cli.app import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not {"httpx", "attrs", "rich", "convertrilo.client", "convertrilo.models"} & loaded


@pytest.mark.parametrize(
    ("missing", "arguments", "says"),
    [
        ("click", ["--help"], 'pip install "convertrilo[cli]"'),
        ("starlette", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
        ("uvicorn", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
        ("imageio_ffmpeg", ["encode", str(CLIP), "--sandbox"], 'pip install "convertrilo[sandbox]"'),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    missing: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from convertrilo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert names_in(tmp_path) == []
