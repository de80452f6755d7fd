"""`convertrilo-mcp` as an MCP host runs it: a process of its own, driven by the official client over stdio.

The client is on asyncio and on trio; the server's process is on asyncio, because the sandbox's port is uvicorn's.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psutil
import pytest
from leaks import WATCH
from loopback import web_server
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.types import CallToolResult
from object_store import ObjectStore

from convertrilo._version import __version__
from convertrilo.mcp.app import run
from convertrilo.sandbox import SandboxServer
from convertrilo.sandbox.encoding.probe import probe

CLIP = Path(__file__).parents[2] / "examples" / "media" / "big-buck-bunny-5s.mp4"
COMMAND = [sys.executable, "-m", "convertrilo.mcp"]
ALL_TOOLS = [
    "create_encode_job",
    "get_job_status",
    "wait_for_job",
    "cancel_job",
    "get_token_balance",
    "create_jobs_bulk",
    "ingest_folder",
    "list_pending_operations",
]


@pytest.fixture(scope="module")
def clip() -> Iterator[str]:
    """The URL of the clip, on a web server."""
    with web_server(CLIP.parent) as url:
        yield f"{url}/{CLIP.name}"


def environment(server: SandboxServer | None, **more: str) -> dict[str, str]:
    """Return what the host gives the server to know."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONVERTRILO_")}
    nowhere = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}
    given = {} if server is None else {"CONVERTRILO_API_KEY": server.api_key, "CONVERTRILO_BASE_URL": server.base_url}
    return {**inherited, **nowhere, **given, **more}


def save(file: Path, settings: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(settings))


class Hosted:
    """A server, as its host sees it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        WATCH.look_at_output("a tool", repr(result), None)
        assert not result.is_error, result
        value: dict[str, Any] = result.structured_content
        return value

    async def fail(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments)
        WATCH.look_at_output("a tool", None, repr(result))
        assert result.is_error, result
        value: dict[str, Any] = result.structured_content
        return value


@asynccontextmanager
async def hosted(folder: Path, *options: str, env: dict[str, str], mode: str = "legacy") -> AsyncIterator[Hosted]:
    """Start the server on the journal in a folder, and talk to it; then close its stdin, upon which it ends."""
    parameters = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], "--journal", str(folder / "mcp.db"), *options], env=env
    )
    with (folder / "log").open("a") as errlog, anyio.fail_after(60):
        async with Client(stdio_client(parameters, errlog=errlog), mode=mode) as client:
            yield Hosted(client)
    assert server_in(folder) is None


def server_in(folder: Path) -> psutil.Process | None:
    """Return the process of the server on the journal in a folder, if there is one."""
    path = str(folder / "mcp.db")
    for each in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            if path in each.cmdline():
                return each
    return None


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert content.type == "text"
    return content.text


# ---- against a sandbox on a port, with real encodes


@pytest.mark.convertrilo(encoder="ffmpeg", allow_private_sources=True)
async def test_an_agent_encodes_a_video_with_every_tool(
    convertrilo_server: SandboxServer, clip: str, tmp_path: Path, object_store: ObjectStore, anyio_backend: str
) -> None:
    shown: list[Any] = []
    secrets = {"ACCESS_KEY_ID": object_store.access_key_id, "SECRET_ACCESS_KEY": object_store.secret_access_key}
    profile = {**secrets, "ENDPOINT": object_store.endpoint, "REGION": "us-east-1"}
    env = environment(convertrilo_server, **{f"CONVERTRILO_S3_MEDIA_{name}": each for name, each in profile.items()})
    mode = {"asyncio": "legacy", "trio": "auto"}[anyio_backend]  # the protocol with its handshake, and the one without
    async with hosted(tmp_path, env=env, mode=mode) as host:
        assert (host.client.protocol_version >= "2026") is (mode == "auto")
        assert host.client.server_info is not None
        assert host.client.server_info.name == "convertrilo"
        assert "get_token_balance first" in (host.client.instructions or "")
        tools = (await host.client.list_tools()).tools
        assert [tool.name for tool in tools] == ALL_TOOLS
        balance = await host.call("get_token_balance")
        assert balance["available"] == 1_000_000

        encode = {"sourceUrl": clip, "resolution": "480p", "fps": 10}
        job = await host.call("create_encode_job", **encode)
        assert job["replayed"] is False
        heard: list[float] = []

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            assert (total, bool(message)) == (100, True)
            heard.append(progress)

        done = await host.client.call_tool("wait_for_job", {"jobId": job["jobId"]}, progress_callback=hear)
        status = json.loads(text_of(done))
        assert status == done.structured_content
        assert (status["status"], status["jobId"]) == ("success", job["jobId"])
        assert heard == sorted(set(heard))
        assert heard[-1] == 100
        assert (await host.call("get_job_status", jobId=job["jobId"]))["status"] == "success"
        again = await host.call("create_encode_job", **encode)
        assert (again["jobId"], again["replayed"]) == (job["jobId"], True)

        jobs = [{"codec": "h264", "resolution": "480p", "fps": fps} for fps in (5, 6)]
        bulk = await host.call("create_jobs_bulk", jobs=jobs)
        canceled = await host.call("cancel_job", jobId=bulk["jobs"][0]["jobId"])
        assert (canceled["canceled"], canceled["status"]) == (True, "canceled")

        bucket = object_store.private_bucket(**{"films/a.mp4": CLIP.read_bytes(), "films/a.txt": b""})
        place = {"bucket": bucket, "storageProfile": "media"}
        folder = {"sourceS3": {**place, "prefix": "films/"}, "job": {"codec": "h264", "resolution": "480p", "fps": 5}}
        looked = await host.call("ingest_folder", **folder)
        assert (looked["dryRun"], looked["listed"], looked["submitted"]) == (True, 1, 0)
        folder["confirmation"] = looked["confirmation"]
        taken = await host.call("ingest_folder", **folder, wait=True)
        assert (taken["succeeded"], taken["unfinished"], taken["replayed"]) == (1, 0, False)
        assert await host.call("list_pending_operations") == {"operations": [], "more": False}

        to_s3 = {**encode, "outputS3": {**place, "key": "out.mp4"}}
        kept = await host.call("create_encode_job", **to_s3)
        assert (await host.call("wait_for_job", jobId=kept["jobId"]))["destination"]["key"] == "out.mp4"
        assert object_store.keys(bucket) == ["films/a.mp4", "films/a.txt", "out.mp4"]

        missing = await host.fail("get_job_status", jobId="no-such-job")
        assert (missing["code"], missing["httpStatus"]) == ("not_found", 404)
        elsewhere = {**place, "key": "k", "endpoint": "https://elsewhere.test"}
        wrong = await host.fail("create_encode_job", **encode, outputS3=elsewhere)
        assert wrong["code"] == "invalid_arguments"
        with pytest.raises(MCPError, match="there is no tool"):
            await host.client.call_tool("no_such_tool", {})
        shown += [tools, balance, job, status, bulk, looked, taken, kept, missing, wrong]
    assert [each.status for each in convertrilo_server.sandbox.jobs] == [
        "success", "canceled", "created", "success", "success"
    ]  # fmt: skip
    seen = repr(shown) + (tmp_path / "log").read_text()
    assert "onDemandEncode attempt 1: ok" not in seen  # success is no news
    for secret in (convertrilo_server.api_key, *secrets.values()):
        assert secret not in seen


@pytest.mark.convertrilo(encode_seconds=3600)
async def test_a_cancelled_wait_ends_on_the_server_and_other_calls_go_on_meanwhile(
    convertrilo_server: SandboxServer, tmp_path: Path
) -> None:
    sandbox = convertrilo_server.sandbox
    account = {"apiKey": convertrilo_server.api_key, "baseUrl": convertrilo_server.base_url}
    save(tmp_path / ".convertrilo" / "config.json", account)  # as the TypeScript command does
    async with hosted(tmp_path, env=environment(None, HOME=str(tmp_path))) as host:
        url = "https://media.example/a.mov"
        results: dict[str, str] = {}
        waiting, other = anyio.Event(), anyio.Event()

        async def hear(event: anyio.Event, *_: object) -> None:
            event.set()

        async def encode(name: str) -> None:
            results[name] = (await host.call("create_encode_job", sourceUrl=url, externalId=name))["jobId"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(encode, "a")
            tasks.start_soon(encode, "b")
        assert set(results) == {job.external_id for job in sandbox.jobs} == {"a", "b"}
        assert len(set(results.values())) == 2

        async def wait(name: str, event: anyio.Event) -> None:
            heard = partial(hear, event)
            result = await host.client.call_tool("wait_for_job", {"jobId": results[name]}, progress_callback=heard)
            results[f"{name} is"] = result.structured_content["status"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "b", other)
            await other.wait()
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(wait, "a", waiting)
                await waiting.wait()
                cancelled.cancel_scope.cancel()
            assert "a is" not in results
            assert (await host.call("get_job_status", jobId=results["a"]))["status"] in ("queued", "running")
            assert (await host.call("cancel_job", jobId=results["b"]))["canceled"]
        assert results["b is"] == "canceled"
        assert (await host.call("get_token_balance"))["reserved"] > 0
    assert {job.external_id: job.status for job in sandbox.jobs}["b"] == "canceled"
    assert {job.external_id: job.status for job in sandbox.jobs}["a"] in ("queued", "running")


async def test_a_call_repeated_after_kill_9_is_the_same_job(convertrilo_server: SandboxServer, tmp_path: Path) -> None:
    sandbox, env = convertrilo_server.sandbox, environment(None, XDG_CONFIG_HOME=str(tmp_path / "config"))
    account = {"apiKey": convertrilo_server.api_key, "baseUrl": convertrilo_server.base_url}
    save(tmp_path / "config" / "convertrilo" / "config.json", {"profiles": {"work": account}})
    answered, unanswered = ({"sourceUrl": f"https://media.example/{name}.mov"} for name in "ab")
    async with hosted(tmp_path, "--profile", "work", env=env) as host:
        first = await host.call("create_encode_job", **answered)
        sandbox.faults.lose_response("onDemandEncode", times=None)

        async def never_answered() -> None:
            with pytest.raises(MCPError, match="closed"):
                await host.call("create_encode_job", **unanswered)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(never_answered)
            while len(sandbox.jobs) < 2:  # it is another process that makes it
                await anyio.to_thread.run_sync(time.sleep, 0.01)
            server = server_in(tmp_path)
            assert server is not None
            server.kill()
    sandbox.faults.clear()
    seen = [each.idempotency_key for each in sandbox.requests].count(first["idempotencyKey"])
    async with hosted(tmp_path, "--profile", "work", env=env) as host:
        [pending] = (await host.call("list_pending_operations"))["operations"]
        assert (pending["tool"], pending["request"]) == ("create_encode_job", unanswered)
        assert await host.call("create_encode_job", **answered) == {**first, "replayed": True}
        second = await host.call("create_encode_job", **unanswered)
        assert (second["replayed"], second["idempotencyKey"]) == (True, pending["idempotencyKey"])
        once_more = await host.call("create_encode_job", **answered, idempotencyKey="once more")
        assert not once_more["replayed"]
    assert [job.id for job in sandbox.jobs] == [first["jobId"], second["jobId"], once_more["jobId"]]
    assert [each.idempotency_key for each in sandbox.requests].count(first["idempotencyKey"]) == seen == 1


# ---- with a sandbox of its own


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # of the client: the other one is shown above
async def test_with_its_own_sandbox_it_encodes_on_this_machine_and_remembers(tmp_path: Path, clip: str) -> None:
    encode = {"sourceUrl": clip, "codec": "h264", "resolution": "480p", "fps": 5, "container": "mkv"}
    async with hosted(tmp_path, "--sandbox", env=environment(None)) as host:
        job = await host.call("create_encode_job", **encode)
        done = await host.call("wait_for_job", jobId=job["jobId"])
        assert done["status"] == "success"
        async with httpx.AsyncClient(trust_env=False) as http:
            output = tmp_path / "out.mkv"
            await anyio.Path(output).write_bytes((await http.get(done["downloadUrl"])).content)
    info = await probe(output)
    assert (info.codec, info.height, info.fps) == ("h264", 480, 5)
    assert (tmp_path / "mcp.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "mcp-sandbox").stat().st_mode & 0o777 == 0o700

    async with hosted(tmp_path, "--sandbox", "--read-only", env=environment(None)) as host:
        reading = ["get_job_status", "wait_for_job", "get_token_balance", "list_pending_operations"]
        assert [tool.name for tool in (await host.client.list_tools()).tools] == reading
        assert (await host.call("get_job_status", jobId=job["jobId"]))["status"] == "success"
        balance = await host.call("get_token_balance")
        with pytest.raises(MCPError, match="no tool create_encode_job with --read-only"):
            await host.client.call_tool("create_encode_job", {**encode, "fps": 6})
        assert await host.call("get_token_balance") == balance


# ---- the process


def start(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    env = environment(None) if env is None else env
    return subprocess.Popen([*COMMAND, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def say(process: subprocess.Popen[str], method: str, number: int | None = None, **params: Any) -> None:
    assert process.stdin is not None
    message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    WATCH.look_at_output("the server", line, None)
    message: dict[str, Any] = json.loads(line)
    return message


def greet(process: subprocess.Popen[str]) -> None:
    client = {"name": "test", "version": "1"}
    say(process, "initialize", 0, protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
    assert hear(process)["result"]["serverInfo"]["name"] == "convertrilo"
    say(process, "notifications/initialized")


def test_it_ends_by_itself_when_stdin_does_and_has_said_nothing_but_protocol(tmp_path: Path) -> None:
    process = start(env={**environment(None), "XDG_STATE_HOME": str(tmp_path)})
    greet(process)
    say(process, "tools/call", 1, name="get_token_balance", arguments={})
    assert hear(process)["result"]["structuredContent"]["code"] == "configuration"  # there is no API key
    rest, log = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
    assert log == "INFO convertrilo.mcp: get_token_balance: ConfigurationError\n"
    [journal] = (tmp_path / "convertrilo").iterdir()  # closed: SQLite has cleared up beside it
    assert journal.name == "mcp-api.convertrilo.com.db"
    assert journal.stat().st_mode & 0o777 == 0o600
    assert journal.parent.stat().st_mode & 0o777 == 0o700


def test_its_own_sandbox_leaves_that_of_the_command_free(tmp_path: Path) -> None:
    env = {**environment(None), "XDG_STATE_HOME": str(tmp_path)}
    process = start("--sandbox", env=env)
    greet(process)
    command = [sys.executable, "-m", "convertrilo.cli", "balance", "--sandbox", "--field", "available"]
    balance = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (balance.returncode, balance.stdout, balance.stderr) == (0, "1000000\n", "")
    other = start("--sandbox", "--journal", str(tmp_path / "convertrilo" / "other.db"), env=env)
    greet(other)
    for each in (process, other):
        each.communicate(timeout=60)
        assert each.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_does_so_and_leaves_no_ffmpeg(number: signal.Signals, tmp_path: Path, clip: str) -> None:
    process = start("--journal", str(tmp_path / "mcp.db"), "--sandbox")
    greet(process)
    slow = {"sourceUrl": clip, "codec": "av1", "preset": "slow", "passes": 2, "resolution": "1080p"}
    say(process, "tools/call", 1, name="create_encode_job", arguments=slow)
    assert hear(process)["result"]["structuredContent"]["replayed"] is False
    family = psutil.Process(process.pid)
    while not (encoders := family.children(recursive=True)):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    _, alive = psutil.wait_procs(encoders, timeout=60)
    assert alive == []
    assert not (tmp_path / "mcp.db-wal").exists()
    process.communicate()


def test_help_and_version_say_what_there_is_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as end:
            run([option])
        assert end.value.code == 0
    said = capsys.readouterr().out
    for word in (
        "--profile NAME",
        "--read-only",
        "--sandbox",
        "--journal FILE",
        "CONVERTRILO_API_KEY",
        "CONVERTRILO_S3_<NAME>_REGION",
    ):
        assert word in said
    assert said.endswith(f"convertrilo-mcp {__version__}\n")


def test_a_journal_that_is_none_is_one_line_although_stdin_is_open(tmp_path: Path) -> None:
    (tmp_path / "mcp.db").write_text("this is no journal, and long enough to be none")
    process = start("--journal", str(tmp_path / "mcp.db"))
    assert process.wait(timeout=60) == 2
    out, said = process.communicate()
    assert out == ""
    assert said.startswith(f"convertrilo-mcp: the journal {tmp_path / 'mcp.db'} cannot be used: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CONVERTRILO_BASE_URL", "ftp://somewhere", "the base URL must begin with https:// or http://"),
        ("CONVERTRILO_BASE_URL", "http://host:port", "the base URL is not valid"),
        ("CONVERTRILO_PROFILE", "work", "there is no profile 'work', none is saved: log in with convertrilo login"),
        ("CONVERTRILO_API_KEY", "two words", "the API key must be visible ASCII characters"),
        ("CONVERTRILO_S3_A_ACCESS_KEY_ID", "x", "a is not complete: set CONVERTRILO_S3_A_SECRET_ACCESS_KEY"),
        ("XDG_STATE_HOME", "/dev/null", "the folder /dev/null/convertrilo for the journal cannot be created"),
    ],
)
def test_a_setting_that_is_not_right_is_one_line(
    variable: str, value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("convertrilo"), "level", logging.NOTSET)  # as it is to be again
    known = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    for name, given in {**known, "CONVERTRILO_API_KEY": "k", variable: value}.items():
        monkeypatch.setenv(name, given)
    assert run([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("convertrilo-mcp: ")
    assert says in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("module", ["mcp", "yaml"])
def test_a_missing_extra_is_named_with_what_to_install(module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from convertrilo.mcp import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f'convertrilo-mcp: this needs {module}; install it with: pip install "convertrilo[mcp]"\n'
