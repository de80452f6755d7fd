"""S3 with checked signatures, run by `nox -s s3`: the default test server accepts every signature."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from object_store import ObjectStore
from sandbox_help import JOB, client_of
from test_sandbox_s3 import KEYS, VIDEO, Watched

from convertrilo.sandbox import Sandbox, VirtualClock
from convertrilo.sandbox.outside.s3 import address

HARD_KEYS = [
    *KEYS,
    " led and trailed by a space.mp4 /x.mp4",
    "!$()*,:;@[]^_`{|}~\\.mp4",
    "%2F and %.mp4",
    "++ = &amp;.mp4",
    "new\nline\tand tab.mp4",
    "日本/🎬 e\u0301.mp4",
]
FILM = "films/a b+c.mp4"


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
async def near(clock: VirtualClock, watched: Watched) -> AsyncIterator[Sandbox]:
    """A sandbox that fetches every source, and allows object stores on this machine."""
    async with Sandbox(clock=clock, seed=1, allow_private_sources=True, source_transport=watched) as sandbox:
        yield sandbox


@pytest.fixture
async def http(near: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(near) as http:
        yield http


async def test_private_objects_are_read_and_written_whatever_is_in_their_keys(
    near: Sandbox, http: httpx.AsyncClient, watched: Watched, object_store: ObjectStore
) -> None:
    source, target = object_store.private_bucket(**dict.fromkeys(HARD_KEYS, VIDEO)), object_store.private_bucket()
    body = {"sourceS3": object_store.place(source), "outputDestination": "s3"}
    body["outputS3"] = object_store.place(target, prefix="out +%/")
    answer = await http.post("/ondemand/ingest/folder", json=body)
    assert sorted(job["fileName"] for job in answer.json()["jobs"]) == sorted(HARD_KEYS)
    await near.wait_until_idle()
    assert [job.failure_message for job in near.jobs] == [None] * len(HARD_KEYS)
    assert object_store.keys(target) == sorted(f"out +%/{key}" for key in HARD_KEYS)
    assert {object_store.get(target, key)[4:8] for key in object_store.keys(target)} == {b"ftyp"}
    assert {request.url.raw_path.split(b"/")[1].partition(b"?")[0].decode() for request in watched.requests} == {
        source,
        target,
    }, "the bucket is in the path"


PREFIX = "100% ü+/?#&=/"


@pytest.fixture(scope="module")
def big_folder(object_store: ObjectStore) -> str:
    """A folder of more objects than one page of a listing; the only video is on the second page."""
    names = [*(f"{PREFIX}{number:04} +%&.txt" for number in range(1_000)), f"{PREFIX}z.mp4"]
    return object_store.private_bucket(**dict.fromkeys(names, VIDEO))


async def test_a_private_prefix_is_listed_page_by_page(
    http: httpx.AsyncClient, watched: Watched, object_store: ObjectStore, big_folder: str
) -> None:
    place = object_store.place(big_folder, prefix=PREFIX)
    answer = await http.post("/ondemand/ingest/folder", json={"sourceS3": place})
    assert [job["fileName"] for job in answer.json()["jobs"]] == ["z.mp4"]
    listings = [request.url.params for request in watched.requests if "list-type" in request.url.params]
    assert ["continuation-token" in params for params in listings] == [False, True]


REFUSALS = [
    ({"secretAccessKey": "not the secret"}, "the object store answers 403 SignatureDoesNotMatch"),
    ({"accessKeyId": "NOBODY"}, "the object store answers 403 InvalidAccessKeyId"),
    ({"accessKeyId": None, "secretAccessKey": None}, "the object store answers 403 AccessDenied"),
]


@pytest.mark.parametrize(("credentials", "reason"), REFUSALS, ids=["wrong secret", "unknown key", "anonymous"])
async def test_who_may_not_use_a_bucket_is_told_why(
    near: Sandbox,
    http: httpx.AsyncClient,
    object_store: ObjectStore,
    credentials: dict[str, str | None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket = object_store.private_bucket(**{FILM: VIDEO})
    known = object_store.place(bucket)
    place = {name: value for name, value in {**known, **credentials}.items() if value is not None}

    listed = await http.post("/ondemand/ingest/folder", json={"sourceS3": place})
    assert (listed.status_code, listed.json()["code"]) == (400, "invalid_request")
    assert reason in listed.json()["message"]

    read = await http.post("/jobs", json={**JOB, "sourceS3": {**place, "key": FILM}, "confirm": True})
    assert read.status_code == 200, read.text
    body = {"sourceS3": known, "outputDestination": "s3", "outputS3": {**place, "prefix": "out/"}}
    written = await http.post("/ondemand/ingest/folder", json=body)
    assert written.status_code == 200, written.text
    await near.wait_until_idle()
    assert [(job.status, job.failure_message) for job in near.jobs] == [
        ("failed", reason),
        ("failed", f"the output could not be written: {reason}"),
    ]
    assert object_store.keys(bucket) == [FILM]
    assert near.tokens.available == near.tokens.granted
    shown = f"{listed.text}{read.text}{written.text}{near.jobs}{caplog.text}"
    secrets = (object_store.secret_access_key, "not the secret", "Signature=")
    assert not [secret for secret in secrets if secret in shown]


# ---- presigned URLs


class SignedAt(S3SigV4QueryAuth):
    """Signs a URL for one minute, as if at a given time."""

    def __init__(self, store: ObjectStore, time: datetime) -> None:
        super().__init__(Credentials(store.access_key_id, store.secret_access_key), "s3", "us-east-1", expires=60)
        self._time = time

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self._time.strftime("%Y%m%dT%H%M%SZ")
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs lack it


def presigned(store: ObjectStore, bucket: str, *, age: timedelta = timedelta()) -> str:
    request = AWSRequest(method="GET", url=address(store.place(bucket), FILM))
    SignedAt(store, datetime.now(UTC) - age).add_auth(request)
    return str(request.url)


async def test_a_presigned_url_is_a_source(near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore) -> None:
    url = presigned(object_store, object_store.private_bucket(**{FILM: VIDEO}))
    job = (await http.post("/jobs", json={**JOB, "sourceUrl": url})).json()["jobId"]
    assert (await http.get(f"/jobs/{job}/probe-duration")).status_code == 200
    assert (near.folder / "in" / job).read_bytes() == VIDEO
    assert (await http.post("/ondemand/encode", json={"sourceUrl": url})).status_code == 200
    await http.post(f"/jobs/{job}/confirm")
    await near.wait_until_idle()
    assert [(each.status, each.failure_message) for each in near.jobs] == [("success", None)] * 2


@pytest.mark.parametrize("spoilt", ["expired", "changed", "unsigned"])
async def test_a_presigned_url_that_does_not_hold_fails_clearly(
    near: Sandbox, http: httpx.AsyncClient, object_store: ObjectStore, spoilt: str
) -> None:
    bucket = object_store.private_bucket(**{FILM: VIDEO})
    url = presigned(object_store, bucket)
    urls: dict[str, Any] = {
        "expired": presigned(object_store, bucket, age=timedelta(hours=1)),
        "changed": url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        "unsigned": url.partition("?")[0],
    }
    answer = await http.post("/ondemand/encode", json={"sourceUrl": urls[spoilt]})
    assert (answer.status_code, answer.json()["code"]) == (400, "probe_failed")
    assert answer.json()["message"] == "The source cannot be used: the source's server answers 403."
    await http.post("/jobs", json={**JOB, "sourceUrl": urls[spoilt], "confirm": True})
    await near.wait_until_idle()
    assert [(job.status, job.failure_message) for job in near.jobs] == [("failed", "the source's server answers 403")]
