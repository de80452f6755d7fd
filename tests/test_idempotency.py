"""Which logical operation a call is: identities in their order, pinned keys, and what keys must not depend on."""

import copy
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import EXAMPLES, Answer, Script, Step, call, client_of, ok, problem, raised_by
from support import JOB as PLAIN_JOB

from convertrilo import (
    OPERATIONS,
    AsyncClient,
    BulkCreateRequest,
    BulkCreateSettings,
    ConvertriloError,
    GoogleDriveOutput,
    JobCreateRequest,
    Journal,
    OnDemandEncodeRequest,
    Repeat,
    S3Output,
    S3Source,
    ValidationError,
    derive_key,
)
from convertrilo._model import Model
from convertrilo.idempotency import without_signature
from convertrilo.sandbox import Sandbox

KEYED = [row.id for row in OPERATIONS.values() if row.repeat is Repeat.KEYED]

JOB = {"codec": "av1", "resolution": "1080p", "fps": 30, "externalId": "e-1"}

# ---- signed URLs, and what is left of them

AMZ_4 = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEXAMPLE%2F20260101%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Security-Token=tok%2Ben"
    "&X-Amz-Signature=5f2b0c"
)
GOOG_4 = (
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=a%40b.iam%2F20260101%2Fauto%2Fstorage%2Fgoog4_request"
    "&X-Goog-Date=20260101T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature=00ff"
)
AZURE = "sv=2024-11-04&ss=b&srt=o&sr=b&sp=r&st=2026-01-01&se=2026-01-02&spr=https&sig=a%2Fb%3D"
SIGNED_URLS = {
    "AWS 4": (f"https://b.s3.test/in.mp4?{AMZ_4}", "https://b.s3.test/in.mp4"),
    "AWS 4 among others": (
        f"https://b.s3.test/in.mp4?versionId=7&{AMZ_4}&x-id=GetObject#t=5",
        "https://b.s3.test/in.mp4?versionId=7&x-id=GetObject#t=5",
    ),
    "AWS 4 in lower case": (f"https://b.s3.test/in.mp4?{AMZ_4.lower()}", "https://b.s3.test/in.mp4"),
    "AWS 4 with an escaped name": (
        f"https://b.s3.test/in.mp4?{AMZ_4.replace('X-Amz-Signature', 'X%2DAmz%2DSignature')}",
        "https://b.s3.test/in.mp4",
    ),
    "AWS 4 of S3 Express": (
        f"https://b.s3.test/in.mp4?{AMZ_4}&X-Amz-S3session-Token=t",
        "https://b.s3.test/in.mp4",
    ),
    "AWS 2": (
        "https://b.s3.test/in.mp4?AWSAccessKeyId=AKIA&Expires=1767225600&Signature=s%2B%3D&x-amz-security-token=t",
        "https://b.s3.test/in.mp4",
    ),
    "CloudFront canned": (
        "https://d1.cloudfront.test/in.mp4?Expires=1767225600&Signature=s~_-&Key-Pair-Id=K2",
        "https://d1.cloudfront.test/in.mp4",
    ),
    "CloudFront custom": (
        "https://d1.cloudfront.test/in.mp4?q=1&Policy=eyJ9&Signature=s&Key-Pair-Id=K2&Hash-Algorithm=SHA256",
        "https://d1.cloudfront.test/in.mp4?q=1",
    ),
    "Google 4": (f"https://storage.test/b/in.mp4?generation=5&{GOOG_4}", "https://storage.test/b/in.mp4?generation=5"),
    "Google 2": (
        "https://storage.test/b/in.mp4?GoogleAccessId=a%40b&Expires=1767225600&Signature=s",
        "https://storage.test/b/in.mp4",
    ),
    "Azure": (
        f"https://a.blob.test/c/in.mp4?snapshot=1&{AZURE}",
        "https://a.blob.test/c/in.mp4?snapshot=1",
    ),
    "user and password": ("https://me:secret@videos.test/in.mp4", "https://videos.test/in.mp4"),
    "user and signature": (f"ftp://me@videos.test:21/in.mp4?{AZURE}&a=b", "ftp://videos.test:21/in.mp4?a=b"),
}
UNSIGNED_URLS = [
    "https://videos.test/in.mp4?Expires=1767225600",
    "https://videos.test/in.mp4?Expires=1&Policy=p&st=a&se=b&sp=c",
    "https://videos.test/in.mp4?Signature=s&Expires=1",
    "https://videos.test/in.mp4?sig=s",
    "https://videos.test/in.mp4?X-Amz-Date=1&X-Amz-Expires=2",
    "https://videos.test/in.mp4?next=https://me@other.test/",
    "https://videos.test/me@home/in.mp4#a@b",
    "https://videos.test/in.mp4?",
    "https://videos.test/in%2Emp4?a=%20b+c&a&&=",
]


@pytest.mark.parametrize(("url", "bare"), SIGNED_URLS.values(), ids=SIGNED_URLS)
def test_a_signature_is_no_part_of_a_url(url: str, bare: str) -> None:
    assert without_signature(url) == bare
    assert without_signature(bare) == bare


@pytest.mark.parametrize("url", UNSIGNED_URLS)
def test_without_a_signature_every_byte_of_a_url_counts(url: str) -> None:
    assert without_signature(url) == url


# ---- pinned keys


@dataclass(frozen=True)
class Vector:
    """A body, the text of its body that is hashed, and the key it must have for ever."""

    operation: str
    body: dict[str, Any]
    hashed: str
    key: str
    name: str | None = None
    model: Model | None = None


S3 = {"bucket": "b", "key": "in.mp4", "accessKeyId": "AKIA", "secretAccessKey": "s/+="}
S3_OUT = {"bucket": "b", "key": "out.mp4", "endpoint": "https://s3.test", "accessKeyId": "A", "secretAccessKey": "S"}
DRIVE_OUT = {"folderId": "f", "fileName": "n", "accessToken": "a", "refreshToken": "r"}
SIGNED = f"https://me:pw@b.s3.test/in.mp4?v=1&{AMZ_4}"
JOB_HASHED = '"codec":"av1","externalId":"e-1","fps":30'

VECTORS = {
    "the least": Vector(
        "createJob",
        JOB,
        '{"codec":"av1","externalId":"e-1","fps":30,"resolution":"1080p"}',
        "cvr1-24733093e47b23305e59704c1a2014af97511c658fb14b7bc92a170766deb18d",
        model=JobCreateRequest(external_id="e-1", fps=30, resolution="1080p", codec="av1"),
    ),
    "named": Vector(
        "createJob",
        {"codec": "av1", "resolution": "1080p", "fps": 30},
        '{"codec":"av1","fps":30,"resolution":"1080p"}',
        "cvr1-8f8e657e99a8014290f0f10d31688248c2d313c8fa11a8cc4ab4b27fe6313e06",
        name="holiday video",
    ),
    "a name in unicode": Vector(
        "onDemandEncode",
        {"sourceUrl": "https://videos.test/a"},
        '{"sourceUrl":"https://videos.test/a"}',
        "cvr1-319311bc112605dbeb36fb5732e107fea8d6d3f8ea2fb315b16d267b189840bc",
        name='día "№ 1"\n\u2028\x7f😀',
    ),
    "defaults that were set": Vector(
        "createJob",
        {**JOB, "container": "mp4", "passes": 1, "confirm": False},
        '{"codec":"av1","confirm":false,"container":"mp4","externalId":"e-1","fps":30,"passes":1,"resolution":"1080p"}',
        "cvr1-bd51c6a5cd7d89c73a45c6e2ba3a1081f54cde3e8604710002cde82672ddec68",
    ),
    "null is not set": Vector(
        "createJob",
        {**JOB, "preset": None, "metadata": None},
        f'{{{JOB_HASHED},"resolution":"1080p"}}',
        "cvr1-24733093e47b23305e59704c1a2014af97511c658fb14b7bc92a170766deb18d",
    ),
    "integral floats": Vector(
        "createJob",
        {**JOB, "vmafTarget": 93.0, "metadata": {"a": 1.0, "b": -0.0, "c": 1e3, "d": 1e22}},
        f'{{{JOB_HASHED},"metadata":{{"a":1,"b":0,"c":1000,"d":10000000000000000000000}},"resolution":"1080p","vmafTarget":93}}',
        "cvr1-17e85e434885351609897adb88d3fc943892631f014a5b899ff36d6f3e778040",
    ),
    "integers, written the same": Vector(
        "createJob",
        {**JOB, "vmafTarget": 93, "metadata": {"d": 10**22, "c": 1000, "b": 0, "a": 1}},
        f'{{{JOB_HASHED},"metadata":{{"a":1,"b":0,"c":1000,"d":10000000000000000000000}},"resolution":"1080p","vmafTarget":93}}',
        "cvr1-17e85e434885351609897adb88d3fc943892631f014a5b899ff36d6f3e778040",
    ),
    "floats": Vector(
        "createJob",
        {**JOB, "vmafTarget": 93.5, "metadata": {"small": 1e-7, "third": 1 / 3, "tenth": 0.1, "less": -1.5e-5}},
        f'{{{JOB_HASHED},"metadata":{{"less":-1.5e-05,"small":1e-07,"tenth":0.1,"third":0.3333333333333333}},'
        '"resolution":"1080p","vmafTarget":93.5}',
        "cvr1-8f4798f0c4c7b23083d341674cff6e3bb0b625f9ffe3d7d5bad4322be4417393",
    ),
    "big integers": Vector(
        "createJob",
        {**JOB, "metadata": {"a": 2**70, "b": -(2**70), "c": 2**63, "d": 2**53 + 1}},
        f'{{{JOB_HASHED},"metadata":{{"a":1180591620717411303424,"b":-1180591620717411303424,'
        '"c":9223372036854775808,"d":9007199254740993},"resolution":"1080p"}',
        "cvr1-856c21b08fd5e9d6ae47d523eefeff6bf21ce860bf25ac552452ac92ad779ad4",
    ),
    "nested metadata in unicode": Vector(
        "createJob",
        {
            **JOB,
            "externalId": 'Zoë/№ 1\t"\\\u0000',
            "metadata": {
                "ü": {"z": [1, None, True, {"b": [], "a": {}}]},
                "Z": "🎬",
                "a": "\u00e9e\u0301",
                "accessToken": "kept",
            },
        },
        '{"codec":"av1","externalId":"Zoë/№ 1\\t\\"\\\\\\u0000","fps":30,'
        '"metadata":{"Z":"🎬","a":"\u00e9e\u0301","accessToken":"kept","ü":{"z":[1,null,true,{"a":{},"b":[]}]}},'
        '"resolution":"1080p"}',
        "cvr1-66c08dbf60b5bbd8c3978f6c46aef2faa4001b738f63837064ad9e927b21df8b",
    ),
    "source in S3": Vector(
        "createJob",
        {**JOB, "sourceS3": {**S3, "region": "eu-1", "endpoint": "https://u:p@s3.test"}},
        f'{{{JOB_HASHED},"resolution":"1080p","sourceS3":{{"bucket":"b","endpoint":"https://s3.test","key":"in.mp4","region":"eu-1"}}}}',
        "cvr1-58a75d6a873ff06c83708f5743b65d8fc98ab14170235ed2625546ff54fc8331",
        model=JobCreateRequest(
            codec="av1",
            resolution="1080p",
            fps=30,
            external_id="e-1",
            source_s3=S3Source(
                bucket="b",
                key="in.mp4",
                region="eu-1",
                endpoint="https://u:p@s3.test",
                access_key_id="other",
                secret_access_key="other",
            ),
        ),
    ),
    "source at a signed URL": Vector(
        "createJob",
        {**JOB, "sourceUrl": SIGNED},
        f'{{{JOB_HASHED},"resolution":"1080p","sourceUrl":"https://b.s3.test/in.mp4?v=1"}}',
        "cvr1-da4b0defe0896869c5189334e98a2a6c96c6923838edd23d16c5a462dc26f0e4",
    ),
    "fields of a later version": Vector(
        "createJob",
        {**JOB, "zoom": 2.0, "audio": {"b": 1, "a": 2}},
        f'{{"audio":{{"a":2,"b":1}},{JOB_HASHED},"resolution":"1080p","zoom":2}}',
        "cvr1-6a7b2598cc0e7c6c5e9f5e0149ac363c765212382a1290d0e7674990b576421f",
        model=JobCreateRequest(
            codec="av1",
            resolution="1080p",
            fps=30,
            external_id="e-1",
            extra={"zoom": 2, "audio": {"a": 2, "b": 1}},
        ),
    ),
    "bulk": Vector(
        "createJobsBulk",
        {
            "jobs": [{**JOB, "sourceUrl": SIGNED}, {**JOB, "externalId": "e-2", "sourceS3": S3}],
            "settings": {"confirm": True},
        },
        f'{{"jobs":[{{{JOB_HASHED},"resolution":"1080p","sourceUrl":"https://b.s3.test/in.mp4?v=1"}},'
        '{"codec":"av1","externalId":"e-2","fps":30,"resolution":"1080p","sourceS3":{"bucket":"b","key":"in.mp4"}}],'
        '"settings":{"confirm":true}}',
        "cvr1-d5451f8890d4f5512db5d3c9069f2ea684a176aacf31d1b95367059d2b575746",
        model=BulkCreateRequest(
            jobs=[
                JobCreateRequest(codec="av1", resolution="1080p", fps=30, external_id="e-1", source_url=SIGNED),
                JobCreateRequest(
                    codec="av1",
                    resolution="1080p",
                    fps=30,
                    external_id="e-2",
                    source_s3=S3Source(bucket="b", key="in.mp4", access_key_id="rotated"),
                ),
            ],
            settings=BulkCreateSettings(confirm=True),
        ),
    ),
    "a named bulk of nothing": Vector(
        "createJobsBulk",
        {"jobs": []},
        '{"jobs":[]}',
        "cvr1-736d18608f5d13234b399e2e35c63e31ba87853e1f1a1462d734ea4c7478087b",
        name="n",
    ),
    "on demand, to S3": Vector(
        "onDemandEncode",
        {
            "sourceUrl": SIGNED_URLS["Azure"][0],
            "externalId": "e",
            "outputS3": S3_OUT,
            "webhook": "https://u:p@hooks.test/x?a=1&sig=s&sv=1",
        },
        '{"externalId":"e","outputS3":{"bucket":"b","endpoint":"https://s3.test","key":"out.mp4"},'
        '"sourceUrl":"https://a.blob.test/c/in.mp4?snapshot=1","webhook":"https://hooks.test/x?a=1"}',
        "cvr1-884ba58ae1b00b1eb75bc0bdec8751226ec3fd0bf3307a2ce20a7fa33018928b",
        model=OnDemandEncodeRequest(
            source_url="https://a.blob.test/c/in.mp4?snapshot=1",
            external_id="e",
            output_s3=S3Output(bucket="b", key="out.mp4", endpoint="https://s3.test"),
            webhook="https://hooks.test/x?a=1",
        ),
    ),
    "on demand, to Google Drive": Vector(
        "onDemandEncode",
        {"sourceUrl": SIGNED_URLS["Google 4"][0], "externalId": "e", "outputGoogleDrive": DRIVE_OUT},
        '{"externalId":"e","outputGoogleDrive":{"fileName":"n","folderId":"f"},'
        '"sourceUrl":"https://storage.test/b/in.mp4?generation=5"}',
        "cvr1-12d25fb0b2ba05df20ccc5351503a09da5339e385e182c8450ccf09611585978",
        model=OnDemandEncodeRequest(
            source_url="https://storage.test/b/in.mp4?generation=5",
            external_id="e",
            output_google_drive=GoogleDriveOutput(folder_id="f", file_name="n", refresh_token="rotated"),
        ),
    ),
    "on demand, to Dropbox": Vector(
        "onDemandEncode",
        {
            "sourceUrl": SIGNED_URLS["CloudFront custom"][0],
            "externalId": "e",
            "outputDropbox": {"path": "/p", "accessToken": "a"},
        },
        '{"externalId":"e","outputDropbox":{"path":"/p"},"sourceUrl":"https://d1.cloudfront.test/in.mp4?q=1"}',
        "cvr1-abf9db345090a8a9cb555d8e6a85c1693d34292e516de9ab659d728d5a5c4d8a",
    ),
    "folder in S3": Vector(
        "onDemandIngestFolder",
        {
            "externalIdPrefix": "p",
            "sourceS3": {
                "bucket": "b",
                "prefix": "in/",
                "accessKeyId": "A",
                "secretAccessKey": "S",
                "forcePathStyle": True,
            },
            "outputS3": {"bucket": "b", "prefix": "out/", "accessKeyId": "A", "secretAccessKey": "S"},
        },
        '{"externalIdPrefix":"p","outputS3":{"bucket":"b","prefix":"out/"},'
        '"sourceS3":{"bucket":"b","forcePathStyle":true,"prefix":"in/"}}',
        "cvr1-e6e074f79e9122a2c7e816703510469ea9124f27ee199fa2fc06d8bf1ee865bd",
    ),
    "folder in Google Drive": Vector(
        "onDemandIngestFolder",
        {
            "externalIdPrefix": "p",
            "sourceGoogleDrive": {"folderId": "f", "accessToken": "a", "refreshToken": "r"},
            "outputGoogleDrive": DRIVE_OUT,
        },
        '{"externalIdPrefix":"p","outputGoogleDrive":{"fileName":"n","folderId":"f"},"sourceGoogleDrive":{"folderId":"f"}}',
        "cvr1-d8deb61076bc9713a10125787dcf7d0405e54ad7f3bf7beb7ffad0a983af0d92",
    ),
    "folder in Dropbox": Vector(
        "onDemandIngestFolder",
        {"sourceDropbox": {"path": "/in", "accessToken": "a"}, "outputDropbox": {"path": "/out"}, "maxFiles": 10},
        '{"maxFiles":10,"outputDropbox":{"path":"/out"},"sourceDropbox":{"path":"/in"}}',
        "cvr1-b6c2de820f9ba225c883b857b49df154564df27ae017c5182e5e9af385e65183",
        name="dropbox",
    ),
    "nothing but credentials": Vector(
        "onDemandIngestFolder",
        {"sourceDropbox": {"accessToken": "a"}, "externalIdPrefix": "p"},
        '{"externalIdPrefix":"p","sourceDropbox":{}}',
        "cvr1-cbee9812e277b8cfc1b6a4d3bea5927a15225aa7949f82d2898b3ea50d92fcc7",
    ),
}

vectors = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)


def hashed(operation: str, body: str, name: str | None) -> str:
    """The key as the documentation defines it, with nothing of the package."""
    document = f'{{"body":{body},"name":{json.dumps(name, ensure_ascii=False)},"operation":"{operation}"}}'
    return "cvr1-" + hashlib.sha256(document.encode()).hexdigest()


def in_disorder(value: Any, chance: random.Random) -> Any:
    """The same value with its fields in another order."""
    if isinstance(value, dict):
        return {name: in_disorder(value[name], chance) for name in chance.sample(list(value), len(value))}
    return [in_disorder(each, chance) for each in value] if isinstance(value, list) else value


@vectors
def test_a_key_is_what_it_always_was(vector: Vector) -> None:
    assert derive_key(vector.operation, vector.body, name=vector.name) == vector.key


@vectors
def test_a_key_is_the_hash_of_the_body_without_credentials(vector: Vector) -> None:
    assert hashed(vector.operation, vector.hashed, vector.name) == vector.key
    assert derive_key(vector.operation, json.loads(vector.hashed), name=vector.name) == vector.key


@vectors
def test_a_key_does_not_depend_on_the_order_of_fields(vector: Vector) -> None:
    for seed in range(5):
        body = in_disorder(vector.body, random.Random(seed))
        assert derive_key(vector.operation, body, name=vector.name) == vector.key


@pytest.mark.parametrize(
    "vector",
    [pytest.param(vector, id=name) for name, vector in VECTORS.items() if vector.model is not None],
)
def test_a_model_has_the_key_of_the_mapping(vector: Vector) -> None:
    assert vector.model is not None
    assert derive_key(vector.operation, vector.model, name=vector.name) == vector.key


@vectors
async def test_the_key_on_the_wire_is_the_derived_one(vector: Vector) -> None:
    example = EXAMPLES[vector.operation]
    script = Script(example.answered)
    async with client_of(script) as client:
        method = getattr(client, METHODS[vector.operation])
        assert await method(vector.body, operation=vector.name) == example.result
        assert await method(in_disorder(vector.body, random.Random(1)), operation=vector.name) == example.result
        if vector.model is not None:
            await method(vector.model, operation=vector.name)
    assert {sent.key for sent in script.sent} == {vector.key}
    assert script.sent[0].body == script.sent[1].body
    assert script.sent[0].json == {name: it for name, it in vector.body.items() if it is not None}


OTHER_PROCESS = """
import json, sys
if sys.argv[1] == "stdlib":
    sys.modules["orjson"] = None
from convertrilo import _json, derive_key
assert hasattr(_json, "orjson") is (sys.argv[1] == "orjson")
print(json.dumps([derive_key(operation, body, name=name) for operation, body, name in json.load(sys.stdin)]))
"""


@pytest.mark.parametrize("library", ["orjson", "stdlib"])
@pytest.mark.parametrize("seed", ["0", "1", "4294967295"])
def test_keys_are_the_same_in_every_process(library: str, seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, library],
        input=json.dumps([(vector.operation, vector.body, vector.name) for vector in VECTORS.values()]),
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    assert json.loads(done.stdout) == [vector.key for vector in VECTORS.values()]


# ---- what counts, and what does not

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
jobs = st.fixed_dictionaries(
    {
        "codec": st.sampled_from(["h264", "h265", "av1"]),
        "resolution": st.sampled_from(["480p", "720p", "1080p"]),
        "fps": st.integers(1, 240),
        "externalId": st.text(min_size=1, max_size=20),
    },
    optional={
        "metadata": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
        "confirm": st.booleans(),
        "vmafTarget": st.floats(50, 99),
        "sourceUrl": st.sampled_from([url for url, _ in SIGNED_URLS.values()] + UNSIGNED_URLS),
        "originalFilename": st.text(max_size=9),
    },
)
surely = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1)


@given(jobs, st.randoms(use_true_random=False))
def test_any_order_of_fields_has_one_key(job: dict[str, Any], chance: random.Random) -> None:
    assert derive_key("createJob", in_disorder(job, chance)) == derive_key("createJob", job)
    assert derive_key("createJobsBulk", {"jobs": [in_disorder(job, chance)]}) == derive_key(
        "createJobsBulk", {"jobs": [job]}
    )


@given(jobs, jobs)
def test_two_bodies_share_a_key_only_if_they_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = without_credentials(one) == without_credentials(other)
    assert (derive_key("createJob", one) == derive_key("createJob", other)) is same


@given(
    jobs,
    st.sampled_from(
        ["codec", "resolution", "fps", "externalId", "confirm", "vmafTarget", "originalFilename", "metadata"]
    ),
    jobs,
)
def test_a_change_of_any_field_that_counts_changes_the_key(
    job: dict[str, Any], name: str, other: dict[str, Any]
) -> None:
    changed = {**{key: it for key, it in job.items() if key != name}, **({name: other[name]} if name in other else {})}
    assume(canonical(changed) != canonical(job))
    assert derive_key("createJob", changed) != derive_key("createJob", job)
    assert derive_key("createJobsBulk", {"jobs": [job, changed]}) != derive_key(
        "createJobsBulk", {"jobs": [changed, job]}
    )


def canonical(value: Any) -> Any:
    """A value in which only what is the same in JSON is equal: True is not 1."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, dict):
        return {name: canonical(each) for name, each in value.items()}
    return [canonical(each) for each in value] if isinstance(value, list) else value


def without_credentials(job: dict[str, Any]) -> Any:
    bare = dict(SIGNED_URLS.values())
    return canonical({**job, "sourceUrl": bare.get(job.get("sourceUrl", ""), job.get("sourceUrl"))})


@given(surely, surely)
def test_the_name_counts(one: str, other: str) -> None:
    keys = {derive_key("createJob", JOB, name=name) for name in (one, other, None)}
    assert len(keys) == len({one, other, None})


def test_the_operation_counts() -> None:
    keys = {derive_key(operation, EXAMPLES[operation].arguments[0], name="n") for operation in KEYED}
    assert len(keys) == 4


BULK = {"jobs": [{**JOB, "sourceS3": S3}]}
DEMAND = {
    "sourceUrl": SIGNED_URLS["AWS 4"][0],
    "externalId": "e",
    "outputS3": S3_OUT,
    "outputGoogleDrive": DRIVE_OUT,
    "outputDropbox": {"accessToken": "a"},
}
DRIVE_IN = {"folderId": "f", "accessToken": "a", "refreshToken": "r"}
INGEST = {
    "externalIdPrefix": "p",
    "sourceS3": {"bucket": "b", "accessKeyId": "a", "secretAccessKey": "s"},
    "sourceGoogleDrive": DRIVE_IN,
    "sourceDropbox": {"path": "/", "accessToken": "a"},
    "outputS3": {"bucket": "b", "accessKeyId": "a", "secretAccessKey": "s"},
    "outputGoogleDrive": DRIVE_OUT,
}


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a body that holds a value."""
    if isinstance(body, dict | list):
        items = body.items() if isinstance(body, dict) else enumerate(body)
        return [place for name, value in items for place in places(value, (*path, name))]
    return [path]


CREDENTIALS = {"accessKeyId", "secretAccessKey", "accessToken", "refreshToken"}


@pytest.mark.parametrize(
    ("operation", "body", "place"),
    [
        pytest.param(operation, body, place, id=f"{operation}-{'.'.join(map(str, place))}")
        for operation, body in {
            "createJob": {**JOB, "sourceS3": S3},
            "createJobsBulk": BULK,
            "onDemandEncode": DEMAND,
            "onDemandIngestFolder": INGEST,
        }.items()
        for place in places(body)
        if isinstance(place[-1], str) and place[-1] not in ("codec", "resolution", "fps")
    ],
)
async def test_only_a_change_of_credentials_keeps_the_key(
    operation: str, body: dict[str, Any], place: tuple[Any, ...]
) -> None:
    changed = copy.deepcopy(body)
    holder: Any = changed
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = (
        holder[place[-1]].replace("Signature=5f2b0c", "Signature=ffff")
        if place[-1] == "sourceUrl"
        else "https://changed"
    )
    script = Script(EXAMPLES[operation].answered)
    async with client_of(script) as client:
        await getattr(client, METHODS[operation])(body)
        await getattr(client, METHODS[operation])(changed)
    first, second = script.sent
    assert first.body != second.body
    assert (first.key == second.key) is (place[-1] in CREDENTIALS or place[-1] == "sourceUrl")


# ---- identities

METHODS = {
    "createJob": "create_job",
    "createJobsBulk": "create_jobs_bulk",
    "onDemandEncode": "on_demand_encode",
    "onDemandIngestFolder": "on_demand_ingest_folder",
}
OWN: dict[str, dict[str, Any]] = {
    "createJob": JOB,
    "createJobsBulk": {"jobs": [JOB, {**JOB, "externalId": "e-2"}]},
    "onDemandEncode": {"sourceUrl": "https://videos.test/in.mp4", "externalId": "e-1"},
    "onDemandIngestFolder": {"sourceS3": {"bucket": "b"}, "externalIdPrefix": "p"},
}
ANONYMOUS: list[tuple[str, dict[str, Any]]] = [
    *((operation, EXAMPLES[operation].arguments[0]) for operation in KEYED),
    ("createJob", {**JOB, "externalId": ""}),
    ("createJob", {**JOB, "externalId": None}),
    ("createJobsBulk", {"jobs": [JOB, {**JOB, "externalId": ""}]}),
    ("createJobsBulk", {"jobs": [JOB, EXAMPLES["createJob"].arguments[0]]}),
    ("createJobsBulk", {"jobs": []}),
    ("onDemandIngestFolder", {"sourceS3": {"bucket": "b"}, "externalIdPrefix": ""}),
]


@pytest.mark.parametrize("operation", KEYED)
async def test_the_first_identity_that_applies_names_the_operation(operation: str) -> None:
    script, body = Script(EXAMPLES[operation].answered), OWN[operation]
    async with client_of(script) as client:
        view = client.with_options(operation="outer")
        create, create_named = getattr(client, METHODS[operation]), getattr(view, METHODS[operation])
        await create_named(body, idempotency_key="mine", operation="inner")
        await create_named(body, operation="inner")
        await create_named(body)
        await create(body)
    assert [sent.key for sent in script.sent] == [
        "mine",
        derive_key(operation, body, name="inner"),
        derive_key(operation, body, name="outer"),
        derive_key(operation, body),
    ]
    assert len({sent.body for sent in script.sent}) == 1


@pytest.mark.parametrize(("operation", "body"), ANONYMOUS)
async def test_equal_calls_without_an_identity_are_operations_of_their_own(operation: str, body: Any) -> None:
    script = Script(EXAMPLES[operation].answered)
    async with client_of(script) as client:
        for _ in range(10):
            await getattr(client, METHODS[operation])(body)
    keys = {sent.key for sent in script.sent}
    assert len(keys) == 10
    assert all(key is not None and key.startswith("cvr1-") and len(key) < 255 for key in keys)
    assert len({sent.body for sent in script.sent}) == 1


@pytest.mark.parametrize("operation", KEYED)
async def test_equal_calls_with_an_identity_are_one_operation(operation: str) -> None:
    script = Script(EXAMPLES[operation].answered)
    async with client_of(script) as client:
        for _ in range(10):
            await getattr(client, METHODS[operation])(OWN[operation])
    assert len({(sent.key, sent.body) for sent in script.sent}) == 1


@pytest.mark.parametrize("operation", KEYED)
@pytest.mark.parametrize("named", [{}, {"operation": "n"}, {"idempotency_key": "k"}])
async def test_all_attempts_of_a_call_carry_one_key_and_the_same_bytes(operation: str, named: dict[str, str]) -> None:
    failures: list[Step] = [
        httpx.ConnectError(""),
        httpx.ReadError(""),
        problem(429),
        problem(500),
        Answer(503),
        problem(409, "idempotency_in_progress"),
    ]
    script = Script(*failures, EXAMPLES[operation].answered)
    async with client_of(script) as client:
        await call(client, operation, **named)
    assert script.attempts == 7
    assert len({(sent.key, sent.body) for sent in script.sent}) == 1


async def test_what_is_changed_during_a_call_does_not_change_the_call() -> None:
    body = copy.deepcopy({**JOB, "metadata": {"a": [1]}})

    async def change(_: Any) -> Answer:
        body["metadata"]["a"].append(2)  # type: ignore[index]  # it is a dict
        return Answer(500)

    script = Script(change, change, EXAMPLES["createJob"].answered)
    async with client_of(script) as client:
        await client.create_job(body)
    assert len({sent.body for sent in script.sent}) == 1


@pytest.mark.parametrize("operation", [it for it in OPERATIONS if it not in KEYED])
async def test_other_operations_have_no_key(operation: str) -> None:
    script = Script(EXAMPLES[operation].answered)
    async with client_of(script) as client:
        await call(client.with_options(operation="n"), operation)
    assert script.sent[0].key is None


# ---- what is refused before anything is sent


@pytest.mark.parametrize("key", ["k", "k" * 255, '!"~', "order 7"])
async def test_a_key_is_sent_as_given(key: str) -> None:
    script = Script(EXAMPLES["createJob"].answered)
    async with client_of(script) as client:
        await client.create_job(JOB, idempotency_key=key)
    assert script.sent[0].key == key


@pytest.mark.parametrize("operation", KEYED)
@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"idempotency_key": ""}, "1 to 255 characters, not 0"),
        ({"idempotency_key": "k" * 256}, "1 to 255 characters, not 256"),
        ({"idempotency_key": "schlüssel"}, "visible ASCII"),
        ({"idempotency_key": "two\nlines"}, "visible ASCII"),
        ({"idempotency_key": "null\0"}, "visible ASCII"),
        ({"idempotency_key": " k"}, "visible ASCII"),
        ({"idempotency_key": "k\t"}, "visible ASCII"),
        ({"idempotency_key": b"k"}, "must be a string, not a bytes"),
        ({"operation": ""}, "must not be empty"),
        ({"operation": 7}, "must be a string, not a int"),
        ({"operation": "\ud800"}, "not valid Unicode"),
    ],
)
async def test_an_unusable_key_or_name_is_refused_before_anything_is_sent(
    operation: str, named: dict[str, Any], told: str
) -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        error = await raised_by(call(client, operation, **named))
        assert type(error) is ValidationError
        assert told in str(error)
        if "operation" in named:
            error = await raised_by(call(client.with_options(operation=named["operation"]), operation))
            assert told in str(error)
    assert script.attempts == 0


@pytest.mark.parametrize(
    ("operation", "body", "name", "told"),
    [
        ("createjob", JOB, None, "one of createJob, createJobsBulk, onDemandEncode, onDemandIngestFolder"),
        ("createWebhook", JOB, None, "one of createJob"),
        ("createJob", {"codec": "vp9"}, None, "codec"),
        ("createJob", OnDemandEncodeRequest(source_url="https://a.test"), None, "JobCreateRequest, not OnDemand"),
        ("createJob", [JOB], None, "JobCreateRequest, not list"),
        ("createJob", JOB, "", "must not be empty"),
        ("createJob", JOB, "\ud800", "not valid Unicode"),
        ("createJob", {**JOB, "metadata": {"a": float("nan")}}, None, "nan"),
        ("createJob", {**JOB, "externalId": "\ud800"}, None, "not valid Unicode"),
    ],
)
def test_what_can_have_no_key_is_refused(operation: str, body: Any, name: str | None, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        derive_key(operation, body, name=name)
    assert issubclass(ValidationError, ConvertriloError)


# ---- against the sandbox


async def test_ten_equal_jobs_without_a_name_are_ten_jobs() -> None:
    async with Sandbox(seed=1) as sandbox, sandbox.client() as client:
        made = [await client.create_job(PLAIN_JOB) for _ in range(10)]
        assert len({job.job_id for job in made}) == len(sandbox.jobs) == 10


async def test_ten_equal_jobs_with_an_external_id_are_one_job() -> None:
    async with Sandbox(seed=1) as sandbox, sandbox.client() as client:
        made = [await client.create_job({**PLAIN_JOB, "externalId": "video-1"}) for _ in range(10)]
        assert {job.job_id for job in made} == {job.id for job in sandbox.jobs}
        assert len(sandbox.jobs) == 1


# ---- credentials that no model declares


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        ("createJob", {**PLAIN_JOB, "externalId": "a", "sourceS3": {"bucket": "b", "sessionToken": "SECRET"}}),
        ("createJob", {**PLAIN_JOB, "externalId": "a", "outputS3": {"bucket": "b", "secretAccessKey": "SECRET"}}),
        ("onDemandIngestFolder", {"externalIdPrefix": "a", "outputDropbox": {"path": "/", "accessToken": "SECRET"}}),
        ("onDemandIngestFolder", {"externalIdPrefix": "a", "sourceDropbox": {"path": "/", "refreshToken": "SECRET"}}),
    ],
)
async def test_a_credential_that_no_model_knows_counts_as_one_all_the_same(
    operation: str, body: dict[str, Any], tmp_path: Path
) -> None:
    rotated = json.loads(json.dumps(body).replace("SECRET", "another"))
    assert derive_key(operation, body) == derive_key(operation, rotated)
    refusing = Script(problem(400, message="what is SECRET?"))
    journal = Journal(tmp_path / "j.db")
    async with client_of(refusing, journal=journal) as client:
        error = await raised_by(call_with(client, operation, body))
    assert "SECRET" not in str(error)
    assert b"SECRET" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def call_with(client: AsyncClient, operation: str, body: dict[str, Any]) -> Awaitable[object]:
    return client.create_job(body) if operation == "createJob" else client.on_demand_ingest_folder(body)


def test_a_key_is_not_derived_from_what_has_no_identity() -> None:
    with pytest.raises(ValidationError, match="needs a name"):
        derive_key("createJob", PLAIN_JOB)
