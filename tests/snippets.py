"""Snippets in README.md and docs/: found in the pages, and run as a reader would run them.

How a page's author sets a snippet up. A page is read from top to bottom, and its blocks share one namespace:

- ```python is executed, in an empty folder, against a sandbox of the page's own on a port, which the environment names
  (CONVERTRILO_BASE_URL, CONVERTRILO_API_KEY, CONVERTRILO_WEBHOOK_SECRET), so that `AsyncClient()` reaches it. `await`,
  `async with` and `async for` may stand at the top level. `client` is an open `AsyncClient` unless the page defines
  one. A snippet that defines `async def main()` and does not run it has it run.
- A snippet that defines `test_…` functions is a test module of its own, run by pytest with anyio's plugin and the
  fixtures `convertrilo_*`.
- The folder has a video, `in.mp4`. Any source URL is one too. Every bucket that the page names (`s3://name/…` or
  `bucket="name"`) exists on a real S3 server, with videos in it below every prefix the page names; AWS_ENDPOINT_URL
  and credentials are in the environment, and `*.amazonaws.com` leads the sandbox there. Google Drive's
  `drive-folder-in` has a video; GOOGLE_ACCESS_TOKEN and GOOGLE_REFRESH_TOKEN open it.
- What a reader need not see goes into a comment of the page, just before the snippet; it is executed first:

      <!-- setup
      secret = "…"
      -->

  Before a test module it is put at the module's head, too.

- ```sh is run by a shell, in the same folder, against the same sandbox: it is an error if it fails. Who asks for an API
  key on stdin gets one. The folder looks like a checkout (`examples`, `pyproject.toml`), and has `holiday.mov` too.
  `convertrilo sandbox` is a block of its own; it is ended once it has said where it is, and answers there.
  `pip` and `nox` do nothing in that shell, but extras, sessions and files that they name must exist: pip would install
  from an index, which a test must not need, and nox is what runs this test. Other commands than `_KNOWN` are refused.
- ```json (or a part of an object) and ```toml are parsed. Everything else is ```text or has no language, and is not
  looked at.
"""

import ast
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
from anyio.streams.buffered import BufferedByteReceiveStream

from convertrilo import AsyncClient

ROOT = Path(__file__).parents[1]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$|<!-- setup\n(?P<setup>.*?)^ *-->$)",
    re.DOTALL | re.MULTILINE,
)
_KNOWN = {"convertrilo", "export", "nox", "pip", "pytest", "python"}
_NOT_RUN = "pip() { :; }\nnox() { :; }\n"
_SERVER = ["convertrilo", "sandbox"]


@attrs.frozen
class Snippet:
    """A block of a page: its language (`setup` for a comment), its text, and the line where it begins."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_test(self) -> bool:
        return self.language == "python" and re.search(r"^ *(async )?def test_", self.code, re.MULTILINE) is not None


def snippets_of(page: Path) -> Iterator[Snippet]:
    """Find the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        language = "setup" if found["setup"] is not None else found["language"]
        lines = (found["setup"] or found["code"] or "").splitlines()
        code = "\n".join(line.removeprefix(found["indent"]) for line in lines) + "\n"
        yield Snippet(page, text.count("\n", 0, found.start()) + 1, language, code)


# ---- Python


class Page:
    """The namespace that a page's snippets share, with an open `client` in it."""

    def __init__(self, client: AsyncClient) -> None:
        self.names: dict[str, Any] = {"__name__": "a page", "client": client}

    async def run(self, snippet: Snippet) -> None:
        """Execute a snippet, and the `main` that it leaves to the reader to run."""
        source = "\n" * snippet.line + snippet.code  # so that a traceback has the page's lines
        code = compile(source, str(snippet.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        main = self.names.get("main")
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, self.names)
        else:
            await anyio.to_thread.run_sync(exec, code, self.names)  # where it can run an event loop of its own
        if self.names.get("main") is not main and "anyio.run(main" not in snippet.code:
            await self.names["main"]()


# ---- commands


async def run_script(snippet: Snippet) -> None:
    """Run a script as a reader would, in a shell; see above for what is not run."""
    commands = list(commands_of(snippet.code))
    for command in commands:
        check_command(command)
    if any(command[:2] == _SERVER for command in commands):
        [command] = commands
        await run_server(command)
        return
    run = partial(subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    stdin = f"{os.environ['CONVERTRILO_API_KEY']}\n"
    done = await anyio.to_thread.run_sync(partial(run, ["sh", "-euc", _NOT_RUN + snippet.code], input=stdin))
    assert done.returncode == 0, f"{snippet.where} ends with {done.returncode}: {done.stdout}"


async def run_server(command: Sequence[str]) -> None:
    """Run a sandbox, on a free port instead of its own, which another test may have; see that it is where it says."""
    async with await anyio.open_process([*command, "--port", "0"], stderr=None) as process:
        assert process.stdout is not None
        out = BufferedByteReceiveStream(process.stdout)
        with anyio.fail_after(60):
            lines = [(await out.receive_until(b"\n", 1000)).decode() for _ in range(2)]
            settings = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            async with AsyncClient(
                settings["CONVERTRILO_API_KEY"], base_url=settings["CONVERTRILO_BASE_URL"]
            ) as client:
                await client.get_balance()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0


def commands_of(script: str) -> Iterator[list[str]]:
    """Yield the commands of a script, in words, without the variables that are set for one alone."""
    for line in script.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\w+=\$\((.+)\)$", r"\1", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                while command and re.match(r"[A-Z_]+=", command[0]):
                    del command[0]
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def check_command(command: Sequence[str]) -> None:
    """Check that a command may be run, and if it is not run, that it could be."""
    name, *arguments = command
    assert name in _KNOWN, f"{name} is no command that pages use"
    if name == "pip":
        for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= EXTRAS, f"there is no extra {extras}"
    elif name == "nox":
        words, _, files = " ".join(arguments).partition(" -- ")
        for session in words.partition("-s ")[2].split():
            assert re.search(rf"^def {session}\(session", NOXFILE, re.MULTILINE), f"there is no session {session}"
        for file in files.split():
            assert (ROOT / file).exists(), f"there is no {file}"


# ---- everything else


def check(snippet: Snippet) -> None:
    """Check a snippet that is not run."""
    if snippet.language == "json":
        json.loads(f"{{{snippet.code}}}" if snippet.code.startswith('"') else snippet.code)
    elif snippet.language == "toml":
        tomllib.loads(snippet.code)
    elif snippet.language not in ("", "text"):
        raise AssertionError(f"nobody checks {snippet.language}; is it text?")
