"""What README.md and docs/ say is so: every snippet is run, in Python or in a shell, and every link leads somewhere."""

import logging
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from credentials import WEBHOOK_SECRET
from object_store import ObjectStore, moto_server
from snippets import PAGES, ROOT, Page, Snippet, check, commands_of, run_script, snippets_of

from convertrilo import AsyncClient
from convertrilo.sandbox import Sandbox, serve_in_thread

CLIP = (ROOT / "examples" / "media" / "big-buck-bunny-5s.mp4").read_bytes()
BUCKETS = re.compile(r"""s3://([\w.-]+)/([\w./-]*)|bucket="([\w.-]+)"(?:.{0,80}?prefix="([\w./-]+)")?""", re.DOTALL)


class Elsewhere(httpx.AsyncBaseTransport):
    """The internet, as the sandbox sees it: Amazon's S3 is the tests' own server, everything else is a video."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = httpx.URL(store.endpoint)
        self._http = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host.endswith(".amazonaws.com"):
            url = request.url.copy_with(scheme="http", host=self._store.host, port=self._store.port)
            body = await request.aread()
            there = httpx.Request(request.method, url, headers=request.headers, content=body)  # with the old Host
            return await self._http.handle_async_request(there)
        return httpx.Response(200, headers={"Content-Type": "video/mp4"}, content=CLIP)

    async def aclose(self) -> None:
        await self._http.aclose()


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    with moto_server() as store:
        yield store


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore) -> Iterator[None]:
    """A folder with a video, a sandbox on a port, and what the environment says of both."""
    sandbox = Sandbox(seed=0, allow_private_sources=True, source_transport=Elsewhere(object_store))
    level = logging.getLogger("convertrilo").level
    monkeypatch.setattr("convertrilo.waiting.watch.MIN_INTERVAL", 0.05)  # after which the instant encoder is done
    with serve_in_thread(sandbox) as base_url:
        for name in ("in.mp4", "holiday.mov"):
            (tmp_path / name).write_bytes(CLIP)
        for name in ("examples", "pyproject.toml"):
            (tmp_path / name).symlink_to(ROOT / name)
        monkeypatch.chdir(tmp_path)
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / "home"))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # examples is the checkout's own
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # for the command
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        monkeypatch.setenv("CONVERTRILO_WEBHOOK_SECRET", WEBHOOK_SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_access_key)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("GOOGLE_ACCESS_TOKEN", sandbox.drive.access_token)
        monkeypatch.setenv("GOOGLE_REFRESH_TOKEN", sandbox.drive.refresh_token)
        anyio.run(sandbox.drive.add, "drive-folder-in", "in.mp4", CLIP)
        yield
    logging.getLogger("convertrilo").setLevel(level)


def make_buckets(text: str, store: ObjectStore) -> None:
    for name, prefix, other, other_prefix in BUCKETS.findall(text):
        bucket = name or other
        store.s3.create_bucket(Bucket=bucket)
        folder = (prefix or other_prefix).rpartition("/")[0]
        for film in ("in", "one", "two"):
            store.s3.put_object(Bucket=bucket, Key=f"{folder}/{film}.mp4".lstrip("/"), Body=CLIP)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("surroundings")
def test_every_snippet_of_a_page_is_run_or_checked(page: Path, tmp_path: Path, object_store: ObjectStore) -> None:
    make_buckets(page.read_text(encoding="utf-8"), object_store)
    anyio.run(run_page, list(snippets_of(page)))


async def run_page(snippets: list[Snippet]) -> None:
    async with AsyncClient() as client:
        page = Page(client)
        try:
            for snippet in snippets:
                if snippet.language in ("python", "setup") and not snippet.is_test:
                    await page.run(snippet)
                elif snippet.language == "sh":
                    await run_script(snippet)
                elif not snippet.is_test:
                    check(snippet)
        finally:
            await page.names["client"].aclose()  # the page's own, it may be


@pytest.mark.usefixtures("surroundings")
def test_the_tests_that_pages_show_pass(tmp_path: Path) -> None:
    tests: list[Path] = []
    for page in PAGES:
        before = None
        for snippet in snippets_of(page):
            if snippet.is_test:
                setup = before.code if before and before.language == "setup" else ""
                tests.append(tmp_path / f"test_{page.stem}_line_{snippet.line}.py")
                tests[-1].write_text(setup + snippet.code)
            before = snippet
    options = ["-c", os.devnull, "-p", "no:asyncio", "-p", "no:trio", "-o", "anyio_mode=auto", "-W", "error"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *map(str, tests)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- links

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    dead: list[str] = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert dead == []


def test_every_page_and_every_example_is_reached_from_readme() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in seen:
            seen.add(page)
            links = LINK.findall(page.read_text(encoding="utf-8")) if page.suffix == ".md" else []
            ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link]
    examples = set((ROOT / "examples").glob("[!._]*")) - {ROOT / "examples" / "media"}
    assert {*PAGES, ROOT / "CHANGELOG.md", *examples} - seen == set()


def test_the_guide_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    guide = (ROOT / "docs" / "API-INTEGRATION-GUIDE.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE)
    assert set(project["optional-dependencies"]) <= set(listed)


# ---- names and paths

SHOWN = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "REFERENCE.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", SHOWN)
def test_everything_that_the_reference_shows_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name)


def paths_in(page: str) -> set[str]:
    """Return what looks like a path of the checkout among the words in backticks."""
    words = {word for code in re.findall(r"`([^`\n]+)`", page) for word in code.split()}
    return {word for word in words if re.fullmatch(r"[\w./]+(/|\.py|\.md|\.yaml)", word)}


def test_every_path_that_the_contributing_guide_names_exists() -> None:
    paths = paths_in((ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(paths) > 30
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_the_contributing_guide_shows_every_package_and_every_wing() -> None:
    packages = {each.parent for each in (ROOT / "convertrilo").glob("*/__init__.py")}
    packages |= {each.parent for each in (ROOT / "convertrilo" / "sandbox").glob("*/__init__.py")}
    shown = paths_in((ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert {f"{each.relative_to(ROOT).as_posix()}/" for each in packages} - shown == set()


# ---- the checks themselves


def page_of(folder: Path, text: str) -> list[Snippet]:
    file = folder / "page.md"
    file.write_text(text)
    return list(snippets_of(file))


def test_what_a_page_holds_is_found(tmp_path: Path) -> None:
    text = "```python\na = 1\n```\n\n<!-- setup\nb = 2\n-->\n1. Then\n\n   ```sh\n   nox\n   ```\n\n```\nout\n```\n"
    found = page_of(tmp_path, text)
    assert [(each.language, each.code, each.line) for each in found] == [
        ("python", "a = 1\n", 1),
        ("setup", "b = 2\n", 5),
        ("sh", "nox\n", 10),
        ("", "out\n", 14),
    ]


@pytest.mark.parametrize("code", ["1 / 0", "await nothing()", "async def main():\n    1 / 0"])
@pytest.mark.usefixtures("surroundings")
def test_a_snippet_that_does_not_work_is_seen(code: str, tmp_path: Path) -> None:
    [snippet] = page_of(tmp_path, f"```python\n{code}\n```\n")
    with pytest.raises((ZeroDivisionError, NameError)):
        anyio.run(run_page, [snippet])


@pytest.mark.parametrize(
    "line",
    [
        "convertrilo encode in.mp4 -o out.mp4 --kodec av1",
        "pip install nox && convertrilo encoed",
        "pip install 'convertrilo[turbo]'",
        "nox -s nothing",
        "nox -R -s tests -- tests/nothing.py",
        "python examples/nothing.py",
        "rm -rf out",
    ],
)
@pytest.mark.usefixtures("surroundings")
def test_a_command_that_does_not_work_is_seen(line: str, tmp_path: Path) -> None:
    [snippet] = page_of(tmp_path, f"```sh\n{line}\n```\n")
    with pytest.raises(AssertionError, match=r"no |No such |ends with 2"):
        anyio.run(run_page, [snippet])


def test_commands_are_taken_apart() -> None:
    script = "PORT=1 python a.py \\\n  --b 'c d' > out && nox -s x  # why\nexport A=b\n"
    assert list(commands_of(script)) == [
        ["python", "a.py", "--b", "c d", ">", "out"],
        ["nox", "-s", "x"],
        ["export", "A=b"],
    ]


def test_a_path_is_told_from_other_code() -> None:
    page = "`a/b.py` and `c/`, `python tests/d.py`, `kill -9`, `SAFE`, `import x`, `README.md`"
    assert paths_in(page) == {"a/b.py", "c/", "tests/d.py", "README.md"}


def test_a_dead_link_is_seen() -> None:
    assert LINK.findall("[a](b.md#c) ![i](j.png) [x](https://y)") == ["b.md#c", "https://y"]
    assert "the-retry-budget" in anchors_of(ROOT / "docs" / "RETRIES.md")
