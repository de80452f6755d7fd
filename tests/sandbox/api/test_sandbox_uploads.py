"""Uploads and downloads: presigned URLs, ranges, uploads in parts."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from sandbox_help import JOB, URL_JOB, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock


async def create(http: httpx.AsyncClient) -> tuple[str, str]:
    created = (await http.post("/jobs", json=JOB)).json()
    return created["jobId"], created["upload"]["url"]


def source_of(sandbox: Sandbox, job: str) -> bytes:
    return (sandbox.folder / "in" / job).read_bytes()


async def test_an_upload_is_streamed_and_answers_its_md5(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    job, url = await create(http)
    whole = bytes(range(256)) * 12_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 100_000):
            yield whole[start : start + 100_000]

    answer = await bare.put(url, content=pieces())
    assert answer.status_code == 200
    assert answer.headers["etag"] == f'"{hashlib.md5(whole).hexdigest()}"'
    assert source_of(sandbox, job) == whole


async def test_an_upload_that_breaks_off_leaves_nothing(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    job, url = await create(http)

    class BrokenError(Exception):
        pass

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a beginning"
        raise BrokenError

    with pytest.raises(BrokenError):
        await bare.put(url, content=pieces())
    assert (await http.get(f"/jobs/{job}/probe-duration")).status_code == 400
    await bare.put(url, content=b"whole")
    assert [path.name for path in (sandbox.folder / "in").iterdir()] == [job]


async def test_an_upload_can_be_replaced_until_the_job_is_confirmed(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    job, url = await create(http)
    for content in (b"first", b"second"):
        assert (await bare.put(url, content=content)).status_code == 200
    assert source_of(sandbox, job) == b"second"
    await http.post(f"/jobs/{job}/confirm")
    await sandbox.wait_until_idle()
    assert (await bare.put(url, content=b"third")).json()["code"] == "invalid_request"
    assert not (sandbox.folder / "in" / job).exists()


async def test_a_presigned_url_expires(bare: httpx.AsyncClient, http: httpx.AsyncClient, clock: VirtualClock) -> None:
    _, url = await create(http)
    clock.advance(3600)
    answer = await bare.put(url, content=b"late")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("change", ["another job", "another method", "another time", "no signature", "text", "unicode"])
async def test_a_presigned_url_is_for_one_object_and_one_method(
    bare: httpx.AsyncClient, http: httpx.AsyncClient, change: str
) -> None:
    job, url = await create(http)
    other, _ = await create(http)
    changed = {
        "another job": url.replace(job, other),
        "another method": url,
        "another time": url.replace("expires=1", "expires=2"),
        "no signature": url.partition("&")[0],
        "text": url.replace("expires=", "expires=x"),
        "unicode": url + "%C3%A4",
    }[change]
    answer = await bare.request("GET" if change == "another method" else "PUT", changed)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_storage_refuses_api_credentials(http: httpx.AsyncClient) -> None:
    _, url = await create(http)
    assert (await http.put(url, content=b"x")).status_code == 400


async def test_a_source_can_be_too_big(clock: VirtualClock) -> None:
    rules = Rules(max_source_bytes=10)
    async with (
        Sandbox(clock=clock, rules=rules) as sandbox,
        client_of(sandbox) as http,
        client_of(sandbox, a="b") as bare,
    ):
        job, url = await create(http)
        answer = await bare.put(url, content=b"x" * 11)
        assert (answer.status_code, answer.json()["code"]) == (400, "file_too_large")
        assert not (sandbox.folder / "in" / job).exists()


# ---- downloads


async def output(sandbox: Sandbox, http: httpx.AsyncClient) -> str:
    job = (await http.post("/jobs", json={**URL_JOB, "confirm": True})).json()["jobId"]
    await sandbox.wait_until_idle()
    url: str = (await http.get(f"/jobs/{job}/status")).json()["downloadUrl"]
    return url


async def test_a_download_resumes_where_it_stopped(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient
) -> None:
    url = await output(sandbox, http)
    whole = await bare.get(url)
    size, etag = len(whole.content), whole.headers["etag"]
    assert whole.headers["content-length"] == str(size)
    assert whole.headers["accept-ranges"] == "bytes"
    head = await bare.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    rest = await bare.get(url, headers={"range": "bytes=100-", "if-range": etag})
    assert (rest.status_code, rest.content) == (206, whole.content[100:])
    assert rest.headers["content-range"] == f"bytes 100-{size - 1}/{size}"
    changed = await bare.get(url, headers={"range": "bytes=100-", "if-range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole.content)
    assert (await bare.get(url, headers={"range": f"bytes={size}-"})).status_code == 416


async def test_a_download_url_expires_and_a_fresh_status_brings_a_new_one(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient, clock: VirtualClock
) -> None:
    url = await output(sandbox, http)
    clock.advance(86_400)
    assert (await bare.get(url)).status_code == 403
    fresh = (await http.get(f"/jobs/{sandbox.jobs[0].id}/status")).json()["downloadUrl"]
    assert (await bare.get(fresh)).status_code == 200


async def test_an_on_demand_output_is_gone_after_its_expiry(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient, clock: VirtualClock
) -> None:
    body = {"sourceUrl": "https://a.example/b.mp4", "outputExpiry": 3600}
    status_url = (await http.post("/ondemand/encode", json=body)).json()["statusUrl"]
    await sandbox.wait_until_idle()
    url = (await http.get(status_url)).json()["downloadUrl"]
    clock.advance(3599)
    assert (await bare.get(url)).status_code == 200
    clock.advance(1)
    status = (await http.get(status_url)).json()
    assert (status["status"], status["downloadUrl"], status["expiresIn"]) == ("success", None, None)
    assert (await bare.get(url)).status_code == 403


# ---- uploads in parts


async def start(http: httpx.AsyncClient) -> str:
    job, _ = await create(http)
    opened = (await http.post(f"/jobs/{job}/stream/init")).json()
    assert opened["ok"]
    assert opened["inputKey"] == f"in/{job}/source"
    assert opened["uploadId"]
    return job


async def send(http: httpx.AsyncClient, job: str, number: int, content: bytes) -> dict[str, Any]:
    answer = await http.put(f"/jobs/{job}/stream/chunk/{number}", content=content)
    assert answer.status_code == 200, answer.text
    return {"PartNumber": number, "ETag": answer.headers["etag"]}


@pytest.mark.parametrize("listed", [True, False])
async def test_parts_in_any_order_and_resent_become_the_source(
    sandbox: Sandbox, http: httpx.AsyncClient, *, listed: bool
) -> None:
    job = await start(http)
    await send(http, job, 2, b"wrong")
    parts = [await send(http, job, number, content) for number, content in ((3, b"ccc"), (1, b"a"), (2, b"bb"))]
    body = {"parts": [{**part, "ETag": part["ETag"].strip('"')} for part in parts]} if listed else None
    assert (await http.post(f"/jobs/{job}/stream/finalize", json=body)).status_code == 200
    assert source_of(sandbox, job) == b"abbccc"
    assert not (sandbox.folder / "parts" / job).exists()
    assert (await http.post(f"/jobs/{job}/confirm")).status_code == 200
    await sandbox.wait_until_idle()
    assert sandbox.jobs[0].status == "success"


async def test_a_finalize_that_does_not_fit_the_parts_is_refused(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    job = await start(http)
    assert (await http.post(f"/jobs/{job}/stream/finalize")).json()["message"] == "No part has been uploaded."
    first, third = await send(http, job, 1, b"a"), await send(http, job, 3, b"c")
    assert (await http.post(f"/jobs/{job}/stream/finalize")).json()["message"] == "Part 2 is missing."
    wrong = {"parts": [first, {"PartNumber": 2, "ETag": "x"}, {**third, "ETag": "x"}]}
    answer = await http.post(f"/jobs/{job}/stream/finalize", json=wrong)
    assert [issue["path"] for issue in answer.json()["issues"]] == ["parts[1].PartNumber", "parts[2].ETag"]
    assert (await http.post(f"/jobs/{job}/stream/finalize", json={"parts": [first]})).status_code == 200
    assert source_of(sandbox, job) == b"a"
    assert (await http.post(f"/jobs/{job}/stream/finalize")).json()["code"] == "invalid_request"


async def test_an_aborted_upload_drops_its_parts_and_the_job_stays(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    job = await start(http)
    await send(http, job, 1, b"old")
    for _ in range(2):
        assert (await http.post(f"/jobs/{job}/stream/abort")).status_code == 200
    assert not (sandbox.folder / "parts" / job).exists()
    assert (await http.put(f"/jobs/{job}/stream/chunk/1", content=b"x")).json()["code"] == "invalid_request"
    await http.post(f"/jobs/{job}/stream/init")
    await send(http, job, 1, b"new")
    await http.post(f"/jobs/{job}/stream/finalize")
    assert source_of(sandbox, job) == b"new"


def lying_about(sandbox: Sandbox) -> list[str]:
    return [path.name for path in sandbox.folder.rglob("*") if path.is_file() and path.name != "sample.mp4"]


@pytest.mark.parametrize("ending", ["confirm", "cancel"])
async def test_a_job_that_has_gone_on_takes_no_source_any_more_and_keeps_no_part(
    sandbox: Sandbox, http: httpx.AsyncClient, bare: httpx.AsyncClient, ending: str
) -> None:
    job, url = await create(http)
    await bare.put(url, content=b"whole")
    await http.post(f"/jobs/{job}/stream/init")
    await send(http, job, 1, b"a")
    gone_on = anyio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"too"
        await gone_on.wait()
        yield b"late"

    async def put(http: httpx.AsyncClient, url: str) -> None:
        assert (await http.put(url, content=slowly())).json()["code"] == "invalid_request"

    async with anyio.create_task_group() as late:
        late.start_soon(put, bare, url)
        late.start_soon(put, http, f"/jobs/{job}/stream/chunk/2")
        await anyio.wait_all_tasks_blocked()
        assert (await http.post(f"/jobs/{job}/{ending}")).status_code == 200
        await sandbox.wait_until_idle()
        gone_on.set()
    assert (await http.post(f"/jobs/{job}/stream/finalize")).json()["code"] == "invalid_request"
    assert sandbox.jobs[0].ended
    assert sandbox.jobs[0].duration == (60 if ending == "confirm" else None)
    assert lying_about(sandbox) == []


async def test_a_part_that_comes_while_its_upload_is_aborted_is_refused(
    sandbox: Sandbox, http: httpx.AsyncClient
) -> None:
    job = await start(http)
    await send(http, job, 2, b"bb")
    aborted = anyio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"a"
        await aborted.wait()

    async def put() -> None:
        answer = await http.put(f"/jobs/{job}/stream/chunk/1", content=slowly())
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")

    async with anyio.create_task_group() as late:
        late.start_soon(put)
        await anyio.wait_all_tasks_blocked()
        assert (await http.post(f"/jobs/{job}/stream/abort")).status_code == 200
        aborted.set()
    assert lying_about(sandbox) == []


async def test_an_upload_that_is_finalized_several_times_at_once_is_finalized_once(
    sandbox: Sandbox, http: httpx.AsyncClient
) -> None:
    job = await start(http)
    for number in range(1, 6):
        await send(http, job, number, b"a")
    statuses: list[int] = []

    async def finalize() -> None:
        statuses.append((await http.post(f"/jobs/{job}/stream/finalize")).status_code)

    async with anyio.create_task_group() as together:
        for _ in range(4):
            together.start_soon(finalize)
    assert sorted(statuses) == [200, 400, 400, 400]
    assert source_of(sandbox, job) == b"aaaaa"
    assert lying_about(sandbox) == [job]


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "1.5", "99999999999999999999", "²"])
async def test_a_part_has_a_number_from_1_to_10000(http: httpx.AsyncClient, number: str) -> None:
    job = await start(http)
    answer = await http.put(f"/jobs/{job}/stream/chunk/{number}", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_a_job_that_names_its_source_takes_no_upload(http: httpx.AsyncClient) -> None:
    job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
    assert (await http.post(f"/jobs/{job}/stream/init")).json()["code"] == "invalid_request"
