"""Probe a media file with ffmpeg itself: the imageio-ffmpeg wheel contains no ffprobe."""

import re
from pathlib import Path

import anyio
import attrs

from convertrilo.sandbox.encoding.process import CONTAINERS, Finished, input_arguments, run
from convertrilo.sandbox.state.problem import MediaError

_PROBE_SECONDS = 60.0

_LINE = r"(?m)^\[info\] +"  # every line that ffmpeg itself writes begins with its level
_FORMAT = re.compile(_LINE + r"Input #0, (\S+), from ")
_DURATION = re.compile(_LINE + r"Duration: (\d+):(\d+):([\d.]+)(?:, start: (-?[\d.]+))?")
_STREAM = re.compile(_LINE + r"Stream #0:(\d+)[^:\n]*: (Video|Audio|\w+): (\w+)(.*)$")
_PICTURE = re.compile(_LINE + r"Stream #.*\((?:attached pic|timed thumbnails)\)")
_STREAM_DURATION = re.compile(_LINE + r"DURATION(?:-\w+)? *: (\d+):(\d+):([\d.]+)")
_ROTATION = re.compile(_LINE + r"display ?matrix: rotation of (-?[\d.]+)", re.IGNORECASE)
_SIZE = re.compile(r", (\d+)x(\d+)\b")
_PIXEL_SHAPE = re.compile(r"\bSAR (\d+):(\d+)")
_RATE = re.compile(r", ([\d.]+)(k?) fps\b")


@attrs.frozen
class MediaInfo:
    """The media in a file: `duration` in seconds, size in pixels as displayed, codecs by their usual names."""

    duration: float
    width: int
    height: int
    fps: float | None
    """Average frames per second; None if the container does not say."""
    codec: str
    audio_codec: str | None
    format: str
    """The container family as ffmpeg names it: `mov,mp4,m4a,3gp,3g2,mj2` or `matroska,webm`."""


async def probe(path: Path) -> MediaInfo:
    """Return what a media file contains.

    Args:
        path: a local file; its name and extension do not matter.

    Raises:
        MediaError: the file is not a readable video: it is damaged, empty, text, a playlist, a still image or only
            sound.

    """
    file = await anyio.Path(path).absolute()
    if not await file.is_file():
        raise MediaError("the source is not a file")
    if (await file.stat()).st_size == 0:
        raise MediaError("the source is empty (0 bytes)")
    try:
        with anyio.fail_after(_PROBE_SECONDS):
            # Without an output, ffmpeg logs what it found and ends with an error, as intended.
            finished = await run("-loglevel", "level+info", *input_arguments(path))
    except TimeoutError:
        raise MediaError(f"the source could not be read within {_PROBE_SECONDS:.0f} seconds") from None
    log = finished.log.replace(str(file), "")  # a name with line breaks could imitate ffmpeg's own lines
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
        return f"the source is not a video in a container that can be read ({CONTAINERS.replace(',', ', ')})"
    if "moov atom not found" in finished.log:
        return "the source is incomplete: its index (the moov atom) is missing, so the file is probably truncated"
    if "Invalid data found when processing input" in finished.log and not finished.errors:
        return "the source is not a video: nothing in it looks like a known container"
    return f"the source cannot be read: {finished.reason(path)}"


def parse(log: str) -> MediaInfo:
    """Parse the description that ffmpeg logs for its input; `duration` is 0 if the container does not say.

    Raises:
        MediaError: no video stream can be decoded.

    """
    container = _FORMAT.search(log)
    assert container is not None
    header, *streams = _sections(log)
    # Sorted, because files with programs list their streams out of order.
    by_index = sorted(streams, key=lambda section: int(_matched(_STREAM, section)[1]))
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
    # Matroska's duration starts at zero instead of the first frame, and includes subtitles that outlast the video.
    ends = [seconds(found) for found in map(_STREAM_DURATION.search, streams) if found]
    if not from_zero:
        return seconds(total)
    end = min(seconds(total), max(ends)) if len(ends) == len(streams) else seconds(total)
    return end - max(0.0, float(total[4] or 0))


async def _measure(path: Path) -> float:
    """Measure the duration of a file without one in its header, such as a browser's recording, by reading all of it."""
    counted = {"frame": 0, "out_time_us": 0}

    async def read_progress(line: str) -> None:
        key, _, value = line.partition("=")
        if key in counted and value.strip().isdigit():
            counted[key] = int(value)

    streams = ("-map", "0:V:0", "-map", "0:a:0?", "-c", "copy", "-f", "null", "-")
    await run(
        "-loglevel",
        "level+error",
        "-nostats",
        "-progress",
        "pipe:1",
        *input_arguments(path),
        *streams,
        on_line=read_progress,
    )
    if counted["frame"] <= 1 or not counted["out_time_us"]:
        raise MediaError("the source has no video to play: a still image, or no frame at all")
    return counted["out_time_us"] / 1_000_000
