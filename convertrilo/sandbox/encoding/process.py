"""Run ffmpeg so that it never reads the terminal, opens only the given files, and is never left running."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
import anyio.abc
import anyio.to_thread
import attrs

_CLEANUP_SECONDS = 5.0
_LOG_TAIL_BYTES = 1_000_000

# Containers that hold their own media. Playlists (hls, dash, concat, imf) are left out because they name other files of
# this machine. Images and raw streams are left out because they are not sources for a video service.
CONTAINERS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg,mxf"

_ERROR = re.compile(r"\[(?:error|fatal)\]:? *(.+)$")
_BOILERPLATE = re.compile(
    r"Error opening input|Task finished|Terminating thread|Conversion failed|Nothing was written|Could not open encoder"
    r"|Last message repeated|At least one output file"
)


@attrs.frozen
class Finished:
    """The result of a run of ffmpeg: its exit status and the end of its log."""

    status: int
    log: str

    @property
    def errors(self) -> list[str]:
        """The errors in the log, each once, without boilerplate."""
        errors: dict[str, None] = {}
        for line in self.log.splitlines():
            found = _ERROR.search(line)
            if found and not _BOILERPLATE.search(found[1]):
                errors[found[1].strip().rstrip(".")] = None
        return list(errors)

    def reason(self, *hidden: Path) -> str:
        """Return the last errors of the log in one line, with the `hidden` paths shortened to their names."""
        text = "; ".join(self.errors[-2:])
        for path in hidden:
            text = text.replace(f"file:{path}", path.name).replace(str(path), path.name)
        if text:
            return text
        return f"ffmpeg was ended by signal {-self.status}" if self.status < 0 else f"ffmpeg ended with {self.status}"


async def executable() -> str:
    """Return the path of the ffmpeg that the imageio-ffmpeg wheel carries."""
    import imageio_ffmpeg

    # In a thread: the first call starts ffmpeg to check that it runs. Later calls are answered from a cache.
    return str(await anyio.to_thread.run_sync(imageio_ffmpeg.get_ffmpeg_exe))


def input_arguments(source: Path) -> tuple[str, ...]:
    """Return ffmpeg's arguments that open `source` as a self-contained media file, and nothing else."""
    return "-format_whitelist", CONTAINERS, "-protocol_whitelist", "file", "-i", f"file:{source.absolute()}"


@asynccontextmanager
async def _process(
    arguments: tuple[str, ...], log: IO[bytes], cwd: Path | None
) -> AsyncGenerator[anyio.abc.Process, None]:
    """Start ffmpeg; kill and reap the process when the block ends for any reason."""
    command = [await executable(), "-hide_banner", "-nostdin", *arguments]
    with anyio.CancelScope(shield=True) as scope:  # a cancellation during the fork would lose the child
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C in a terminal reaches only the sandbox, which cleans up
        )
        try:
            scope.shield = False
            yield process
        finally:
            scope.shield = True
            with suppress(ProcessLookupError):
                process.kill()  # on SIGTERM ffmpeg would spend seconds finishing an unwanted file
            with anyio.move_on_after(_CLEANUP_SECONDS):
                await process.wait()
            if process.returncode is not None:
                await process.aclose()


async def run(
    *arguments: str, cwd: Path | None = None, on_line: Callable[[str], Awaitable[object]] | None = None
) -> Finished:
    """Run ffmpeg to its end.

    Args:
        *arguments: ffmpeg's arguments; ask for a log with levels (`-loglevel level+error`).
        cwd: the folder that relative output names belong to.
        on_line: awaited with every line of standard output; an exception from it ends ffmpeg.

    """
    # The log goes to a file, which needs no second reader task and vanishes even if this process is killed.
    with tempfile.TemporaryFile() as log:
        async with _process(arguments, log, cwd) as process:
            assert process.stdout is not None
            rest = b""
            async for chunk in process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                if on_line is not None:
                    for line in lines:
                        await on_line(line.decode(errors="replace").strip())
            status = await process.wait()
        log.seek(max(0, log.seek(0, 2) - _LOG_TAIL_BYTES))
        return Finished(status, log.read().decode(errors="replace"))


def end_orphans(folder: Path) -> None:
    """Kill the ffmpeg processes that a killed sandbox left running in `folder`; on Linux only."""
    for working in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # a process of another user, or one that has ended
            is_ours = working.resolve(strict=True).is_relative_to(folder.resolve())
            if is_ours and "ffmpeg" in working.with_name("exe").resolve().name:
                os.kill(int(working.parent.name), signal.SIGKILL)
