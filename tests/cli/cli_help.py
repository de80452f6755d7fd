"""How the tests of the command run it, and what they look for."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from leaks import WATCH

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


_WITH_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """The command in a terminal of its own, whose user we are; stdout is a pipe unless it is the terminal too."""

    def __init__(self, *arguments: str, cwd: Path, stdout: bool = False, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WITH_TERMINAL, *COMMAND, *arguments],
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **environment},
            stdin=theirs,
            stdout=theirs if stdout else subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Read until something is to be seen that was not there before."""
        seen = len(self.shown)
        while text not in self.shown[seen:]:
            piece = self._read()
            assert piece, f"it ended without {text!r}: {self.shown}"
            self.shown += piece

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so elsewhere, while the command runs; a terminal that nobody reads would stop it."""
        while not condition():
            assert self.process.poll() is None, "it ended early"
            if select.select([self._ours], [], [], 0.01)[0]:
                self.shown += self._read()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def _read(self) -> str:
        """Read what was written to the terminal; nothing once the other side is closed."""
        try:
            return os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # how Linux says so
            return ""

    def close(self) -> None:
        """Close the terminal: whoever uses it is hung up on."""
        os.close(self._ours)

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and what came out of the pipe."""
        while piece := self._read():
            self.shown += piece
        self.close()
        return self.ended()

    def ended(self) -> tuple[int, str]:
        WATCH.look_at_output("a terminal", self.shown, None)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, (out or b"").decode()
