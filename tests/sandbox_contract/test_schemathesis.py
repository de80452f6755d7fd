"""schemathesis finds nothing in a sandbox on a port, with `openapi.yaml`, every operation and all checks.

The coverage phase tries every bound and every kind of violation, about 2,000 cases. The fuzzing phase adds 8 cases per
operation, or as many as `CONVERTRILO_CONTRACT_EXAMPLES` says.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from convertrilo.operations import OPERATIONS
from convertrilo.sandbox import Rules, Sandbox, VirtualClock, serve_in_thread
from convertrilo.sandbox.encoding.sample import SAMPLE_MP4

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("CONVERTRILO_CONTRACT_EXAMPLES", "8")
AT_LEAST = 2_000

JOB = {"codec": "h264", "resolution": "720p", "fps": 30}
POOL = 6
OUTPUTS = ["outputDestination", "outputS3", "outputGoogleDrive", "outputDropbox"]
LISTING = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false'
    b"</IsTruncated><KeyCount>1</KeyCount><Contents><Key>clip.mp4</Key><Size>%d</Size></Contents></ListBucketResult>"
)


def everywhere(request: httpx.Request) -> httpx.Response:
    """Respond for every host in a case: with a video, a bucket that has a video, or a bucket to write to."""
    if "list-type" in request.url.params:
        return httpx.Response(200, content=LISTING % len(SAMPLE_MP4), headers={"content-type": "application/xml"})
    return httpx.Response(200, content=SAMPLE_MP4, headers={"content-type": "video/mp4", "etag": '"1"'})


class Known:
    """Creates the objects that cases may use, and passes them to the hooks."""

    def __init__(self, sandbox: Sandbox, http: httpx.Client) -> None:
        self.http = http
        login = {"email": sandbox.email, "password": sandbox.password}
        self.bearer = self.post("/auth/login", login)["accessToken"]
        ids: dict[str, list[str]] = {}
        for names, make in (
            (("probeDuration", "approveUnified", "confirmJob"), self.uploaded_job),
            (("jobStatus", "cancelJob", "initStream", "reserveTokens"), self.job),
            (("uploadChunk", "finalizeStream", "abortStream"), self.open_stream),
            (("releaseTokens", "deductTokens"), self.reserved_job),
            (("onDemandStatus", "onDemandCancel"), self.on_demand_job),
            (("probePublicDuration", "confirmPublicJob"), self.public_job),
            (("updateWebhook", "deleteWebhook", "testWebhook", "getWebhookDeliveries"), self.webhook),
            (("revokeApiKey",), self.api_key),
        ):
            ids |= {name: [make() for _ in range(POOL)] for name in names}
        public = self.post("/public/jobs", JOB)
        few: dict[str, Any] = {"amount": 1}
        folder = {"sourceS3": {"bucket": "videos", "region": "eu-west-1", "accessKeyId": "a", "secretAccessKey": "s"}}
        self.values: dict[str, dict[str, Any]] = {
            **{name: {"ids": found} for name, found in ids.items()},
            "publicJobStatus": {"ids": [public["jobId"]], "query": {"token": public["token"]}},
            "bulkStatus": {"query": {"ids": ",".join(ids["jobStatus"])}},
            "login": {"body": login},
            "createJob": {"without": ["sourceS3", "confirm"], "body": {"container": "mp4"}},
            "createPublicJob": {"body": {"container": "mp4"}},
            "onDemandIngestFolder": {"without": ["sourceGoogleDrive", "sourceDropbox", *OUTPUTS], "body": folder},
            "onDemandEncode": {"without": OUTPUTS, "body": {"container": "mp4"}},
        }
        for name in ("reserveTokens", "releaseTokens", "deductTokens"):
            self.values[name]["body"] = few
        for name in ("approveUnified", "confirmJob"):
            self.values[name]["body"] = {**JOB, "container": "mp4"}

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        answer = self.http.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def job(self) -> str:
        return str(self.post("/jobs", JOB)["jobId"])

    def uploaded_job(self, path: str = "/jobs") -> str:
        job = self.post(path, JOB)
        httpx.put(job["upload"]["url"], content=SAMPLE_MP4, timeout=60).raise_for_status()
        return str(job["jobId"])

    def public_job(self) -> str:
        return self.uploaded_job("/public/jobs")

    def open_stream(self) -> str:
        job = self.job()
        self.post(f"/jobs/{job}/stream/init")
        self.http.put(f"/jobs/{job}/stream/chunk/1", content=SAMPLE_MP4).raise_for_status()
        return job

    def reserved_job(self) -> str:
        job = self.job()
        self.post("/tokens/reserve", {"jobId": job, "amount": 1000})
        return job

    def on_demand_job(self) -> str:
        return str(self.post("/ondemand/encode", {"sourceUrl": "https://media.example/a.mp4"})["jobId"])

    def webhook(self) -> str:
        return str(self.post("/webhooks", {"url": "https://app.example/hook", "events": ["job.completed"]})["id"])

    def api_key(self) -> str:
        return str(self.post("/api-keys", {"name": "one more"}, authorization=f"Bearer {self.bearer}")["id"])


def schema(path: Path) -> None:
    """Write `openapi.yaml` with a rule that it states only in prose: every operation may return any error."""
    document = yaml.safe_load((HERE.parents[1] / "openapi.yaml").read_text(encoding="utf-8"))
    error = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
    for item in document["paths"].values():
        for name, operation in item.items():
            if name != "parameters":
                operation["responses"]["default"] = {"description": "An error", "content": {"application/json": error}}
    path.write_text(json.dumps(document), encoding="utf-8")


CONFIG = """
base-url = {url}
hooks = {hooks}

[auth.openapi.ApiKeyAuth]
api_key = {api_key}

[auth.openapi.BearerAuth]
bearer = {bearer}

# Rules that no schema can express: hosts, valid codecs for a container, prices, existing sources, Dropbox.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 402, 403, 404, 409, 410]

# A wrong job of a bulk request is reported in its item; the response is 200.
[[operations]]
include-operation-id = ["createJobsBulk", "bulkConfirm"]
checks.negative_data_rejection.expected-statuses = ["2xx", "4xx"]
"""


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    sandbox = Sandbox(
        clock=VirtualClock(),
        seed=1,
        tokens=10**9,
        rules=Rules(max_webhooks=10**6),
        source_transport=httpx.MockTransport(everywhere),
        webhook_transport=httpx.MockTransport(lambda _: httpx.Response(200)),
    )
    with (
        serve_in_thread(sandbox) as url,
        httpx.Client(base_url=url, headers={"x-api-key": sandbox.api_key}, timeout=60) as http,
    ):
        known = Known(sandbox, http)
        before = len(sandbox.requests)
        schema(tmp_path / "openapi.json")
        config = CONFIG.format(
            url=json.dumps(url),
            hooks=json.dumps(str(HERE / "schemathesis_hooks.py")),
            api_key=json.dumps(sandbox.api_key),
            bearer=json.dumps(known.bearer),
        )
        (tmp_path / "schemathesis.toml").write_text(config, encoding="utf-8")
        options = (
            f"-n {EXAMPLES} --checks all --continue-on-failure --generation-deterministic --warnings off --no-color"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                "openapi.json",
                "--continue-on-failure",
                *options.split(),
            ],
            cwd=tmp_path,
            env={**os.environ, "CONVERTRILO_KNOWN": json.dumps(known.values)},
            capture_output=True,
            text=True,
            check=False,
        )
        requests = sandbox.requests[before:]
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated is not None, done.stdout
    assert int(generated[1].replace(",", "")) >= AT_LEAST, done.stdout
    succeeded = {each.operation for each in requests if each.status is not None and each.status < 300}
    refused = {each.operation for each in requests if each.status is not None and 400 <= each.status < 500}
    assert succeeded >= OPERATIONS.keys()
    assert refused >= OPERATIONS.keys()
    assert [each for each in requests if each.status is None or each.status >= 500] == []
