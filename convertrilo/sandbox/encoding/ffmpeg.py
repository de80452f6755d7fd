"""Encode a video with the ffmpeg of the imageio-ffmpeg wheel, all of it or nothing."""

import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import attrs

from convertrilo.sandbox.encoding.probe import Finished, MediaError, MediaInfo, executable, probe, reading, run

__all__ = ["EncodeSettings", "MediaError", "MediaInfo", "encode", "encoder_for", "probe", "unsupported"]


@attrs.frozen
class EncodeSettings:
    """What an output shall be, in the API's own words; `output_size` says what a resolution means."""

    codec: str
    resolution: str
    fps: int
    container: str = "mp4"
    preset: str = "fast"
    bitrate_tier: str = "medium"
    quality: str | None = None
    passes: int = 1


@attrs.frozen
class _Encoder:
    """How one of ffmpeg's encoders is told the same things as the others."""

    speed: dict[str, tuple[str, ...]]
    """Arguments for each preset."""
    crf: dict[str, int]
    """Constant rate factor for each quality: lower is better, each encoder has its own scale."""
    bits: float
    """Bits that the codec needs for what takes h264 one."""
    worst: float = 51
    """The highest rate factor."""
    step: float = 0.5
    """How finely rate factors are told apart."""
    two_pass: bool = True


# Measured on two cores: a second of 720p takes about half a second with fast, one to four with slow; libaom is slower.
_ENCODERS = {
    "libx264": _Encoder(
        speed={"fast": ("-preset", "veryfast"), "standard": ("-preset", "medium"), "slow": ("-preset", "slow")},
        crf={"good": 26, "better": 23, "best": 19},
        bits=1.0,
    ),
    "libx265": _Encoder(
        speed={"fast": ("-preset", "superfast"), "standard": ("-preset", "fast"), "slow": ("-preset", "slow")},
        crf={"good": 29, "better": 26, "best": 22},
        bits=0.6,
    ),
    "libsvtav1": _Encoder(
        speed={"fast": ("-preset", "9"), "standard": ("-preset", "7"), "slow": ("-preset", "4")},
        crf={"good": 40, "better": 34, "best": 26},
        bits=0.5,
        worst=63,
        step=1,
        two_pass=False,  # ffmpeg 9.0.2 crashes on -pass 1 with it
    ),
    "libaom-av1": _Encoder(
        speed={"fast": ("-cpu-used", "8"), "standard": ("-cpu-used", "6"), "slow": ("-cpu-used", "4")},
        crf={"good": 38, "better": 32, "best": 24},
        bits=0.5,
        worst=63,
        step=1,
    ),
}
_ENCODERS_OF = {"h264": ("libx264",), "h265": ("libx265",), "av1": ("libsvtav1", "libaom-av1")}
_CODECS_OF = {
    "mp4": ("h264", "h265", "av1"),
    "mkv": ("h264", "h265", "av1"),
    "webm": ("av1",),
    "mov": ("h264", "h265"),
}
_MUXERS = {"mp4": "mp4", "mkv": "matroska", "webm": "webm", "mov": "mov"}
_AUDIO_ENCODERS_OF = {"mp4": ("aac",), "mkv": ("aac",), "webm": ("libopus", "libvorbis"), "mov": ("aac",)}
_AUDIO_BITRATE = {"low": "96k", "medium": "128k", "high": "192k"}

# The tier is a ceiling, in h264 bits for each pixel shown: medium allows 6 Mbit/s for 1080p at 30 frames a second.
# With one pass quality is a constant rate factor below that ceiling, with two the share of it that is aimed at.
_CEILING = {"low": 0.05, "medium": 0.1, "high": 0.2}
_SHARE = {"good": 0.4, "better": 0.6, "best": 0.8}
_LEAST_BITRATE = 100_000

_TRUNCATED = ("File ended prematurely", "partial file")

_available: dict[str, frozenset[str]] = {}


def unsupported(codec: str, container: str) -> str | None:
    """Return why `container` cannot carry `codec`, None if it can; both in the API's words."""
    codecs = _CODECS_OF[container]
    return None if codec in codecs else f"{container} cannot carry {codec}; it carries {', '.join(codecs)}"


async def available_encoders() -> frozenset[str]:
    """Return the names of ffmpeg's encoders, asked once for each executable."""
    path = await executable()
    if path not in _available:
        lines: list[str] = []

        async def keep(line: str) -> None:
            lines.append(line)

        await run("-loglevel", "error", "-encoders", on_line=keep)
        matches = (re.match(r"[VA]\S{5} (\S+)", line) for line in lines)
        _available[path] = frozenset(found[1] for found in matches if found)
    return _available[path]


def choose_encoder(codec: str, passes: int, available: Collection[str]) -> str:
    """Return the best of the `available` encoders for `codec` that can do `passes`.

    Raises:
        MediaError: there is none.

    """
    for name in _ENCODERS_OF[codec]:
        if name in available and (passes == 1 or _ENCODERS[name].two_pass):
            return name
    raise MediaError(f"this machine's ffmpeg has no encoder for {codec} in {passes} pass{'es' if passes > 1 else ''}")


async def encoder_for(settings: EncodeSettings) -> str:
    """Return ffmpeg's name of the encoder that `settings` would be encoded with here, such as `libsvtav1`."""
    return choose_encoder(settings.codec, settings.passes, await available_encoders())


@attrs.frozen
class RateFactors:
    """Which constant rate factors an encoder has; a score of the picture falls by about `slope` with each."""

    first: float
    """The one to begin a search with."""
    low: float
    high: float
    step: float
    slope: float


async def rate_factors(settings: EncodeSettings) -> RateFactors:
    """Return which rate factors there are for `settings`."""
    how = _ENCODERS[await encoder_for(settings)]
    first = how.crf[settings.quality or "better"]
    return RateFactors(first, low=1, high=how.worst, step=how.step, slope=75 / how.worst)


def output_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """Return the size in pixels of an output: the source's shape, even, never larger than the source.

    Args:
        width: of the source, as displayed.
        height: of the source, as displayed.
        resolution: lines of the shorter side: the height of a landscape video and the width of a portrait one, so that
            a phone's 1080x1920 at 720p becomes 720x1280, the same picture as its landscape sibling.

    """
    factor = min(1.0, int(resolution.removesuffix("p")) / min(width, height))

    def even(pixels: int) -> int:
        return max(2, min(2 * round(pixels * factor / 2), pixels // 2 * 2))

    return even(width), even(height)


async def encode(
    source: Path,
    target: Path,
    settings: EncodeSettings,
    *,
    info: MediaInfo | None = None,
    factor: float | None = None,
    on_progress: Callable[[float], Awaitable[object]] | None = None,
) -> MediaInfo:
    """Encode `source` into `target`, which appears complete or not at all.

    Work happens in a folder beside the target whose name starts with a dot and ends in `.encoding`; it is gone
    afterwards, as is the ffmpeg process, whether this returns, raises, or is cancelled.

    Args:
        source: a local media file.
        target: where the output goes; an older file there is replaced.
        settings: what to make of it.
        info: what `probe` said of the source; probed here if not given.
        factor: the constant rate factor to use in one pass, in place of what the tier and the quality say.
        on_progress: awaited with percent, rising, up to 100 just before the output appears.

    Returns:
        What the output holds, probed.

    Raises:
        MediaError: the combination is not allowed, the source is no readable video or ends early, or encoding failed.

    """
    if refusal := unsupported(settings.codec, settings.container):
        raise MediaError(refusal)
    info = info or await probe(source)
    available = await available_encoders()
    encoder = choose_encoder(settings.codec, settings.passes, available)
    audio = next((name for name in _AUDIO_ENCODERS_OF[settings.container] if name in available), None)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=".", suffix=".encoding", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        output = folder / "output"
        percent = _Percent(info.duration, settings.passes, on_progress)
        for number in range(1, settings.passes + 1):
            last = number == settings.passes
            finished = await run(
                *("-y", "-xerror", "-loglevel", "level+error", "-nostats", "-progress", "pipe:1"),
                *("-filter_threads", threads(), "-threads", threads(), *reading(source)),
                *_video(settings, encoder, info, number, factor),
                *(_audio(settings, info, audio) if last else ("-an",)),
                *(_muxing(settings, output.name) if last else ("-f", "null", "-")),
                cwd=folder,
                on_line=percent.read,
            )
            _check(finished, source, folder)
            await percent.end_pass()
        made = await probe(output)
        _check_duration(made, info, settings)
        await percent.report(100.0)
        output.replace(target)  # no await from here on: a cancellation finds the target whole or absent
    return made


def threads() -> str:
    """Return half of the cores: two encodes at once share the machine, a single one's decoder has the other half."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, cores // 2))


def picture_filters(settings: EncodeSettings, info: MediaInfo) -> str:
    """Return ffmpeg's filters that make the pictures of the output from those of the source."""
    width, height = output_size(info.width, info.height, settings.resolution)
    return f"fps={settings.fps},scale={width}:{height},setsar=1,format=yuv420p"


def _video(
    settings: EncodeSettings, encoder: str, info: MediaInfo, number: int, factor: float | None
) -> tuple[str, ...]:
    width, height = output_size(info.width, info.height, settings.resolution)
    filters = picture_filters(settings, info)
    how, quality = _ENCODERS[encoder], settings.quality or "better"
    ceiling = round(max(_LEAST_BITRATE, _CEILING[settings.bitrate_tier] * how.bits * width * height * settings.fps))
    rate: tuple[str, ...]
    if factor is not None:
        rate = ("-crf", f"{factor:g}", *(("-b:v", "0") if encoder == "libaom-av1" else ()))
    elif settings.passes == 2:
        rate = ("-b:v", str(round(ceiling * _SHARE[quality])))
    elif encoder == "libaom-av1":
        rate = ("-crf", str(how.crf[quality]), "-b:v", str(ceiling))  # there the ceiling of a crf is called -b:v
    else:
        rate = ("-crf", str(how.crf[quality]), "-maxrate", str(ceiling), "-bufsize", str(2 * ceiling))
    return (
        *("-map", "0:V:0", "-vf", filters, "-c:v", encoder, *how.speed[settings.preset], *rate),
        *("-g", str(5 * settings.fps), "-threads", threads()),  # a key frame every 5 seconds, to seek by
        *_particulars(settings, encoder, number),
    )


def _particulars(settings: EncodeSettings, encoder: str, number: int) -> tuple[str, ...]:
    """Return what encoders want said in their own way: threads, passes, and the tag that Apple's players look for."""
    two = settings.passes == 2
    if encoder == "libsvtav1":
        return "-svtav1-params", f"lp={threads()}"
    if encoder == "libx265":
        passes = f":pass={number}:stats=passes" if two else ""
        tag = ("-tag:v", "hvc1") if settings.container in ("mp4", "mov") else ()
        return "-x265-params", f"log-level=error:pools={threads()}{passes}", *tag
    passlog = ("-pass", str(number), "-passlogfile", "passes") if two else ()
    return (*(("-row-mt", "1") if encoder == "libaom-av1" else ()), *passlog)


def _audio(settings: EncodeSettings, info: MediaInfo, encoder: str | None) -> tuple[str, ...]:
    if info.audio_codec is None or encoder is None:
        return ("-an",)
    layouts = "aformat=channel_layouts=mono|stereo"  # every player has these, and libopus refuses some others
    return "-map", "0:a:0", "-af", layouts, "-c:a", encoder, "-b:a", _AUDIO_BITRATE[settings.bitrate_tier]


def _muxing(settings: EncodeSettings, name: str) -> tuple[str, ...]:
    index_first = ("-movflags", "+faststart") if settings.container in ("mp4", "mov") else ()
    # Titles, places and paths that the source carries are its owner's, and not part of what was asked for.
    return "-map_metadata", "-1", "-map_chapters", "-1", *index_first, "-f", _MUXERS[settings.container], name


@attrs.define
class _Percent:
    """Turns ffmpeg's `-progress` lines into rising percent."""

    duration: float
    passes: int
    on_progress: Callable[[float], Awaitable[object]] | None
    passed: int = 0
    reported: float = 0.0

    async def read(self, line: str) -> None:
        key, _, value = line.partition("=")
        if key == "out_time_us" and value.isdigit():  # "N/A" before the first frame
            share = min(1.0, int(value) / 1_000_000 / self.duration)
            await self.report(min(99.9, 100 * (self.passed + share) / self.passes))

    async def end_pass(self) -> None:
        self.passed += 1  # libaom tells nothing during its first pass, so the step is told here
        await self.report(min(99.9, 100 * self.passed / self.passes))

    async def report(self, percent: float) -> None:
        if percent > self.reported:
            self.reported = percent
            if self.on_progress is not None:
                await self.on_progress(percent)


def _check(finished: Finished, source: Path, folder: Path) -> None:
    if any(line in finished.log for line in _TRUNCATED):
        raise MediaError("the source ends early: the file is truncated")
    if finished.status != 0:
        raise MediaError(f"the source could not be encoded: {finished.reason(source.absolute(), folder)}")


def _check_duration(made: MediaInfo, info: MediaInfo, settings: EncodeSettings) -> None:
    """A file cut between two packets is read without an error, and is only too short."""
    frames = 1 / settings.fps + 1 / (info.fps or settings.fps)
    if made.duration < info.duration * 0.99 - frames - 0.1:
        raise MediaError(
            f"the source ends early: {made.duration:.1f} of its {info.duration:.1f} seconds could be read; "
            "the file is truncated"
        )
