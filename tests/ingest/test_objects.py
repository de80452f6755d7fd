"""Objects of a folder: stable external ids and shards, filters, and manifests."""

import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convertrilo import ValidationError
from convertrilo.ingest.manifest import read_manifest
from convertrilo.ingest.objects import Page, S3Object, Shard, external_id, is_text, make_filter, parse_shard

ETAG = "9e107d9d372bb6826bd81d3542a419d6"
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# ---- names


@pytest.mark.parametrize(
    ("each", "name"),
    [
        (S3Object("a.mp4"), "s3://films/a.mp4"),
        (S3Object("a b/c+d%.mp4", 1, ETAG), f"s3://films/a%20b/c%2Bd%25.mp4#{ETAG}"),
        (S3Object("a.mp4", 1, f"{ETAG}-12", "v1"), f"s3://films/a.mp4#{ETAG}-12"),
        (S3Object("a.mp4", 1, None, "3/L4kqtJ+lcpXro"), "s3://films/a.mp4?versionId=3%2FL4kqtJ%2BlcpXro"),
        (S3Object("caf\u00e9"), "s3://films/caf%C3%A9"),
        (S3Object("cafe\u0301"), "s3://films/cafe%CC%81"),
        (S3Object("odd\udcff.mp4"), "s3://films/odd%FF.mp4"),
        (S3Object("x" * 244), "s3://films/" + "x" * 244),
        (S3Object("x" * 245), "s3-sha256:eb82be3122e1b9a16047bf483064d3c1f1b9a3b39e8ada056d2d68c099a4677e"),
    ],
)
def test_an_external_id_is_what_it_always_was(each: S3Object, name: str) -> None:
    """These vectors never change: another external id would create another job."""
    assert external_id("films", each) == name


objects = st.builds(
    S3Object,
    st.text(max_size=300),
    st.none(),
    st.none() | st.text(min_size=1, max_size=40),
    st.none() | st.text(min_size=1, max_size=40),
)


@given(objects, objects)
def test_two_objects_have_one_external_id_only_if_they_are_the_same(one: S3Object, other: S3Object) -> None:
    def what_counts(each: S3Object) -> tuple[str, str | None, str | None]:
        return each.key, each.etag, None if each.etag else each.version_id

    ids = external_id("films", one), external_id("films", other)
    assert (ids[0] == ids[1]) == (what_counts(one) == what_counts(other))
    assert all(len(each) <= 255 and each.isascii() and each.isprintable() for each in ids)


def test_a_key_that_is_no_utf_8_is_known() -> None:
    assert is_text("caf\u00e9 \U0001f600\x07")
    assert not is_text(b"caf\xe9".decode(errors="surrogateescape"))


# ---- shares


def test_a_share_is_what_it_always_was() -> None:
    """These shards never change: a machine that runs again must find its own objects."""
    keys = [f"films/{number}.mp4" for number in range(8)]
    assert [next(i for i in range(4) if Shard(i, 4).holds(key)) for key in keys] == SHARES


SHARES = [3, 2, 3, 3, 3, 2, 0, 0]


@given(st.text(max_size=50), st.integers(1, 20))
def test_every_object_belongs_to_one_share(key: str, count: int) -> None:
    assert [Shard(index, count).holds(key) for index in range(count)].count(True) == 1


def test_shares_are_about_equal() -> None:
    shard = parse_shard("2/5")
    assert sum(shard.holds(f"films/{number:06}.mp4") for number in range(10_000)) == pytest.approx(2_000, rel=0.1)


@pytest.mark.parametrize("text", ["", "1", "8/8", "-1/8", "0/0", "a/b", "1/8/2", " 1/8"])
def test_what_names_no_share_is_said(text: str) -> None:
    with pytest.raises(ValidationError, match="must be i/n with i from 0 to n-1"):
        parse_shard(text)


# ---- choice


def wanted(each: S3Object, **options: Any) -> bool:
    given: dict[str, Any] = dict.fromkeys(("include", "min_size", "max_size", "modified_since", "shard"))
    return make_filter(**{**given, "exclude": (), **options})(each)


@pytest.mark.parametrize(
    ("each", "options", "is_wanted"),
    [
        (S3Object("a.mp4"), {}, True),
        (S3Object("a/B.MKV"), {}, True),
        (S3Object("a.mp4/"), {}, False),
        (S3Object("mp4"), {}, False),
        (S3Object("a.txt"), {}, False),
        (S3Object("a.bin"), {"include": ["*.bin"]}, True),
        (S3Object("a.mp4"), {"include": ["*.bin"]}, False),
        (S3Object("a.MP4"), {"include": ["*.mp4"]}, False),
        (S3Object("x\n.mp4"), {"include": ["x*"]}, True),
        (S3Object("a/drafts/b.mp4"), {"exclude": ["*/drafts/*"]}, False),
        (S3Object("a/b.mp4"), {"exclude": ["*/drafts/*", "c"]}, True),
        (S3Object("a.mp4", 9), {"min_size": 10}, False),
        (S3Object("a.mp4", 10), {"min_size": 10, "max_size": 10}, True),
        (S3Object("a.mp4", 11), {"max_size": 10}, False),
        (S3Object("a.mp4", None), {"min_size": 10, "max_size": 20}, True),
        (S3Object("a.mp4", 1, None, None, WHEN), {"modified_since": WHEN}, True),
        (S3Object("a.mp4", 1, None, None, WHEN), {"modified_since": WHEN.replace(year=2027)}, False),
        (S3Object("a.mp4", 1), {"modified_since": WHEN}, True),
    ],
)
def test_which_objects_are_wanted(each: S3Object, options: dict[str, Any], is_wanted: bool) -> None:
    assert wanted(each, **options) is is_wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": "*.mp4"}, "include: must be a list of patterns"),
        ({"exclude": "*.mp4"}, "exclude: must be a list of patterns"),
        ({"min_size": -1}, "must be bytes"),
        ({"min_size": 2, "max_size": 1}, "must be bytes, at least 0, in order, not 2 to 1"),
        ({"modified_since": datetime(2026, 1, 1)}, "must be a datetime with a time zone"),  # noqa: DTZ001
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        wanted(S3Object("a.mp4"), **options)


# ---- manifests


async def read(path: Path) -> list[S3Object]:
    found: list[S3Object] = []

    async def take(page: Page) -> None:
        assert 0 < len(page) <= 1000
        found.extend(page)

    await read_manifest(path, "films", take)
    return found


def write(folder: Path, name: str, lines: Sequence[str], *, ending: str = "\n") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    data = "".join(line + ending for line in lines).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


A_B = S3Object("a b/ü.mp4", 7, ETAG, None, WHEN)
INVENTORY = [
    f'"films","a+b/%C3%BC.mp4","7","2026-01-02T03:04:05.000Z","{ETAG}","STANDARD"',
    f'"films","c%2Bd.mp4","0","2026-01-02T03:04:05.000Z","{ETAG}","GLACIER"',
]
VERSIONS = [
    f'"films","a+b/%C3%BC.mp4","v2","true","false","7","2026-01-02T03:04:05.000Z","{ETAG}"',
    f'"films","a+b/%C3%BC.mp4","v1","false","false","6","2026-01-01T03:04:05.000Z","{ETAG}"',
    '"films","gone.mp4","v3","true","true","","2026-01-02T03:04:05.000Z",""',
]
HEADED = ["Key,ETag,Size,Last_Modified", f'"a b/ü.mp4",{ETAG},7,2026-01-02T03:04:05Z']
JSON_LINES = [
    json.dumps({"key": A_B.key, "size": 7, "etag": ETAG, "last_modified": "2026-01-02T03:04:05Z"}),
    "",
    json.dumps(
        {"Bucket": "films", "Key": A_B.key, "Size": 7, "ETag": f'"{ETAG}"', "LastModified": "2026-01-02T03:04:05"}
    ),
]
PLAIN = ["a+b %2F.mp4", "", "s3://films/c.mp4", "cafe\u0301\u2028.mp4"]
PLAIN_KEYS = [S3Object("a+b %2F.mp4"), S3Object("c.mp4"), S3Object("cafe\u0301\u2028.mp4")]


@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("inventory.csv", INVENTORY, [A_B, S3Object("c+d.mp4", 0, ETAG, None, WHEN)]),
        ("versions.csv", VERSIONS, [S3Object(*A_B[:3], "v2", WHEN)]),
        ("headed.csv", HEADED, [A_B]),
        ("empty.csv", [], []),
        ("objects.jsonl", JSON_LINES, [A_B, A_B]),
        ("objects.ndjson", JSON_LINES[:1], [A_B]),
        ("keys.txt", PLAIN, PLAIN_KEYS),
        ("keys", PLAIN, PLAIN_KEYS),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
async def test_a_manifest_is_read_by_what_it_is(
    tmp_path: Path, name: str, lines: Sequence[str], expected: list[S3Object], compressed: str, ending: str
) -> None:
    assert await read(write(tmp_path, name + compressed, lines, ending=ending)) == expected


@pytest.mark.parametrize("place", ["config/data", "config/2026-01-01T00-00Z/data", "config/2026-01-01T00-00Z"])
async def test_an_inventory_is_read_by_its_manifest(tmp_path: Path, place: str) -> None:
    schema = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
    files = [{"key": f"inventories/films/config/data/{number}.csv.gz", "size": 1} for number in (1, 2)]
    manifest = {"sourceBucket": "films", "fileFormat": "CSV", "fileSchema": schema, "files": files}
    for number in (1, 2):
        write(tmp_path, f"{place}/{number}.csv.gz", VERSIONS)
    path = write(tmp_path, "config/2026-01-01T00-00Z/manifest.json", [json.dumps(manifest)])
    assert await read(path) == [S3Object(*A_B[:3], "v2", WHEN)] * 2


async def test_a_long_manifest_comes_in_pages(tmp_path: Path) -> None:
    path = write(tmp_path, "keys.txt", [f"{number}.mp4" for number in range(2_500)])
    assert [each.key for each in await read(path)] == [f"{number}.mp4" for number in range(2_500)]


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("a.jsonl", ["{}"], "a.jsonl, line 1: has no key"),
        ("a.jsonl", ['{"key": "a"}', "[]"], "a.jsonl, line 2: is not a JSON object"),
        ("a.jsonl", ['{"key": "a", "bucket": "other"}'], "line 1: names the bucket 'other', but the source is in"),
        ("a.jsonl", ['{"key": "a", "size": "big"}'], "line 1: has an invalid size or time: 'big'"),
        ("a.csv", ['"other","a.mp4"'], "line 1: names the bucket 'other'"),
        ("a.csv", ["a.mp4"], "line 1: has neither a header with `key` nor the columns of an S3 Inventory"),
        ("a.txt", ["a.mp4", "s3://other/a.mp4"], "line 2: names the bucket 'other'"),
        ("a.json", ['{"key": "a"}'], "is not the manifest.json of an S3 Inventory; JSON lines must be named .jsonl"),
        (
            "a.json",
            ['{"fileFormat": "Parquet", "fileSchema": "Bucket, Key", "files": []}'],
            "lists files in Parquet; only CSV is supported",
        ),
        (
            "a.json",
            ['{"fileFormat": "CSV", "fileSchema": "Bucket, Key", "files": [{"key": "x/1.csv.gz"}]}'],
            "names the file 1.csv.gz, which is none of",
        ),
    ],
)
async def test_a_manifest_that_is_wrong_is_refused_with_its_line(
    tmp_path: Path, name: str, lines: Sequence[str], said: str
) -> None:
    path = write(tmp_path, name, lines)
    with pytest.raises(ValidationError) as refused:
        await read(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "binary"])
async def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "keys.gz"
    if damage == "cut":
        path.write_bytes(gzip.compress(b"a.mp4\n" * 1000)[:-20])
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationError, match="cannot be read"):
        await read(path)


async def test_a_manifest_is_left_when_its_reader_is_cancelled(tmp_path: Path) -> None:
    path = write(tmp_path, "keys.txt", [f"{number}.mp4" for number in range(2_500)])
    pages: list[Page] = []

    async def take(page: Page) -> None:
        pages.append(page)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_manifest, path, "films", take)
        with anyio.fail_after(60):
            while not pages:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(pages) == 1
