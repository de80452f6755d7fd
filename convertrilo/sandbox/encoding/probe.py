"""What is in a media file, asked of ffmpeg itself: the wheel that brings ffmpeg has no ffprobe.

Here too is how ffmpeg is run, for `ffmpeg.py` beside this page encodes with the same care: never reading the terminal
or another machine's files, and never left running.
"""

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
_PROBE_SECONDS = 60.0
_LOG_TAIL_BYTES = 1_000_000

# Containers that hold their own media. Playlists (hls, dash, concat, imf) are left out because they name other files of
# this machine, images and raw streams because they are not what a video service is sent.
_CONTAINERS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg,mxf"

_LINE = r"(?m)^\[info\] +"  # every line of ffmpeg's own begins with its level
_FORMAT = re.compile(_LINE + r"Input #0, (\S+), from ")
_DURATION = re.compile(_LINE + r"Duration: (\d+):(\d+):([\d.]+)(?:, start: (-?[\d.]+))?")
_STREAM = re.compile(_LINE + r"Stream #0:(\d+)[^:\n]*: (Video|Audio|\w+): (\w+)(.*)$")
_PICTURE = re.compile(_LINE + r"Stream #.*\((?:attached pic|timed thumbnails)\)")
_STREAM_DURATION = re.compile(_LINE + r"DURATION(?:-\w+)? *: (\d+):(\d+):([\d.]+)")
_ROTATION = re.compile(_LINE + r"display ?matrix: rotation of (-?[\d.]+)", re.IGNORECASE)
_SIZE = re.compile(r", (\d+)x(\d+)\b")
_PIXEL_SHAPE = re.compile(r"\bSAR (\d+):(\d+)")
_RATE = re.compile(r", ([\d.]+)(k?) fps\b")

_ERROR = re.compile(r"\[(?:error|fatal)\]:? *(.+)$")
_BOILERPLATE = re.compile(
    r"Error opening input|Task finished|Terminating thread|Conversion failed|Nothing was written|Could not open encoder"
    r"|Last message repeated|At least one output file"
)


class MediaError(Exception):
    """A file that cannot be read or encoded; the message is meant for the owner of the job, and names no local path."""


@attrs.frozen
class MediaInfo:
    """What plays in a file: `duration` in seconds, size in pixels as displayed, the codecs by their usual names."""

    duration: float
    width: int
    height: int
    fps: float | None
    """Average frames a second; None where the container does not say."""
    codec: str
    audio_codec: str | None
    format: str
    """The container's family as ffmpeg names it: `mov,mp4,m4a,3gp,3g2,mj2` or `matroska,webm`."""


@attrs.frozen
class Finished:
    """How a run of ffmpeg ended: its exit status and the end of its log."""

    status: int
    log: str

    @property
    def errors(self) -> list[str]:
        """The errors of the log that say something, each once."""
        errors: dict[str, None] = {}
        for line in self.log.splitlines():
            found = _ERROR.search(line)
            if found and not _BOILERPLATE.search(found[1]):
                errors[found[1].strip().rstrip(".")] = None
        return list(errors)

    def reason(self, *hidden: Path) -> str:
        """Return the last errors of the log in one line, without the `hidden` paths."""
        text = "; ".join(self.errors[-2:])
        for path in hidden:
            text = text.replace(f"file:{path}", path.name).replace(str(path), path.name)
        if text:
            return text
        return f"ffmpeg was ended by signal {-self.status}" if self.status < 0 else f"ffmpeg ended with {self.status}"


async def executable() -> str:
    """Return the path of the ffmpeg that the imageio-ffmpeg wheel carries."""
    import imageio_ffmpeg

    # The first call starts ffmpeg once to see that it runs, hence the thread; later ones are answered from a cache.
    return str(await anyio.to_thread.run_sync(imageio_ffmpeg.get_ffmpeg_exe))


def reading(source: Path) -> tuple[str, ...]:
    """Return ffmpeg's arguments that open `source` as a self-contained media file, and nothing else."""
    return "-format_whitelist", _CONTAINERS, "-protocol_whitelist", "file", "-i", f"file:{source.absolute()}"


@asynccontextmanager
async def _process(
    arguments: tuple[str, ...], log: IO[bytes], cwd: Path | None
) -> AsyncGenerator[anyio.abc.Process, None]:
    """Start ffmpeg; however the block is left, the process is killed and reaped."""
    command = [await executable(), "-hide_banner", "-nostdin", *arguments]
    with anyio.CancelScope(shield=True) as scope:  # cancelled half-way through the fork, nobody would know the child
        process = await anyio.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C in a terminal reaches us alone, and we clean up
        )
        try:
            scope.shield = False
            yield process
        finally:
            scope.shield = True
            with suppress(ProcessLookupError):
                process.kill()  # on SIGTERM ffmpeg takes seconds to finish a file that nobody wants
            with anyio.move_on_after(_CLEANUP_SECONDS):
                await process.wait()
            if process.returncode is not None:
                await process.aclose()


async def run(
    *arguments: str, cwd: Path | None = None, on_line: Callable[[str], Awaitable[object]] | None = None
) -> Finished:
    """Run ffmpeg to its end.

    Args:
        *arguments: ffmpeg's own, without its name; the log should be asked for with levels (`-loglevel level+error`).
        cwd: the folder that relative output names belong to.
        on_line: awaited with every line of standard output; what it raises ends ffmpeg.

    """
    # A file takes the log without a second reader task, and disappears with its last user, even if that is killed.
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
    """Kill every ffmpeg that works in `folder`, as a killed server could not; only Linux tells where they work."""
    for working in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # of another user, or gone already
            is_ours = working.resolve(strict=True).is_relative_to(folder.resolve())
            if is_ours and "ffmpeg" in working.with_name("exe").resolve().name:
                os.kill(int(working.parent.name), signal.SIGKILL)


async def probe(path: Path) -> MediaInfo:
    """Look into a media file.

    Args:
        path: a local file; its name and extension do not matter.

    Raises:
        MediaError: it is not a readable video: damaged, empty, text, a playlist, a still image, sound alone.

    """
    file = await anyio.Path(path).absolute()
    if not await file.is_file():
        raise MediaError("the source is not a file")
    if (await file.stat()).st_size == 0:
        raise MediaError("the source is empty (0 bytes)")
    try:
        with anyio.fail_after(_PROBE_SECONDS):
            # Without an output ffmpeg prints what it found and ends with an error, which is what we want.
            finished = await run("-loglevel", "level+info", *reading(path))
    except TimeoutError:
        raise MediaError(f"the source could not be read within {_PROBE_SECONDS:.0f} seconds") from None
    log = finished.log.replace(str(file), "")  # a name with line breaks could pass for ffmpeg's own words
    if not _FORMAT.search(log):
        raise MediaError(_unreadable(finished, Path(file)))
    info = parse(log)
    if info.duration > 0 and "Estimating duration from bitrate" not in log:
        return info
    return attrs.evolve(info, duration=await _measure(path))


def _unreadable(finished: Finished, path: Path) -> str:
    if "detected only with low score" in finished.log:
        return "the source is not a video: no known container was recognised in it"
    if "not on whitelist" in finished.log:
        return f"the source is not a video in a container that can be read ({_CONTAINERS.replace(',', ', ')})"
    if "moov atom not found" in finished.log:
        return "the source is incomplete: its index (the moov atom) is missing, so the file is probably truncated"
    if "Invalid data found when processing input" in finished.log and not finished.errors:
        return "the source is not a video: nothing in it looks like a known container"
    return f"the source cannot be read: {finished.reason(path)}"


def parse(log: str) -> MediaInfo:
    """Read the description that ffmpeg logs for its input; `duration` is 0 where the container does not say.

    Raises:
        MediaError: there is no video stream that could be decoded.

    """
    container = _FORMAT.search(log)
    assert container is not None
    header, *streams = _sections(log)
    by_index = sorted(streams, key=lambda section: int(_matched(_STREAM, section)[1]))  # programs list them otherwise
    video = next((s for s in by_index if _kind(s) == "Video" and not _PICTURE.search(s)), None)
    audio = next((s for s in by_index if _kind(s) == "Audio"), None)
    if video is None:
        raise MediaError("the source has no video stream" + (", only sound" if audio else ""))
    details = _matched(_STREAM, video)
    size = _SIZE.search(details[4])
    if details[3] == "none" or size is None:
        raise MediaError("the source's video stream cannot be decoded: its codec is unknown or its data damaged")
    width, height = _displayed(int(size[1]), int(size[2]), video)
    rate = _RATE.search(details[4])
    audio_codec = _matched(_STREAM, audio)[3] if audio else "none"
    return MediaInfo(
        duration=_duration(header, [s for s in (video, audio) if s], from_zero="matroska" in container[1]),
        width=width,
        height=height,
        fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else None,
        codec="h265" if details[3] == "hevc" else details[3],
        audio_codec=None if audio_codec == "none" else audio_codec,
        format=container[1],
    )


def _sections(log: str) -> list[str]:
    starts = [found.start() for found in _STREAM.finditer(log)]
    return [log[start:end] for start, end in zip([0, *starts], [*starts, len(log)], strict=True)]


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.search(text)
    assert found is not None
    return found


def _kind(section: str) -> str:
    return _matched(_STREAM, section)[2]


def _displayed(width: int, height: int, section: str) -> tuple[int, int]:
    shape, rotation = _PIXEL_SHAPE.search(section), _ROTATION.search(section)
    if shape:
        width = max(1, round(width * int(shape[1]) / max(1, int(shape[2]))))
    if rotation and round(float(rotation[1])) % 180:
        width, height = height, width
    return width, height


def _duration(header: str, streams: list[str], *, from_zero: bool) -> float:
    def seconds(found: re.Match[str]) -> float:
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])

    total = _DURATION.search(header)
    if total is None:
        return 0.0
    # Matroska counts from zero rather than from the first frame, and counts subtitles that outlast the film.
    ends = [seconds(found) for found in map(_STREAM_DURATION.search, streams) if found]
    if not from_zero:
        return seconds(total)
    end = min(seconds(total), max(ends)) if len(ends) == len(streams) else seconds(total)
    return end - max(0.0, float(total[4] or 0))


async def _measure(path: Path) -> float:
    """Count the seconds of a file whose header does not tell, as those that browsers record, by reading it through."""
    counted = {"frame": 0, "out_time_us": 0}

    async def note(line: str) -> None:
        key, _, value = line.partition("=")
        if key in counted and value.strip().isdigit():
            counted[key] = int(value)

    streams = ("-map", "0:V:0", "-map", "0:a:0?", "-c", "copy", "-f", "null", "-")
    await run("-loglevel", "level+error", "-nostats", "-progress", "pipe:1", *reading(path), *streams, on_line=note)
    if counted["frame"] <= 1 or not counted["out_time_us"]:
        raise MediaError("the source has no video to play: a still image, or no frame at all")
    return counted["out_time_us"] / 1_000_000
