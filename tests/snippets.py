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

- ```sh is checked: every command is known; `convertrilo …` has commands and options that exist, `nox -s …` a session,
  `pip install "convertrilo[…]"` an extra, `python FILE` a file. ```json (or a part of an
  object) and ```toml are parsed. Everything else is ```text or has no language, and is not looked at.
"""

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import click

from convertrilo import AsyncClient

ROOT = Path(__file__).parents[1]
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$|<!-- setup\n(?P<setup>.*?)^ *-->$)",
    re.DOTALL | re.MULTILINE,
)
_KNOWN = {
    "cd",
    "claude",
    "curl",
    "export",
    "git",
    "hypercorn",
    "kill",
    "mypy",
    "nox",
    "pip",
    "pytest",
    "python",
    "ruff",
    "uvicorn",
}


@attrs.frozen
class Snippet:
    """A block of a page: its language (`setup` for a comment), its text, and the line where it begins."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

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


# ---- everything else


def check(snippet: Snippet) -> None:
    """Check a snippet that is not run."""
    if snippet.language == "json":
        json.loads(f"{{{snippet.code}}}" if snippet.code.startswith('"') else snippet.code)
    elif snippet.language == "toml":
        tomllib.loads(snippet.code)
    elif snippet.language == "sh":
        for command in commands_of(snippet.code):
            check_command(command)
    elif snippet.language not in ("", "text"):
        raise AssertionError(f"nobody checks {snippet.language}; is it text?")


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
    """Check that a command could be run."""
    name, *arguments = command
    assert name in _KNOWN | {"convertrilo"}, f"{name} is no command that pages use"
    arguments = arguments[: next((i for i, word in enumerate(arguments) if set(word) <= set("<>")), None)]
    if name == "convertrilo":
        _parse(arguments)
    elif name == "pip":
        for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= EXTRAS, f"there is no extra {extras}"
    elif name == "nox" and "-s" in arguments:
        session = arguments[arguments.index("-s") + 1]
        assert re.search(rf"^def {session}\(session", NOXFILE, re.MULTILINE), f"there is no session {session}"
    elif name == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"


def _parse(arguments: Sequence[str]) -> None:
    """Have click parse the command's arguments; that a file of the reader's is not here is no mistake."""
    from convertrilo.cli.app import convertrilo

    command: click.Command = convertrilo
    context: click.Context | None = None
    words = list(arguments)
    try:
        while True:
            context = command.make_context(command.name, words, parent=context)
            if not isinstance(command, click.Group):
                return
            words = [*context._protected_args, *context.args]
            found = command.get_command(context, words[0])
            assert found is not None, f"convertrilo has no command {words[0]}"
            command, words = found, words[1:]
    except click.exceptions.Exit:
        return  # --help, --version
    except click.BadParameter as error:
        if "does not exist" not in error.format_message():
            raise
