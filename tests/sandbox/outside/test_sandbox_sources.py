"""Sources on the web: which are allowed, and how misbehaving servers are handled."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import httpx
import pytest
from sandbox_help import ON_DEMAND, URL_JOB, client_of

from convertrilo.sandbox import Rules, Sandbox, VirtualClock
from convertrilo.sandbox.outside.network import Network


@pytest.mark.parametrize(
    ("url", "rules", "code"),
    [
        ("ftp://a.example/b", {}, "invalid_url"),
        ("https:///b", {}, "invalid_url"),
        ("https://user:secret@a.example/b", {}, "invalid_url"),
        ("https://[::1/b", {}, "invalid_url"),
        ("https://a.example:x/b", {}, "invalid_url"),
        ("https://xn--/b", {}, "invalid_url"),
        ("http://①②⑦.0.0.1/b", {}, "invalid_url"),
        ("http://127.0.0.1/b", {}, "private_ip_blocked"),
        ("http://localhost/b", {}, "private_ip_blocked"),
        ("http://[::1]/b", {}, "private_ip_blocked"),
        ("http://10.1.2.3/b", {}, "private_ip_blocked"),
        ("http://169.254.169.254/latest", {}, "private_ip_blocked"),
        ("https://evil.example./b", {"blocked_hosts": frozenset({"evil.example"})}, "url_host_blocked"),
        ("https://Evil.example/b", {"blocked_hosts": frozenset({"evil.example"})}, "url_host_blocked"),
        ("https://a.example/b", {"signed_urls_only": True}, "signed_url_required"),
        ("https://a.example/b", {"url_ingest": False}, "url_ingest_disabled"),
    ],
)
@pytest.mark.parametrize("path", ["/ondemand/encode", "/jobs", "/public/jobs"])
async def test_a_url_that_breaks_a_rule_is_refused_at_creation(
    clock: VirtualClock, path: str, url: str, rules: dict[str, Any], code: str
) -> None:
    async with Sandbox(clock=clock, rules=Rules(**rules)) as sandbox, client_of(sandbox) as http:
        answer = await http.post(path, json={**URL_JOB, "sourceUrl": url})
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert not sandbox.jobs


@pytest.mark.parametrize("failure", [httpx.ConnectError, httpx.ConnectTimeout])
async def test_each_address_of_a_host_is_tried(
    failure: type[httpx.TransportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_arguments: Any, **_options: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, 0)) for address in ("::1", "127.0.0.1")]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    there = {"127.0.0.1"}
    asked: list[tuple[str, str]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers["host"]))
        if request.url.host not in there:
            raise failure("refused", request=request)
        return film()

    network = Network(None, allow_private=True)
    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http:
        answer = await network.send(http, http.build_request("GET", "http://localhost/b"))
        assert await answer.aread() == b"film"
        assert asked == [("::1", "localhost"), ("127.0.0.1", "localhost")]
        there.clear()
        with pytest.raises(failure):
            await network.send(http, http.build_request("GET", "http://localhost/b"))
        assert asked[2:] == asked[:2]


async def test_a_host_that_does_not_resolve_is_refused() -> None:
    async with Sandbox(encoder="ffmpeg") as sandbox, client_of(sandbox) as http:
        answer = await http.post("/jobs", json={**URL_JOB, "sourceUrl": "https://no-such-host.invalid/b"})
        assert (answer.status_code, answer.json()["code"]) == (400, "host_not_resolvable")


Serve = Callable[[httpx.Request], httpx.Response]


def film(content: bytes = b"film", kind: str = "video/mp4") -> httpx.Response:
    return httpx.Response(200, headers={"content-type": kind}, content=content)


async def endless() -> AsyncIterator[bytes]:
    yield b"film"


@pytest.mark.parametrize(
    ("serve", "code"),
    [
        (lambda _: film(kind="text/html; charset=utf-8"), "unsupported_content_type"),
        (lambda _: film(b"film" * 300), "file_too_large"),
        (lambda _: httpx.Response(200, content=endless()), "missing_content_length"),
        (lambda _: httpx.Response(404), "probe_failed"),
        (lambda _: httpx.Response(302, headers={"location": "https://a.example/again"}), "probe_failed"),
        (lambda _: httpx.Response(302, headers={"location": "http://127.0.0.1/x"}), "private_ip_blocked"),
        (lambda _: httpx.Response(302, headers={"location": "file:///etc/passwd"}), "invalid_url"),
        (lambda _: httpx.Response(302, headers={"location": "http://xn--/x"}), "probe_failed"),
        (lambda _: httpx.Response(302, headers={"location": "javascript:x"}), "probe_failed"),
    ],
)
async def test_a_source_that_misbehaves_is_refused_on_demand_and_fails_a_job(
    clock: VirtualClock, serve: Serve, code: str
) -> None:
    rules = Rules(max_source_bytes=1000)
    transport = httpx.MockTransport(serve)
    async with Sandbox(clock=clock, source_transport=transport, rules=rules) as sandbox, client_of(sandbox) as http:
        answer = await http.post("/ondemand/encode", json=ON_DEMAND)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
        assert (await http.post("/jobs", json={**URL_JOB, "confirm": True})).status_code == 200
        await sandbox.wait_until_idle()
        assert [job.status for job in sandbox.jobs] == ["failed"]
        assert sandbox.jobs[0].failure_message
        assert "its log says why" not in sandbox.jobs[0].failure_message
        assert sandbox.tokens.available == sandbox.tokens.granted


async def test_a_source_is_fetched_through_redirects_and_sees_no_credentials(clock: VirtualClock) -> None:
    seen: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path != "/there":
            return httpx.Response(302, headers={"location": "/there"})
        return film()

    transport = httpx.MockTransport(serve)
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        job = (await http.post("/jobs", json=URL_JOB)).json()["jobId"]
        assert (await http.get(f"/jobs/{job}/status")).json()["ingest"] == "pending"
        assert (await http.get(f"/jobs/{job}/probe-duration")).status_code == 200
        assert (sandbox.folder / "in" / job).read_bytes() == b"film"
        await http.post(f"/jobs/{job}/confirm")
        await sandbox.wait_until_idle()
        assert (await http.get(f"/jobs/{job}/status")).json()["ingest"] == "done"
    assert [request.url.path for request in seen] == ["/holiday.mov", "/there"]
    assert not any("x-api-key" in request.headers for request in seen)


async def test_a_source_that_ends_early_fails_the_job(clock: VirtualClock) -> None:
    class Short(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"film"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-length": "9"}, stream=Short()))
    async with Sandbox(clock=clock, source_transport=transport) as sandbox, client_of(sandbox) as http:
        await http.post("/jobs", json={**URL_JOB, "confirm": True})
        await sandbox.wait_until_idle()
        assert sandbox.jobs[0].failure_message == "the source ended after 4 of its 9 bytes"
        assert not [path async for path in anyio.Path(sandbox.folder / "in").glob("*")]
