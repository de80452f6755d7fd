"""The pages of jobs and of the API: they show an account its own jobs, and load nothing from other hosts."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sandbox_help import URL_JOB, client_of

from convertrilo._openapi import find_openapi
from convertrilo.operations import OPERATIONS
from convertrilo.sandbox import Sandbox

PAGES = ["/", "/docs"]
ELSEWHERE = re.compile(rb"(?:https?:)?//(?! )[\w.]+\.\w")


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_and_all_it_loads_come_from_the_sandbox(bare: httpx.AsyncClient, page: str) -> None:
    answer = await bare.get(page)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(loaded) >= 3
    for path in loaded:
        assert path.startswith("/")
        part = await bare.get(path)
        assert part.status_code == 200
        assert "default-src 'none'" in part.headers["content-security-policy"]
        if path != "/openapi.yaml":
            assert not ELSEWHERE.search(part.content)
    scripts = [path for path in loaded if path.endswith(".js")]
    ids = set(re.findall(r'id="(\w+)"', answer.text))
    used = {found for path in scripts for found in re.findall(r'getElementById\("(\w+)"', (await bare.get(path)).text)}
    assert used <= ids, "what the scripts look for is on the page"


async def test_the_api_page_is_fed_from_openapi_yaml(bare: httpx.AsyncClient) -> None:
    text = (await bare.get("/openapi.yaml")).text
    as_json: dict[str, Any] = (await bare.get("/openapi.json")).json()
    assert as_json == yaml.safe_load(text)
    ids = {operation["operationId"] for item in as_json["paths"].values() for operation in item.values()}
    assert ids == set(OPERATIONS)


@pytest.mark.parametrize("where", ["wheel", "checkout"])
def test_openapi_yaml_is_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, where: str) -> None:
    package = tmp_path / "convertrilo"
    package.mkdir()
    with pytest.raises(FileNotFoundError):
        find_openapi(package)
    (package if where == "wheel" else tmp_path).joinpath("openapi.yaml").write_bytes(b"openapi: 3.0.3")
    assert find_openapi(package).read_bytes() == b"openapi: 3.0.3"


async def test_the_jobs_are_shown_to_whom_they_belong(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        await http.post("/jobs", json={**URL_JOB, "externalId": name, "confirm": name == "b"})
    await sandbox.wait_until_idle()
    shown = (await http.get("/pages/jobs")).json()
    assert shown["total"] == 2
    assert [(job["externalId"], job["status"], job["pct"]) for job in shown["jobs"]] == [
        ("b", "success", 100),
        ("a", "created", 0),
    ]
    async with client_of(sandbox, accept="*/*") as bare:
        assert (await bare.get(shown["jobs"][0]["downloadUrl"])).content[4:8] == b"ftyp"
        assert (await bare.get("/pages/jobs")).json()["code"] == "invalid_api_key"
    _, key = await sandbox.add_account("other@example.com", "other-password")
    assert (await http.get("/pages/jobs", headers={"x-api-key": key})).json() == {"total": 0, "jobs": []}


async def test_the_pages_are_no_requests_to_the_api(sandbox: Sandbox, http: httpx.AsyncClient) -> None:
    for path in (*PAGES, "/pages/jobs", "/openapi.json"):
        assert (await http.get(path)).status_code == 200
    assert sandbox.requests == []
