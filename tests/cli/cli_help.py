"""How the tests of the command run it, and what they look for."""

import os
import subprocess
import sys
from pathlib import Path

CLIP = Path(__file__).parents[2] / "examples" / "media" / "big-buck-bunny-5s.mp4"
COMMAND = [sys.executable, "-m", "convertrilo.cli"]


def convertrilo(
    *arguments: str | Path, cwd: Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with nothing in the environment but what is said here."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def read_terminal(terminal: int) -> bytes:
    """Read what a process has written to its terminal; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says so
        return b""
