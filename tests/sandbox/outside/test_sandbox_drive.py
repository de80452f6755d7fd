"""Google Drive, through the local stand-in: folders as sources, outputs, and invalid tokens."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_help import ON_DEMAND, client_of

from convertrilo.sandbox import Sandbox, StoredFile, VirtualClock

VIDEO = b"not looked into by the instant encoder"


def valid(sandbox: Sandbox, how: str) -> dict[str, str]:
    stale = {"accessToken": "stale"}
    return {
        "access": {"accessToken": sandbox.drive.access_token},
        "refresh": {"refreshToken": sandbox.drive.refresh_token},
        "both": {**stale, "refreshToken": sandbox.drive.refresh_token},
    }[how]


@pytest.mark.parametrize("how", ["access", "refresh", "both"])
async def test_a_drive_folder_is_encoded_into_another(sandbox: Sandbox, http: httpx.AsyncClient, how: str) -> None:
    for name in ("a.mp4", "b.txt", "c.MOV"):
        await sandbox.drive.add("in", name, VIDEO)
    body: dict[str, Any] = {
        "sourceGoogleDrive": {"folderId": "in", **valid(sandbox, how)},
        "outputDestination": "google-drive",
        "outputGoogleDrive": {"folderId": "out", **valid(sandbox, how)},
        "externalIdPrefix": "p",
        "container": "mkv",
    }
    answer = (await http.post("/ondemand/ingest/folder", json=body)).json()
    assert [job["externalId"] for job in answer["jobs"]] == ["p:a.mp4", "p:c.MOV"]
    await sandbox.wait_until_idle()
    assert [job.failure_message for job in sandbox.jobs] == [None, None]
    written = sandbox.drive.in_folder("out")
    assert [file.name for file in written] == ["a.mkv", "c.mkv"]
    assert sandbox.drive.content(written[0].id)[4:8] == b"ftyp"
    status = (await http.get(f"/ondemand/status/{answer['jobs'][0]['jobId']}")).json()
    destination = {"type": "google-drive", "folderId": "out", "fileName": "a.mkv"}
    assert status["destination"].items() >= destination.items()
    assert status["downloadUrl"] is None
    assert not [job for job in sandbox.jobs if "Token" in f"{job.source}{job.destination}"], "forgotten at the end"


async def test_the_sources_are_read_from_drive(clock: VirtualClock) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404))  # no source is on the web
    async with (
        Sandbox(clock=clock, source_transport=transport, encode_seconds=5) as sandbox,
        client_of(sandbox) as http,
    ):
        await sandbox.drive.add("in", "a.mp4", VIDEO)
        place = {"folderId": "in", "accessToken": sandbox.drive.access_token}
        answer = await http.post("/ondemand/ingest/folder", json={"sourceGoogleDrive": place})
        job = answer.json()["jobs"][0]["jobId"]
        await sandbox._encoder.measure(sandbox.jobs[0])
        assert (sandbox.folder / "in" / job).read_bytes() == VIDEO
        clock.advance(5)
        await sandbox.wait_until_idle()
        assert [each.status for each in sandbox.jobs] == ["success"]


@pytest.mark.parametrize("tokens", [{}, {"accessToken": "stale"}, {"refreshToken": "stale"}, {"accessToken": "ключ"}])
@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/ondemand/ingest/folder", "sourceGoogleDrive", {}),
        (
            "/ondemand/ingest/folder",
            "outputGoogleDrive",
            {"sourceS3": {"bucket": "b-1"}, "outputDestination": "google-drive"},
        ),
        ("/ondemand/encode", "outputGoogleDrive", ON_DEMAND),
    ],
)
async def test_without_a_valid_token_drive_is_not_connected(
    sandbox: Sandbox, http: httpx.AsyncClient, path: str, field: str, body: dict[str, Any], tokens: dict[str, str]
) -> None:
    answer = await http.post(path, json={**body, field: {"folderId": "f", **tokens}})
    assert (answer.status_code, answer.json()["code"]) == (401, "google_drive_not_connected")
    assert not sandbox.jobs


async def test_an_output_goes_to_drive_by_the_name_that_was_given(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    place = {"folderId": "o'ut\\", "accessToken": sandbox.drive.access_token}
    for further in ({}, {"fileName": "the film.mp4"}):
        await http.post("/ondemand/encode", json={**ON_DEMAND, "outputGoogleDrive": {**place, **further}})
    await sandbox.wait_until_idle()
    assert [file.name for file in sandbox.drive.in_folder("o'ut\\")] == ["holiday.mp4", "the film.mp4"]


async def test_a_proxy_of_the_environment_is_not_asked_for_what_is_in_process(
    sandbox: Sandbox, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    await sandbox.drive.add("in", "a.mp4", VIDEO)
    place = {"folderId": "in", "accessToken": sandbox.drive.access_token}
    answer = await http.post("/ondemand/ingest/folder", json={"sourceGoogleDrive": place})
    assert answer.status_code == 200


async def test_a_drive_folder_without_videos_is_not_found(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    await sandbox.drive.add("in", "b.txt", VIDEO)
    for folder in ("in", "nowhere"):
        place = {"folderId": folder, "accessToken": sandbox.drive.access_token}
        answer = await http.post("/ondemand/ingest/folder", json={"sourceGoogleDrive": place})
        assert (answer.status_code, answer.json()["code"]) == (404, "no_video_files_found")


async def test_a_folder_is_listed_page_by_page(sandbox: Sandbox, bare: httpx.AsyncClient) -> None:
    names = sorted(f"{number}.mp4" for number in range(7))
    for name in names:
        await sandbox.drive.add("in", name, VIDEO)
    headers, seen = {"authorization": f"Bearer {sandbox.drive.access_token}"}, list[str]()
    params = {"q": "'in' in parents", "pageSize": "3"}
    while True:
        page = (await bare.get("/drive/v3/files", params=params, headers=headers)).json()
        seen += [file["name"] for file in page["files"]]
        if "nextPageToken" not in page:
            break
        params["pageToken"] = page["nextPageToken"]
    assert seen == names
    wrong = await bare.get("/drive/v3/files", params={**params, "pageToken": "zz"}, headers=headers)
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/drive/v3/files", 400),
        ("GET", "/drive/v3/files/nowhere?alt=media", 404),
        ("POST", "/upload/drive/v3/files?uploadType=media", 400),
        ("POST", "/upload/drive/v3/files?uploadType=resumable", 400),
        ("PUT", "/upload/drive/v3/files?upload_id=nowhere", 404),
    ],
)
async def test_the_stand_in_refuses_what_it_does_not_do(
    sandbox: Sandbox, bare: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    assert (await bare.request(method, path)).status_code == 401
    headers = {"authorization": f"Bearer {sandbox.drive.access_token}"}
    answer = await bare.request(method, path, headers=headers, content=b"\xff{")
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status


@pytest.mark.parametrize("content", [b"[" * 60_000, b"x" * 70_000], ids=["too deep", "too long"])
@pytest.mark.parametrize("path", ["/token", "/upload/drive/v3/files?uploadType=resumable"])
async def test_the_stand_in_refuses_what_is_too_much(
    sandbox: Sandbox, bare: httpx.AsyncClient, path: str, content: bytes
) -> None:
    async def pieces() -> AsyncGenerator[bytes]:  # of unknown length
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    headers = {"authorization": f"Bearer {sandbox.drive.access_token}"}
    async with aclosing(pieces()) as body:  # the response arrives before the end of the body
        assert (await bare.post(path, headers=headers, content=body)).status_code == 400


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_names_and_folders_may_be_anything(folder: str, name: str) -> None:
    from convertrilo.sandbox.outside.drive_standin import _page_token

    file = StoredFile("id", folder, name, 1)
    assert bytes.fromhex(_page_token(file)).decode().rpartition("\0")[::2] == (name, "id")
