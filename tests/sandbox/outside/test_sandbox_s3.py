"""Sources, outputs and folders in S3, against a real server."""

import itertools
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
import httpx
import pytest
from object_store import ObjectStore
from sandbox_help import JOB, ON_DEMAND, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock
from convertrilo.sandbox.api.folders import output_names
from convertrilo.sandbox.outside.network import Network
from convertrilo.sandbox.outside.s3 import S3, address

SMALL = {"codec": "h264", "resolution": "480p", "fps": 5}
VIDEO = b"not looked into by the instant encoder"


class Watched(httpx.AsyncBaseTransport):
    """A transport with real connections that records the requests."""

    def __init__(self) -> None:
        # Every client closes its transport, so a shared transport must not keep connections.
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self._inner.handle_async_request(request)


@pytest.fixture
async def near(clock: VirtualClock) -> AsyncIterator[Sandbox]:
    """A sandbox that allows object stores on this machine."""
    async with Sandbox(clock=clock, seed=1, allow_private_sources=True) as sandbox:
        yield sandbox


@pytest.fixture
async def http(near: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(near) as http:
        yield http


# ---- objects


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "anonymous"])
async def test_a_video_goes_from_s3_through_the_encoder_to_s3(
    object_store: ObjectStore, tiny: Path, signed: bool
) -> None:
    bucket = object_store.bucket(**{"films/in.mp4": await anyio.Path(tiny).read_bytes()})
    watched = Watched()
    async with (
        Sandbox(encoder="ffmpeg", allow_private_sources=True, source_transport=watched) as sandbox,
        client_of(sandbox) as http,
    ):
        body = {**SMALL, "sourceS3": object_store.place(bucket, signed=signed, prefix="films/")}
        body |= {"outputDestination": "s3", "outputS3": object_store.place(bucket, signed=signed, prefix="out/")}
        answer = await http.post("/ondemand/ingest/folder", json={**body, "container": "mkv"})
        assert answer.status_code == 200, answer.text
        await sandbox.wait_until_idle()
        status = (await http.get(f"/ondemand/status/{answer.json()['jobs'][0]['jobId']}")).json()
        assert status["status"] == "success", status
        assert status["destination"].items() >= {"type": "s3", "bucket": bucket, "key": "out/in.mkv"}.items()
        assert status["downloadUrl"] is None
        assert [path for path in sandbox.folder.rglob("*") if path.is_file()] == []
    assert object_store.get(bucket, "out/in.mkv").startswith(b"\x1aE\xdf\xa3")
    assert object_store.content_type(bucket, "out/in.mkv") == "video/x-matroska"
    assert ["authorization" in request.headers for request in watched.requests] == [signed] * len(watched.requests)


async def test_a_job_reads_its_source_from_s3(object_store: ObjectStore, tiny: Path) -> None:
    bucket = object_store.bucket(**{"films/in.mp4": await anyio.Path(tiny).read_bytes()})
    async with Sandbox(encoder="ffmpeg", allow_private_sources=True) as sandbox, client_of(sandbox) as http:
        place = object_store.place(bucket, key="films/in.mp4")
        created = (await http.post("/jobs", json={**SMALL, "sourceS3": place})).json()
        assert (created["upload"], created["sourceFilename"]) == (None, "in.mp4")
        job = created["jobId"]
        assert (await http.get(f"/jobs/{job}/probe-duration")).json()["durationSec"] == pytest.approx(0.4, abs=0.1)
        await http.post(f"/jobs/{job}/confirm")
        await sandbox.wait_until_idle()
        assert (await http.get(f"/jobs/{job}/status")).json()["status"] == "success"


KEYS = ["a b+c.mp4", "ü/Ω.mp4", "100%41.mp4", "a/../b.mp4", "./c.mp4", "quote'&<>\"#?;=.mp4", "two//slashes.mp4"]


async def test_keys_are_what_they_are_whatever_is_in_them(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore
) -> None:
    bucket, other = object_store.bucket(**dict.fromkeys(KEYS, VIDEO)), object_store.bucket()
    body = {"sourceS3": object_store.place(bucket), "externalIdPrefix": "p", "outputDestination": "s3"}
    answer = await http.post(
        "/ondemand/ingest/folder", json={**body, "outputS3": object_store.place(other, prefix="out/")}
    )
    assert sorted(job["fileName"] for job in answer.json()["jobs"]) == sorted(KEYS)
    assert {job.external_id for job in near.jobs} == {f"p:{key}" for key in KEYS}
    await near.wait_until_idle()
    assert [job.failure_message for job in near.jobs] == [None] * len(KEYS)
    assert object_store.keys(other) == sorted(f"out/{key}" for key in KEYS)
    assert object_store.get(other, "out/a b+c.mp4")[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ({}, "https://b-1.s3.us-east-1.amazonaws.com/k%20/x"),
        ({"region": "eu-west-1", "forcePathStyle": True}, "https://s3.eu-west-1.amazonaws.com/b-1/k%20/x"),
        ({"bucket": "with.dots"}, "https://s3.us-east-1.amazonaws.com/with.dots/k%20/x"),
        ({"endpoint": "https://store.example:8443/at/"}, "https://b-1.store.example:8443/at/k%20/x"),
        ({"endpoint": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000/b-1/k%20/x"),
        ({"endpoint": "http://[::1]:9000"}, "http://[::1]:9000/b-1/k%20/x"),
        ({"endpoint": "https://store.example", "forcePathStyle": True}, "https://store.example/b-1/k%20/x"),
    ],
)
def test_the_bucket_is_in_the_host_unless_the_path_style_is_forced_or_a_host_cannot_carry_it(
    place: dict[str, Any], url: str
) -> None:
    assert address({"bucket": "b-1", **place}, "k /x") == url


def refusing(request: httpx.Request) -> httpx.Response:
    """Refuse as S3 does, repeating the signed request."""
    signed = request.headers.get("authorization", "")
    return httpx.Response(403, text=f"<Error><Code>SignatureDoesNotMatch</Code><Message>{signed}</Message></Error>")


@pytest.mark.parametrize(
    ("transport", "reason"),
    [
        (httpx.MockTransport(refusing), "the object store answers 403 SignatureDoesNotMatch"),
        (httpx.MockTransport(lambda _: httpx.Response(500, text="oops")), "the object store answers 500 Internal"),
        (httpx.MockTransport(lambda _: httpx.Response(301)), "the object store answers 301 Moved Permanently"),
    ],
)
async def test_a_store_that_refuses_fails_the_job_with_its_reason_and_no_secret(
    clock: VirtualClock, transport: httpx.AsyncBaseTransport, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = {"bucket": "b-1", "key": "k.mp4", "accessKeyId": "AKID", "secretAccessKey": "hush-hush"}
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", json={**JOB, "sourceS3": place, "confirm": True})
        await sandbox.wait_until_idle()
        (job,) = sandbox.jobs
        assert job.status == "failed"
        assert (job.failure_message or "").startswith(reason)
        folder = {name: value for name, value in place.items() if name != "key"}
        answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": folder})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert reason in answer.json()["message"]
        shown = f"{job!r}{job.failure_message}{answer.text}{sandbox.requests}{caplog.text}"
        assert not [secret for secret in ("hush-hush", "AKID", "Signature=") if secret in shown]
        assert job.source == {"bucket": "b-1", "key": "k.mp4"}, "credentials are forgotten with the end of the job"


async def test_what_is_not_there_is_named(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore, clock: VirtualClock
) -> None:
    answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": object_store.place("no-such-bucket")})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "404 NoSuchBucket" in answer.json()["message"]
    bucket = object_store.bucket()
    async with (
        Sandbox(clock=clock, allow_private_sources=True, source_transport=Watched()) as sandbox,
        client_of(sandbox) as fetching,
    ):
        place = object_store.place(bucket, key="nothing.mp4")
        job = (await fetching.post("/jobs", json={**JOB, "sourceS3": place})).json()["jobId"]
        probed = await fetching.get(f"/jobs/{job}/probe-duration")
        assert (probed.status_code, probed.json()["code"]) == (400, "probe_failed")
        assert "404 NoSuchKey" in probed.json()["message"]
        await fetching.post("/ondemand/encode", json={**ON_DEMAND, "outputS3": {**place, "bucket": "no-such-bucket"}})
    await http.post("/ondemand/encode", json={**ON_DEMAND, "outputS3": {**place, "bucket": "no-such-bucket"}})
    await near.wait_until_idle()
    expected = "the output could not be written: the object store answers 404 NoSuchBucket"
    assert [(job.status, job.failure_message) for job in near.jobs] == [("failed", expected)]
    assert near.tokens.available == near.tokens.granted


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ondemand/encode", {**ON_DEMAND, "outputS3": {"bucket": "b-1", "key": "k"}}),
        ("/ondemand/ingest/folder", {"sourceS3": {"bucket": "b-1"}}),
        ("/ondemand/ingest/folder", {"sourceS3": {"bucket": "b-1"}, "outputS3": {"bucket": "b-1"}}),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1:9", "10.0.0.1", "[::1]:9", "localhost"])
async def test_a_store_in_a_private_network_is_blocked_unless_allowed(
    sandbox: Sandbox, path: str, body: dict[str, Any], host: str
) -> None:
    for place in [value for name, value in body.items() if name in ("sourceS3", "outputS3")]:
        place |= {"endpoint": f"http://{host}", "forcePathStyle": True}
    async with client_of(sandbox) as http:
        answer = await http.post(path, json={**body, "outputDestination": "s3" if "outputS3" in body else "cdn"})
    assert (answer.status_code, answer.json()["code"]) == (400, "private_ip_blocked")
    assert not sandbox.jobs


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ({"key": "k"}, "bucket"),
        ({"bucket": "../b", "key": "k"}, "bucket"),
        ({"bucket": "b-1"}, "key"),
        ({"bucket": "b-1", "key": "x" * 1025}, "key"),
        ({"bucket": "b-1", "key": "k", "endpoint": "file:///etc"}, "endpoint"),
        ({"bucket": "b-1", "key": "k", "endpoint": "https://user:word@a.example"}, "endpoint"),
        ({"bucket": "b-1", "key": "k", "endpoint": "https://a.example/?x"}, "endpoint"),
        ({"bucket": "b-1", "key": "k", "endpoint": "https://a.example:x"}, "endpoint"),
        ({"bucket": "b-1", "key": "k", "endpoint": "https://xn--/"}, "endpoint"),
        ({"bucket": "b-1", "key": "k", "region": "a.example/"}, "region"),
        ({"bucket": "b-1", "key": "k", "accessKeyId": "x"}, "secretAccessKey"),
        ({"bucket": "b-1", "key": "k", "secretAccessKey": "x"}, "accessKeyId"),
        ({"bucket": "b-1", "key": "k", "accessKeyId": "ключ", "secretAccessKey": "x"}, "accessKeyId"),
    ],
)
async def test_a_place_that_cannot_be_is_refused_field_by_field(
    http: httpx.AsyncClient, place: dict[str, Any], where: str
) -> None:
    answer = await http.post("/jobs", json={**JOB, "sourceS3": place})
    assert answer.json()["code"] == "invalid_body"
    assert [issue["path"] for issue in answer.json()["issues"]] == [f"sourceS3.{where}"]


# ---- folders


async def test_a_folder_is_ingested_by_its_videos_up_to_a_number(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore
) -> None:
    names = ["a.mp4", "b.MOV", "c.txt", "d.mkv", "no-extension", "deep/e.webm", "folder.mp4/"]
    bucket = object_store.bucket(**{f"in/{name}": VIDEO for name in names}, **{"elsewhere.mp4": VIDEO})
    body = {"sourceS3": object_store.place(bucket, prefix="in/"), "externalIdPrefix": "run 7", "metadata": {"a": 1}}
    first = (await http.post("/ondemand/ingest/folder", json={**body, "maxFiles": 2, "priority": "high"})).json()
    assert [(job["fileName"], job["externalId"]) for job in first["jobs"]] == [
        ("a.mp4", "run 7:a.mp4"),
        ("b.MOV", "run 7:b.MOV"),
    ]
    assert [(job.kind, job.high_priority, job.metadata, job.source_filename) for job in near.jobs] == [
        ("ondemand", True, {"a": 1}, "a.mp4"),
        ("ondemand", True, {"a": 1}, "b.MOV"),
    ]
    everything = (await http.post("/ondemand/ingest/folder", json=body)).json()
    assert {job["fileName"] for job in everything["jobs"]} == {"a.mp4", "b.MOV", "d.mkv", "deep/e.webm"}
    await near.wait_until_idle()
    assert {job.status for job in near.jobs} == {"success"}


@pytest.mark.parametrize("prefix", ["nothing/", "in/c"])
async def test_a_folder_without_videos_is_not_found(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore, prefix: str
) -> None:
    bucket = object_store.bucket(**{"in/c.txt": VIDEO})
    body = {"sourceS3": object_store.place(bucket, prefix=prefix)}
    answer = await http.post("/ondemand/ingest/folder", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "no_video_files_found")
    assert not near.jobs


async def test_outputs_that_would_share_a_name_do_not(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore
) -> None:
    bucket = object_store.bucket(**dict.fromkeys(["in/a.mov", "in/a.avi", "in/b.mov"], VIDEO))
    body = {"sourceS3": object_store.place(bucket, prefix="in/"), "outputDestination": "s3"}
    await http.post("/ondemand/ingest/folder", json={**body, "outputS3": object_store.place(bucket)})
    await near.wait_until_idle()
    outputs = [key for key in object_store.keys(bucket) if not key.startswith("in/")]
    assert outputs == ["outputs/a.avi.mp4", "outputs/a.mov.mp4", "outputs/b.mp4"]


def test_no_two_outputs_have_one_name() -> None:
    videos = [f"{stem}{extension}" for stem in ("a", "a.mp4", "a.mkv", "b") for extension in (".mp4", ".mkv", ".mov")]
    for names in itertools.combinations(videos, 3):
        assert len(set(output_names(names, "mp4"))) == 3, names


async def test_a_folder_that_costs_too_much_is_refused_whole(clock: VirtualClock, object_store: ObjectStore) -> None:
    bucket = object_store.bucket(**dict.fromkeys(["a.mp4", "b.mp4"], VIDEO))
    async with (
        Sandbox(clock=clock, tokens=5, allow_private_sources=True) as sandbox,
        client_of(sandbox) as http,
    ):
        answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": object_store.place(bucket)})
        assert (answer.status_code, answer.json()["code"]) == (402, "insufficient_tokens")
        assert not sandbox.jobs
        assert sandbox.tokens.available == 5


async def test_a_listing_is_read_page_by_page(clock: VirtualClock) -> None:
    asked: list[dict[str, str]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        if "list-type" not in request.url.params:
            return httpx.Response(404)  # a job requests its source already
        asked.append(dict(request.url.params))
        page = int(request.url.params.get("continuation-token", "0"))
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{page + 1}</NextContinuationToken>"
        objects = "".join(f"<Contents><Key>{page}-{n}.mp4</Key><Size>9</Size></Contents>" for n in range(400))
        return httpx.Response(200, text=f"<ListBucketResult>{more}{objects}</ListBucketResult>")

    transport = httpx.MockTransport(serve)
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": {"bucket": "b-1", "prefix": "a&b/ "}})
        assert len(answer.json()["jobs"]) == 1000
    assert [(each["prefix"], each.get("continuation-token")) for each in asked] == [
        ("a&b/ ", None),
        ("a&b/ ", "1"),
        ("a&b/ ", "2"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html><p>Welcome!", "is the endpoint right?"),
        ('<?xml version="1.0" encoding="none"?><L/>', "is the endpoint right?"),
        ("<L><Contents><Key>a.mp4</Key><Size>big</Size></Contents></L>", "is the endpoint right?"),
        (f"<L><Contents><Key>a.mp4</Key><Size>{'9' * 19}</Size></Contents></L>", "is the endpoint right?"),
        ("<L><IsTruncated>true</IsTruncated><NextContinuationToken>on</NextContinuationToken></L>", "does not end"),
    ],
    ids=["a page", "an encoding that there is not", "a size that is no number", "a size beyond all", "an endless one"],
)
async def test_a_listing_that_is_none_is_said_so(clock: VirtualClock, content: str, message: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=content))
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": {"bucket": "b-1"}})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert message in answer.json()["message"]


# ---- the wire


async def test_big_objects_pass_through_little_memory(tmp_path: Path) -> None:
    megabytes = 48

    async def film() -> AsyncIterator[bytes]:
        for _ in range(megabytes):
            yield bytes(1 << 20)

    received = 0

    class Store(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal received
            if request.method == "GET":
                return httpx.Response(200, headers={"content-length": str(megabytes << 20)}, content=film())
            assert isinstance(request.stream, httpx.AsyncByteStream)
            received = 0
            async for chunk in request.stream:
                received += len(chunk)
            assert request.headers["content-length"] == str(received)
            return httpx.Response(200)

    s3 = S3(Network(Store(), allow_private=False))
    place = {"bucket": "b-1", "key": "k", "accessKeyId": "AKID", "secretAccessKey": "hush"}
    await s3.store(place, Path(__file__), "video/mp4")  # imports the modules for signing
    tracemalloc.start()
    try:
        await s3.fetch(place, tmp_path / "film", limit=megabytes << 20)
        await s3.store(place, tmp_path / "film", "video/mp4")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == megabytes << 20
    assert peak < 8 << 20


async def test_an_object_beyond_the_limit_fails_its_job(clock: VirtualClock) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=bytes(100)))
    rules = Rules(max_source_bytes=99)
    async with Sandbox(clock=clock, rules=rules, source_transport=transport) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", json={**JOB, "sourceS3": {"bucket": "b-1", "key": "k"}, "confirm": True})
        await sandbox.wait_until_idle()
        assert sandbox.jobs[0].failure_message == "The file has more than 99 bytes"
        assert not [path async for path in anyio.Path(sandbox.folder / "in").glob("*")]


@pytest.mark.parametrize("key", KEYS)
async def test_what_is_signed_is_what_is_sent(tmp_path: Path, key: str) -> None:
    sent: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, content=b"film")

    place = {"bucket": "b-1", "key": key, "accessKeyId": "AKID", "secretAccessKey": "hush", "region": "eu-west-1"}
    await S3(Network(httpx.MockTransport(serve), allow_private=False)).fetch(place, tmp_path / "film", limit=9)
    (request,) = sent
    assert unquote(request.extensions["target"].decode()) == f"/{key}"
    assert request.headers["host"] == "b-1.s3.eu-west-1.amazonaws.com"
    assert "/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-" in request.headers["authorization"]
