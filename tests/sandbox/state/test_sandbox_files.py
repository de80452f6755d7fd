"""Names from requests never become paths: nothing outside the state folder is written, read or removed."""

import functools
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_help import JOB, ON_DEMAND, client_of

from convertrilo.sandbox import Sandbox, VirtualClock

NAMES = st.one_of(
    st.sampled_from(
        ["../../x", "/etc/passwd", "..", ".", "", "a/../../../b", "C:\\x", "\0", "~", "%2e%2e%2fx", "a\nb"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


def inside(state: Path) -> set[str]:
    """Return the files in the state folder, with the ids of jobs and files replaced."""
    return {
        "/".join(part if len(part) < 30 else "ID" for part in path.relative_to(state).parts)
        for path in state.rglob("*")
        if path.is_file()
    }


@settings(max_examples=10)
@given(names=st.lists(NAMES, min_size=8, max_size=8), part=NAMES)
def test_no_name_leads_out_of_the_state_folder(tmp_path_factory: Any, names: list[str], part: str) -> None:
    root: Path = tmp_path_factory.mktemp("around")
    anyio.run(functools.partial(use_names, root / "state", names, part))
    assert [path.name for path in root.iterdir()] == ["state"]
    assert inside(root / "state") <= {
        "sandbox.db",
        "files/sample.mp4",
        "files/in/ID",
        "files/drive/ID",
        "files/parts/ID/00001",
    }


async def use_names(state: Path, names: list[str], part: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    async with (
        Sandbox(state=state, clock=VirtualClock(), source_transport=transport) as sandbox,
        client_of(sandbox) as http,
        client_of(sandbox, accept="*/*") as bare,
    ):
        name, external_id, key, prefix, folder, file, job_id, storage = names
        job = {**JOB, "originalFilename": name, "externalId": external_id}
        created = (await http.post("/jobs", json=job)).json()
        await bare.put(created["upload"]["url"], content=b"film")
        await http.post(f"/jobs/{created['jobId']}/stream/init")
        await http.put(f"/jobs/{created['jobId']}/stream/chunk/1", content=b"film")
        await http.put(httpx.URL(sandbox.base_url).join(quoted("/jobs", created["jobId"], "stream/chunk", part)))
        for method, path in (("GET", "status"), ("POST", "stream/init"), ("POST", "stream/abort"), ("POST", "confirm")):
            await http.request(method, quoted("/jobs", job_id, path))
        for method in ("GET", "PUT"):
            await bare.request(method, quoted("/storage", storage, ""), params={"expires": "9", "signature": "x"})
            await bare.request(method, quoted("/drive/v3/files", storage, ""))
        await http.post("/jobs", json={**JOB, "sourceS3": {"bucket": "b-1", "key": key}, "confirm": True})
        place = {"folderId": folder, "fileName": file, "accessToken": sandbox.drive.access_token}
        await http.post("/ondemand/encode", json={**ON_DEMAND, "outputGoogleDrive": place})
        await sandbox.drive.add(folder, file, b"film")
        sources = {"sourceGoogleDrive": {k: v for k, v in place.items() if k != "fileName"}}
        await http.post("/ondemand/ingest/folder", json={**sources, "externalIdPrefix": prefix})
        await sandbox.wait_until_idle()
        assert all("/" not in (each.output_filename or "") for each in sandbox.jobs)


def quoted(*parts: str) -> str:
    """Return a path as a client sends it, with the characters escaped that a path cannot contain."""
    first, *rest = parts
    return "/".join([first, *(quote(part, safe="/") for part in rest)])
