"""The MCP server's tools as an agent meets them: by the official client, in process, on asyncio and trio.

`test_mcp_stdio.py` has the same server as a process of its own.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fake_clock import FakeClock
from jsonschema import Draft202012Validator
from mcp import Client, MCPError
from mcp.types import CallToolResult, Tool
from support import Script, client_of, ok, problem

from convertrilo import AsyncClient, ConfigurationError, ValidationError
from convertrilo._base_client import engine_of
from convertrilo._model import Model, field_specs
from convertrilo.codec import wire_name
from convertrilo.mcp.calls import RecordingJournal
from convertrilo.mcp.schemas import request_schema
from convertrilo.mcp.server import make_server
from convertrilo.mcp.storage import StorageProfile, resolve_storage_profiles, storage_profiles
from convertrilo.mcp.toolbox import Toolbox
from convertrilo.mcp.tools import tools
from convertrilo.models import BulkCreateRequest, OnDemandEncodeRequest
from convertrilo.retry import RetryPolicy
from convertrilo.sandbox import Sandbox
from convertrilo.waiting.poller import Poller

URL = "https://media.example/holiday.mov"
ENCODE: dict[str, Any] = {"sourceUrl": URL, "codec": "h265", "metadata": {"b": 1, "a": [None, 2.0]}}
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ENVIRONMENT = {
    "CONVERTRILO_API_KEY": "not a profile",
    "CONVERTRILO_S3_MEDIA_EU_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "CONVERTRILO_S3_MEDIA_EU_SECRET_ACCESS_KEY": SECRET,
    "CONVERTRILO_S3_OWN_ACCESS_KEY_ID": "own-id",
    "CONVERTRILO_S3_OWN_SECRET_ACCESS_KEY": "own-secret",
    "CONVERTRILO_S3_OWN_ENDPOINT": "https://store.example",
    "CONVERTRILO_S3_OWN_REGION": "eu-1",
}
PROFILES = storage_profiles(ENVIRONMENT)
READING = {"get_job_status", "wait_for_job", "get_token_balance", "list_pending_operations"}
MAKING = {"create_encode_job", "create_jobs_bulk", "ingest_folder", "cancel_job"}

IN_TYPESCRIPT = {
    "create_encode_job": "sourceUrl externalId metadata codec resolution quality priority preset container fps passes "
    "optimize vmafTarget webhook idempotencyKey outputS3",
    "get_job_status": "jobId",
    "wait_for_job": "jobId pollIntervalMs timeoutMs",
    "cancel_job": "jobId",
    "get_token_balance": "",
}
"""The tools of the TypeScript server, and their arguments."""


@asynccontextmanager
async def agent(
    client: AsyncClient,
    journal: RecordingJournal,
    *,
    read_only: bool = False,
    mode: str = "legacy",
    profiles: Mapping[str, StorageProfile] = PROFILES,
) -> AsyncIterator[Client]:
    """Yield the official client of a server of this client's tools."""
    client._engine.journal = journal
    secrets = [each.secret_access_key for each in profiles.values()]
    toolbox = Toolbox(
        client, journal, profiles, Path(journal._store.path).parent / "folders", clock=engine_of(client)[0].clock
    )
    server = make_server(toolbox, tools(profiles), read_only=read_only, secrets=secrets)
    async with client, Client(server, mode=mode) as talking:
        yield talking


@pytest.fixture
def journal(tmp_path: Path, convertrilo_client: AsyncClient) -> RecordingJournal:
    return RecordingJournal(tmp_path / "mcp.db", clock=engine_of(convertrilo_client)[0].clock)


@pytest.fixture
async def talking(convertrilo_client: AsyncClient, journal: RecordingJournal) -> AsyncIterator[Client]:
    async with agent(convertrilo_client, journal) as talking:
        yield talking


def value_of(result: CallToolResult) -> dict[str, Any]:
    """Return what a call gave, which the text says too."""
    assert not result.is_error, result
    [content] = result.content
    assert content.type == "text"
    value: dict[str, Any] = result.structured_content
    assert json.loads(content.text) == value
    return value


def problem_of(result: CallToolResult) -> dict[str, Any]:
    """Return what a call that did not work was told, which the text says too."""
    assert result.is_error, result
    [content] = result.content
    assert content.type == "text"
    told: dict[str, Any] = result.structured_content
    assert content.text == f"{told['code']}: {told['message']}\n{told['next']}".rstrip()
    return told


def parts_of(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield where a property is, its name and its schema, for all in a schema."""
    for name, each in schema.get("properties", {}).items():
        yield f"{path}.{name}", name, each
        yield from parts_of(each, f"{path}.{name}")
    if "items" in schema:
        yield from parts_of(schema["items"], f"{path}[]")


# ---- what the tools are


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_tools_are_listed_with_their_schemas_and_what_they_may_do(
    convertrilo_client: AsyncClient, journal: RecordingJournal, mode: str
) -> None:
    async with agent(convertrilo_client, journal, mode=mode) as talking:
        listed = {tool.name: tool for tool in (await talking.list_tools()).tools}
    assert set(listed) == READING | MAKING
    for name, tool in listed.items():
        Draft202012Validator.check_schema(tool.input_schema)
        assert tool.output_schema is not None
        Draft202012Validator.check_schema(tool.output_schema)
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (name in READING)
        assert tool.annotations.destructive_hint is (name == "cancel_job")
        assert tool.annotations.idempotent_hint is True
        assert tool.annotations.open_world_hint is (name != "list_pending_operations")
        assert tool.description


def test_the_typescript_servers_tools_take_what_they_take_there() -> None:
    ours = {tool.name: set(tool.takes["properties"]) for tool in tools({})}
    for name, arguments in IN_TYPESCRIPT.items():
        assert ours[name] >= set(arguments.split())


def names_of(cls: type[Model]) -> Iterator[tuple[str, bool]]:
    """Yield the paths of a request's fields, and whether each is a credential."""
    for spec in field_specs(cls):
        yield f".{wire_name(spec.name)}", spec.facts.secret
        if issubclass(spec.kind, Model):
            many = "[]" if spec.many else ""
            yield from ((f".{wire_name(spec.name)}{many}{path}", secret) for path, secret in names_of(spec.kind))


@pytest.mark.parametrize("model", [OnDemandEncodeRequest, BulkCreateRequest])
def test_a_schema_has_all_of_the_models_fields_but_credentials_and_what_is_withdrawn(model: type[Model]) -> None:
    fields = {path: secret for path, secret in names_of(model) if not path.startswith(".outputDropbox")}
    paths = {path for path, _, _ in parts_of(request_schema(model, ["own"]))}
    assert {path for path in paths if not path.endswith(".storageProfile")} == {
        path for path, secret in fields.items() if not secret
    }
    places = {path.removesuffix(".accessKeyId") for path in fields if path.endswith(".accessKeyId")}
    assert {path.removesuffix(".storageProfile") for path in paths if path.endswith(".storageProfile")} == places


def test_no_tool_takes_a_credential() -> None:
    names = {name.lower() for tool in tools(PROFILES) for _, name, _ in parts_of(tool.takes)}
    assert not [name for name in names if "secret" in name or "token" in name or "accesskey" in name]


async def test_read_only_leaves_out_what_makes_or_cancels(
    convertrilo_client: AsyncClient, journal: RecordingJournal, convertrilo_sandbox: Sandbox
) -> None:
    async with agent(convertrilo_client, journal, read_only=True) as talking:
        assert {tool.name for tool in (await talking.list_tools()).tools} == READING
        assert value_of(await talking.call_tool("get_token_balance"))["available"] == 1_000_000
        for name in MAKING:
            with pytest.raises(MCPError, match=f"no tool {name} with --read-only"):
                await talking.call_tool(name, {"sourceUrl": URL})
    assert convertrilo_sandbox.jobs == []


async def test_an_unknown_tool_is_an_error_of_the_protocol(talking: Client) -> None:
    with pytest.raises(MCPError, match="there is no tool make_coffee; the tools are create_encode_job, "):
        await talking.call_tool("make_coffee", {})


# ---- once


async def test_a_repeated_call_is_the_same_job(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    first = value_of(await talking.call_tool("create_encode_job", ENCODE))
    again = value_of(await talking.call_tool("create_encode_job", dict(reversed(ENCODE.items()))))
    assert again == {**first, "replayed": True}
    assert not first["replayed"]
    assert first["firstSentAt"] == "2026-01-01T00:00:00Z"
    assert [job.id for job in convertrilo_sandbox.jobs] == [first["jobId"]]
    assert [job.idempotency_key for job in convertrilo_sandbox.jobs] == [first["idempotencyKey"]]


async def test_another_argument_or_another_key_is_another_job(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    calls = [ENCODE, {**ENCODE, "fps": 24}, {**ENCODE, "idempotencyKey": "once more"}, {**ENCODE, "passes": 2}]
    made = [value_of(await talking.call_tool("create_encode_job", call)) for call in [*calls, *calls]]
    assert [each["replayed"] for each in made] == [False] * 4 + [True] * 4
    assert len({each["jobId"] for each in made}) == len(convertrilo_sandbox.jobs) == 4
    assert made[2]["idempotencyKey"] == "once more"
    assert convertrilo_sandbox.jobs[3].settings["passes"] == 2


async def test_a_key_that_was_used_for_something_else_is_refused(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    await talking.call_tool("create_encode_job", {**ENCODE, "idempotencyKey": "k"})
    told = problem_of(await talking.call_tool("create_encode_job", {**ENCODE, "fps": 24, "idempotencyKey": "k"}))
    assert told["code"] == "idempotency_conflict"
    assert "choose another idempotencyKey" in told["next"]
    assert len(convertrilo_sandbox.jobs) == 1


async def test_equal_calls_at_once_are_one_job(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    results: list[dict[str, Any]] = []

    async def call() -> None:
        results.append(value_of(await talking.call_tool("create_encode_job", ENCODE)))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
    assert len(convertrilo_sandbox.jobs) == 1
    assert {each["jobId"] for each in results} == {convertrilo_sandbox.jobs[0].id}
    assert sorted(each["replayed"] for each in results) == [False, True, True, True, True]


async def test_a_lost_answer_is_listed_as_pending_until_the_call_is_repeated(
    convertrilo_client: AsyncClient, journal: RecordingJournal, convertrilo_sandbox: Sandbox
) -> None:
    impatient = convertrilo_client.with_options(retry=RetryPolicy.none())
    convertrilo_sandbox.faults.lose_response("onDemandEncode")
    async with agent(impatient, journal) as talking:
        told = problem_of(await talking.call_tool("create_encode_job", ENCODE))
        assert told["code"] == "no_answer"
        assert "makes no second job" in told["next"]
        listed = value_of(await talking.call_tool("list_pending_operations"))
        [pending] = listed["operations"]
        assert pending == {
            "operation": "onDemandEncode",
            "tool": "create_encode_job",
            "state": "pending",
            "idempotencyKey": told["idempotencyKey"],
            "firstSentAt": "2026-01-01T00:00:00Z",
            "request": ENCODE,
        }
        again = value_of(await talking.call_tool("create_encode_job", ENCODE))
        assert again["replayed"]
        assert value_of(await talking.call_tool("list_pending_operations")) == {"operations": [], "more": False}
    assert [job.id for job in convertrilo_sandbox.jobs] == [again["jobId"]]


async def test_what_was_sent_too_long_ago_is_listed_as_unknown_and_not_sent_again(
    convertrilo_client: AsyncClient, journal: RecordingJournal, convertrilo_sandbox: Sandbox
) -> None:
    impatient = convertrilo_client.with_options(retry=RetryPolicy.none())
    convertrilo_sandbox.faults.lose_response("onDemandEncode", times=2)
    async with agent(impatient, journal) as talking:
        await talking.call_tool("create_encode_job", ENCODE)
        convertrilo_sandbox.clock.advance(90_000)  # type: ignore[attr-defined]  # the fixture's clock is virtual
        await talking.call_tool("create_encode_job", {**ENCODE, "fps": 24})
        told = problem_of(await talking.call_tool("create_encode_job", ENCODE))
        assert told["code"] == "outcome_unknown"
        assert "dashboard" in told["next"]
        listed = value_of(await talking.call_tool("list_pending_operations"))
        assert [each["state"] for each in listed["operations"]] == ["unknown", "pending"]
        one = value_of(await talking.call_tool("list_pending_operations", {"limit": 1}))
        assert one == {"operations": listed["operations"][:1], "more": True}
    assert len(convertrilo_sandbox.jobs) == 2


async def test_many_jobs_are_made_once_each_with_its_own_outcome(
    convertrilo_client: AsyncClient, journal: RecordingJournal, convertrilo_sandbox: Sandbox
) -> None:
    job = {"codec": "av1", "resolution": "720p", "fps": 25, "sourceUrl": URL}
    call = {"jobs": [job, {**job, "container": "mov"}], "settings": {"confirm": True}}
    async with agent(convertrilo_client, journal) as talking:
        first = value_of(await talking.call_tool("create_jobs_bulk", call))
        assert first["totalJobs"] == 2
        assert [bool(each.get("jobId")) for each in first["jobs"]] == [True, False]
        assert first["jobs"][1]["error"]
        again = value_of(await talking.call_tool("create_jobs_bulk", call))
        assert again == {**first, "replayed": True}
        job_id = first["jobs"][0]["jobId"]
        done = value_of(await talking.call_tool("wait_for_job", {"jobId": job_id}))
        assert (done["jobId"], done["status"], done["encoder"]) == (job_id, "success", "instant")
    assert len(convertrilo_sandbox.jobs) == 1


async def test_a_big_request_is_not_spread_out_in_the_list(
    convertrilo_client: AsyncClient, journal: RecordingJournal, convertrilo_sandbox: Sandbox
) -> None:
    job = {"codec": "av1", "resolution": "720p", "fps": 25, "sourceUrl": URL}
    impatient = convertrilo_client.with_options(retry=RetryPolicy.none())
    convertrilo_sandbox.faults.lose_response("createJobsBulk")
    async with agent(impatient, journal) as talking:
        await talking.call_tool("create_jobs_bulk", {"jobs": [job] * 200})
        [pending] = value_of(await talking.call_tool("list_pending_operations"))["operations"]
    assert pending["tool"] == "create_jobs_bulk"
    assert "request" not in pending
    assert pending["requestBytes"] > 10_000


# ---- waiting, reading, cancelling


async def make(talking: Client, **arguments: Any) -> str:
    return str(value_of(await talking.call_tool("create_encode_job", {**ENCODE, **arguments}))["jobId"])


@pytest.mark.convertrilo(encode_seconds=600)
async def test_waiting_tells_its_progress_and_ends_with_the_download_url(talking: Client) -> None:
    job_id = await make(talking)
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    done = value_of(await talking.call_tool("wait_for_job", {"jobId": job_id}, progress_callback=hear))
    assert (done["jobId"], done["status"]) == (job_id, "success")
    assert done["downloadUrl"].startswith("http")
    percents = [progress for progress, _, _ in heard]
    assert len(percents) > 5
    assert percents == sorted(set(percents))
    assert heard[-1] == (100.0, 100.0, "success")
    assert {total for _, total, _ in heard} == {100.0}
    status = value_of(await talking.call_tool("get_job_status", {"jobId": job_id}))
    assert {**status, "expiresIn": done["expiresIn"], "downloadUrl": done["downloadUrl"]} == done


async def test_a_job_that_fails_is_a_result_and_no_error(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    convertrilo_sandbox.fail_jobs("the source has no picture")
    job_id = await make(talking)
    for _ in range(2):  # when it has ended before, too
        done = value_of(await talking.call_tool("wait_for_job", {"jobId": job_id}))
        assert (done["status"], done["failureMessage"]) == ("failed", "the source has no picture")


@pytest.mark.convertrilo(encode_seconds=600)
async def test_a_wait_that_is_too_short_says_that_the_job_goes_on(talking: Client) -> None:
    job_id = await make(talking)
    told = problem_of(await talking.call_tool("wait_for_job", {"jobId": job_id, "timeoutMs": 5000}))
    assert (told["code"], told["jobId"], told["status"]) == ("wait_timeout", job_id, "running")
    assert "wait_for_job again" in told["next"]
    done = value_of(await talking.call_tool("wait_for_job", {"jobId": job_id, "pollIntervalMs": 100}))
    assert done["status"] == "success"


@pytest.mark.convertrilo(encode_seconds=600)
async def test_both_kinds_of_jobs_can_be_canceled(talking: Client, convertrilo_sandbox: Sandbox) -> None:
    on_demand = await make(talking)
    job = {"codec": "av1", "resolution": "720p", "fps": 25}
    made = value_of(await talking.call_tool("create_jobs_bulk", {"jobs": [job]}))
    for job_id, released in ((on_demand, True), (made["jobs"][0]["jobId"], False)):
        canceled = value_of(await talking.call_tool("cancel_job", {"jobId": job_id}))
        assert (canceled["jobId"], canceled["canceled"], canceled["status"]) == (job_id, True, "canceled")
        assert bool(canceled.get("released")) is released
        waited = value_of(await talking.call_tool("wait_for_job", {"jobId": job_id}))
        assert waited["status"] == "canceled"
    assert convertrilo_sandbox.tokens.reserved == 0


async def test_cancelling_what_has_ended_says_so(talking: Client) -> None:
    job_id = await make(talking)
    await talking.call_tool("wait_for_job", {"jobId": job_id})
    canceled = value_of(await talking.call_tool("cancel_job", {"jobId": job_id}))
    assert canceled.items() >= {"canceled": False, "status": "success"}.items()


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    status = {"jobId": "j-1", "status": "running", "progress": 5}
    script = Script(ok(status), clock=FakeClock(sleepers="wait"))
    client = client_of(script)
    async with agent(client, RecordingJournal(tmp_path / "mcp.db")) as talking:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talking.call_tool, "wait_for_job", {"jobId": "j-1"})
            await script.clock.until_asleep()
            tasks.cancel_scope.cancel()
        poller = engine_of(client)[0].shared(Poller)
        assert poller is not None
        with anyio.fail_after(60):
            while poller._watches:  # the server hears of it a moment later
                await anyio.lowlevel.checkpoint()
        assert value_of(await talking.call_tool("get_job_status", {"jobId": "j-1"}))["progress"] == 5
    assert script.open == 0


# ---- errors


FAILURES: list[tuple[Callable[[Sandbox], object], str, str, dict[str, Any]]] = [
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 401, body={"code": "invalid_api_key", "message": "no"}),
     "invalid_api_key", "this MCP server's settings", {"httpStatus": 401}),
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 403, body={
        "code": "missing_required_scope", "message": "no", "requiredScope": "jobs:create"}),
     "missing_required_scope", "with this scope", {"requiredScope": "jobs:create"}),
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 402, body={
        "code": "insufficient_tokens", "message": "no", "required": 9, "available": 4}),
     "insufficient_tokens", "buy tokens", {"required": 9, "available": 4}),
    (lambda sandbox: sandbox.faults.rate_limit("onDemandEncode", retry_after="5000"),
     "rate_limit_exceeded", "Wait, then", {"retryAfterSec": 5_000.0}),
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 418, body={"code": "brand_new", "message": "no"}),
     "brand_new", "Correct the arguments", {"httpStatus": 418}),
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 500, times=None, body="<html>"),
     "http_500", "makes no second job", {"httpStatus": 500}),
    (lambda sandbox: sandbox.faults.refuse("onDemandEncode", times=None), "not_sent", "cannot be reached", {}),
    (lambda sandbox: sandbox.faults.reset("onDemandEncode", times=None), "no_answer", "makes no second job", {}),
    (lambda sandbox: sandbox.faults.status("onDemandEncode", 200, body="<html>hello"),
     "undecodable_answer", "base URL", {}),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "code", "advice", "facts"), FAILURES, ids=[code for _, code, _, _ in FAILURES])
async def test_an_error_says_its_code_and_what_to_do_and_the_server_goes_on(
    talking: Client,
    convertrilo_sandbox: Sandbox,
    fault: Callable[[Sandbox], object],
    code: str,
    advice: str,
    facts: dict[str, Any],
) -> None:
    fault(convertrilo_sandbox)
    told = problem_of(await talking.call_tool("create_encode_job", ENCODE))
    assert told["code"] == code
    assert told["message"]
    assert advice in told["next"]
    assert told.items() >= {"operation": "onDemandEncode", **facts}.items()
    convertrilo_sandbox.faults.clear()
    convertrilo_sandbox.clock.advance(5_000)  # type: ignore[attr-defined]  # as long as the limit lasts
    assert "jobId" in value_of(await talking.call_tool("create_encode_job", ENCODE))


async def test_a_job_that_does_not_exist_is_not_found(talking: Client) -> None:
    for tool in ("get_job_status", "wait_for_job", "cancel_job"):
        told = problem_of(await talking.call_tool(tool, {"jobId": "j-none"}))
        assert (told["code"], told["httpStatus"]) == ("not_found", 404)
        assert "Check the id" in told["next"]


async def test_without_an_api_key_every_call_says_how_to_set_one(tmp_path: Path) -> None:
    client = client_of(Script(ok({})), api_key=None, get_token=None)
    async with agent(client, RecordingJournal(tmp_path / "mcp.db")) as talking:
        told = problem_of(await talking.call_tool("get_token_balance"))
    assert told["code"] == "configuration"
    assert "CONVERTRILO_API_KEY" in told["message"]
    assert "this MCP server's settings" in told["next"]


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("create_encode_job", {}, "sourceUrl", "is required"),
    ("create_encode_job", {"sourceUrl": 5}, "sourceUrl", "must be of type string"),
    ("create_encode_job", {"sourceUrl": "no url"}, "sourceUrl", "must be an absolute URL"),
    ("create_encode_job", {**ENCODE, "codec": "vp9"}, "codec", "must be one of h264, h265, av1"),
    ("create_encode_job", {**ENCODE, "fps": 0}, "fps", "must be at least 1"),
    ("create_encode_job", {**ENCODE, "passes": 3}, "passes", "must be one of 1, 2"),
    ("create_encode_job", {**ENCODE, "vmafTarget": 100}, "vmafTarget", "must be at most 99"),
    (
        "create_encode_job",
        {**ENCODE, "colour": "red"},
        "colour",
        "is not an argument of this tool; the arguments are sourceUrl, ",
    ),
    ("create_encode_job", {**ENCODE, "idempotencyKey": " "}, "idempotencyKey", "must match"),
    ("create_encode_job", {**ENCODE, "idempotencyKey": "k" * 256}, "idempotencyKey", "at most 255 characters"),
    ("create_encode_job", {**ENCODE, "outputS3": {"bucket": "b"}}, "outputS3.key", "is required"),
    (
        "create_encode_job",
        {**ENCODE, "outputS3": {"bucket": "b", "key": "k", "secretAccessKey": SECRET}},
        "outputS3.secretAccessKey",
        "name a storageProfile instead",
    ),
    (
        "create_encode_job",
        {**ENCODE, "outputS3": {"bucket": "b", "key": "k", "storageProfile": "elsewhere"}},
        "outputS3.storageProfile",
        "must be one of media_eu, own",
    ),
    (
        "create_encode_job",
        {**ENCODE, "outputS3": {"bucket": "b", "key": "k", "storageProfile": "own", "endpoint": "https://evil.test"}},
        "outputS3.endpoint",
        "is not the endpoint of the storage profile",
    ),
    ("create_encode_job", {**ENCODE, "outputS3": [{"secretAccessKey": SECRET}]}, "outputS3", "must be of type object"),
    ("create_jobs_bulk", {"jobs": [{"codec": "av1", "fps": 1}]}, "jobs[0].resolution", "is required"),
    ("get_job_status", {"jobId": ""}, "jobId", "must have at least 1 characters"),
    ("wait_for_job", {"jobId": "j", "timeoutMs": 0}, "timeoutMs", "must be above 0"),
    ("get_token_balance", {"all": True}, "all", "is not an argument of this tool; there are none"),
    ("list_pending_operations", {"limit": 1000}, "limit", "must be at most 200"),
]


@pytest.mark.parametrize(("tool", "arguments", "path", "says"), WRONG)
async def test_wrong_arguments_are_named_and_nothing_is_sent(
    talking: Client, convertrilo_sandbox: Sandbox, tool: str, arguments: dict[str, Any], path: str, says: str
) -> None:
    result = await talking.call_tool(tool, arguments)
    told = problem_of(result)
    assert told["code"] == "invalid_arguments"
    [issue] = told["issues"]
    assert issue["path"] == path
    assert says in issue["message"]
    assert SECRET not in repr(result)
    assert convertrilo_sandbox.requests == []


async def test_what_nobody_thought_of_stays_in_the_log(
    talking: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: AsyncClient) -> None:
        raise RuntimeError("details that are nobody's business")

    monkeypatch.setattr(AsyncClient, "get_balance", broken)
    with caplog.at_level(logging.ERROR):
        told = problem_of(await talking.call_tool("get_token_balance"))
    assert told["code"] == "internal_error"
    assert "nobody's business" not in str(told)
    assert "nobody's business" in caplog.text
    assert value_of(await talking.call_tool("list_pending_operations")) == {"operations": [], "more": False}


# ---- storage profiles


async def test_a_profile_gives_its_credentials_and_nobody_gets_to_see_them(tmp_path: Path) -> None:
    made = {"jobId": "j-1", "status": "queued", "statusUrl": "/j-1", "echo": {"note": f"with {SECRET}"}}
    script = Script(ok(made), problem(400, "invalid_body", f"bad signature by {SECRET}", issues=[SECRET]))
    metadata = {"storageProfile": "media_eu"}
    place = {"bucket": "b", "key": "k", "storageProfile": "media_eu"}
    call = {**ENCODE, "outputS3": place, "metadata": metadata}
    journal = RecordingJournal(tmp_path / "mcp.db")
    async with agent(client_of(script), journal) as talking:
        result = await talking.call_tool("create_encode_job", call)
        assert SECRET.encode() not in b"".join([entry.body async for entry in journal.answered()])
        assert value_of(result)["echo"] == {"note": "with <hidden>"}
        refused = await talking.call_tool("create_encode_job", {**call, "fps": 24})
        assert problem_of(refused)["message"] == "bad signature by <hidden>"
        listed = await talking.call_tool("list_pending_operations")
    assert script.sent[0].json["outputS3"] == {
        "bucket": "b",
        "key": "k",
        "accessKeyId": "AKIAIOSFODNN7EXAMPLE",
        "secretAccessKey": SECRET,
    }
    assert script.sent[0].json["metadata"] == metadata
    for shown in (result, refused, listed):
        assert SECRET not in repr(shown)
        assert "AKIAIOSFODNN7EXAMPLE" not in repr(shown)


def test_a_profile_brings_its_endpoint_and_region() -> None:
    given = {"jobs": [{"sourceS3": {"bucket": "b", "key": "k", "storageProfile": "own"}}]}
    [job] = resolve_storage_profiles(PROFILES, given)["jobs"]
    assert job["sourceS3"] == {
        "bucket": "b",
        "key": "k",
        "endpoint": "https://store.example",
        "region": "eu-1",
        "accessKeyId": "own-id",
        "secretAccessKey": "own-secret",
    }
    same = resolve_storage_profiles(
        PROFILES, {"storageProfile": "own", "endpoint": "https://store.example", "region": "eu-2"}
    )
    assert (same["endpoint"], same["region"]) == ("https://store.example", "eu-2")
    with pytest.raises(ValidationError, match="is not the endpoint of the storage profile"):  # it is Amazon's
        resolve_storage_profiles(PROFILES, {"storageProfile": "media_eu", "endpoint": "https://store.example"})


def test_without_profiles_a_place_says_how_to_set_one_up() -> None:
    schema = request_schema(OnDemandEncodeRequest, [])["properties"]["outputS3"]
    assert "storageProfile" not in schema["properties"]
    assert "CONVERTRILO_S3_<NAME>_SECRET_ACCESS_KEY" in schema["description"]


def test_half_a_profile_is_an_error_that_names_the_other_half() -> None:
    with pytest.raises(ConfigurationError, match="media is not complete: set CONVERTRILO_S3_MEDIA_SECRET_ACCESS_KEY"):
        storage_profiles({"CONVERTRILO_S3_MEDIA_ACCESS_KEY_ID": "id"})
    with pytest.raises(ConfigurationError, match="media is not complete: set CONVERTRILO_S3_MEDIA_ACCESS_KEY_ID"):
        storage_profiles({"CONVERTRILO_S3_MEDIA_SECRET_ACCESS_KEY": "s"})
    assert "own-secret" not in repr(PROFILES)


def test_a_listed_tool_is_small_enough_to_be_read() -> None:
    listed = [Tool(name=tool.name, input_schema=tool.takes).model_dump_json() for tool in tools(PROFILES)]
    assert sum(map(len, listed)) < 20_000
