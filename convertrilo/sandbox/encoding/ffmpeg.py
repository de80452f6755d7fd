"""Encode a video with the ffmpeg of the imageio-ffmpeg wheel; the output appears only when complete."""

import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import attrs

from convertrilo.sandbox.encoding.probe import MediaInfo, probe
from convertrilo.sandbox.encoding.process import Finished, executable, input_arguments, run
from convertrilo.sandbox.state.problem import MediaError
from convertrilo.sandbox.state.settings import unsupported


@attrs.frozen
class EncodeSettings:
    """The settings of an encode, in the API's values; `output_size` defines what a resolution means."""

    codec: str
    resolution: str
    fps: int
    container: str = "mp4"
    preset: str = "fast"
    bitrate_tier: str = "medium"
    quality: str | None = None
    passes: int = 1


@attrs.frozen
class _EncoderOptions:
    """How the API's settings translate to one of ffmpeg's encoders."""

    speed: dict[str, tuple[str, ...]]
    """The arguments for each preset."""
    crf: dict[str, int]
    """The constant rate factor for each quality: lower is better, and each encoder has its own scale."""
    bits: float
    """The bits that the codec needs, relative to h264."""
    highest_crf: float = 51
    crf_step: float = 0.5
    """The smallest difference between two rate factors."""
    two_pass: bool = True


# On two cores, a second of 720p takes about half a second with fast, and one to four with slow; libaom is slower.
_ENCODERS = {
    "libx264": _EncoderOptions(
        speed={"fast": ("-preset", "veryfast"), "standard": ("-preset", "medium"), "slow": ("-preset", "slow")},
        crf={"good": 26, "better": 23, "best": 19},
        bits=1.0,
    ),
    "libx265": _EncoderOptions(
        speed={"fast": ("-preset", "superfast"), "standard": ("-preset", "fast"), "slow": ("-preset", "slow")},
        crf={"good": 29, "better": 26, "best": 22},
        bits=0.6,
    ),
    "libsvtav1": _EncoderOptions(
        speed={"fast": ("-preset", "9"), "standard": ("-preset", "7"), "slow": ("-preset", "4")},
        crf={"good": 40, "better": 34, "best": 26},
        bits=0.5,
        highest_crf=63,
        crf_step=1,
        two_pass=False,  # ffmpeg 9.0.2 crashes on -pass 1 with this encoder
    ),
    "libaom-av1": _EncoderOptions(
        speed={"fast": ("-cpu-used", "8"), "standard": ("-cpu-used", "6"), "slow": ("-cpu-used", "4")},
        crf={"good": 38, "better": 32, "best": 24},
        bits=0.5,
        highest_crf=63,
        crf_step=1,
    ),
}
_ENCODERS_OF = {"h264": ("libx264",), "h265": ("libx265",), "av1": ("libsvtav1", "libaom-av1")}
_MUXERS = {"mp4": "mp4", "mkv": "matroska", "webm": "webm", "mov": "mov"}
_AUDIO_ENCODERS_OF = {"mp4": ("aac",), "mkv": ("aac",), "webm": ("libopus", "libvorbis"), "mov": ("aac",)}
_AUDIO_BITRATE = {"low": "96k", "medium": "128k", "high": "192k"}

# A tier is a bitrate ceiling, in h264 bits per pixel: medium allows 6 Mbit/s for 1080p at 30 frames per second.
# With one pass, quality is a constant rate factor below the ceiling. With two passes, it is a share of the ceiling.
_CEILING = {"low": 0.05, "medium": 0.1, "high": 0.2}
_SHARE = {"good": 0.4, "better": 0.6, "best": 0.8}
_MIN_BITRATE = 100_000

_TRUNCATED = ("File ended prematurely", "partial file")

_available: dict[str, frozenset[str]] = {}


async def available_encoders() -> frozenset[str]:
    """Return the names of ffmpeg's encoders; each executable is asked once."""
    path = await executable()
    if path not in _available:
        lines: list[str] = []

        async def collect(line: str) -> None:
            lines.append(line)

        await run("-loglevel", "error", "-encoders", on_line=collect)
        matches = (re.match(r"[VA]\S{5} (\S+)", line) for line in lines)
        _available[path] = frozenset(found[1] for found in matches if found)
    return _available[path]


def choose_encoder(codec: str, passes: int, available: Collection[str]) -> str:
    """Return the best of the `available` encoders for `codec` that supports `passes`.

    Raises:
        MediaError: there is no such encoder.

    """
    for name in _ENCODERS_OF[codec]:
        if name in available and (passes == 1 or _ENCODERS[name].two_pass):
            return name
    raise MediaError(f"this machine's ffmpeg has no encoder for {codec} in {passes} pass{'es' if passes > 1 else ''}")


async def encoder_for(settings: EncodeSettings) -> str:
    """Return ffmpeg's name of the encoder that `settings` select on this machine, such as `libsvtav1`."""
    return choose_encoder(settings.codec, settings.passes, await available_encoders())


@attrs.frozen
class RateFactors:
    """The range of an encoder's constant rate factors; each step of 1 lowers the VMAF score by about `slope`."""

    first: float
    """The rate factor to begin a search with."""
    low: float
    high: float
    step: float
    slope: float


async def rate_factors(settings: EncodeSettings) -> RateFactors:
    """Return the range of rate factors for `settings`."""
    options = _ENCODERS[await encoder_for(settings)]
    first = options.crf[settings.quality or "better"]
    return RateFactors(first, low=1, high=options.highest_crf, step=options.crf_step, slope=75 / options.highest_crf)


def output_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """Return the size of an output in pixels: the source's shape, even numbers, never larger than the source.

    Args:
        width: the width of the source, as displayed.
        height: the height of the source, as displayed.
        resolution: the length of the shorter side, such as `720p`. A phone's 1080x1920 at 720p becomes 720x1280.

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
    """Encode `source` into `target`, which appears only when complete.

    The work happens in a folder beside the target whose name starts with a dot and ends in `.encoding`. The folder and
    the ffmpeg process are gone when this function returns, raises or is cancelled.

    Args:
        source: a local media file.
        target: the path of the output; an existing file is replaced.
        settings: the encode settings.
        info: the result of `probe` for the source; probed here if not given.
        factor: the constant rate factor to use, in one pass, instead of the tier and the quality.
        on_progress: awaited with rising percentages, up to 100 just before the output appears.

    Returns:
        The result of `probe` for the output.

    Raises:
        MediaError: the settings are not allowed together, the source is not a readable video or is truncated, or
            encoding fails.

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
        progress = _ProgressReader(info.duration, settings.passes, on_progress)
        for number in range(1, settings.passes + 1):
            last = number == settings.passes
            finished = await run(
                *("-y", "-xerror", "-loglevel", "level+error", "-nostats", "-progress", "pipe:1"),
                *("-filter_threads", threads(), "-threads", threads(), *input_arguments(source)),
                *_video(settings, encoder, info, number, factor),
                *(_audio(settings, info, audio) if last else ("-an",)),
                *(_muxing(settings, output.name) if last else ("-f", "null", "-")),
                cwd=folder,
                on_line=progress.read,
            )
            _check_finished(finished, source, folder)
            await progress.end_pass()
        made = await probe(output)
        _check_duration(made, info, settings)
        await progress.report(100.0)
        output.replace(target)  # no await after this line: a cancellation finds the target complete or absent
    return made


def threads() -> str:
    """Return half the number of cores: the other half is for a second encode, or for the decoder of a single encode."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, cores // 2))


def picture_filters(settings: EncodeSettings, info: MediaInfo) -> str:
    """Return the ffmpeg filters that turn the source's frames into those of the output."""
    width, height = output_size(info.width, info.height, settings.resolution)
    return f"fps={settings.fps},scale={width}:{height},setsar=1,format=yuv420p"


def _video(
    settings: EncodeSettings, encoder: str, info: MediaInfo, number: int, factor: float | None
) -> tuple[str, ...]:
    width, height = output_size(info.width, info.height, settings.resolution)
    filters = picture_filters(settings, info)
    options, quality = _ENCODERS[encoder], settings.quality or "better"
    ceiling = round(max(_MIN_BITRATE, _CEILING[settings.bitrate_tier] * options.bits * width * height * settings.fps))
    rate: tuple[str, ...]
    if factor is not None:
        rate = ("-crf", f"{factor:g}", *(("-b:v", "0") if encoder == "libaom-av1" else ()))
    elif settings.passes == 2:
        rate = ("-b:v", str(round(ceiling * _SHARE[quality])))
    elif encoder == "libaom-av1":
        rate = ("-crf", str(options.crf[quality]), "-b:v", str(ceiling))  # libaom takes the ceiling of a crf as -b:v
    else:
        rate = ("-crf", str(options.crf[quality]), "-maxrate", str(ceiling), "-bufsize", str(2 * ceiling))
    return (
        *("-map", "0:V:0", "-vf", filters, "-c:v", encoder, *options.speed[settings.preset], *rate),
        *("-g", str(5 * settings.fps), "-threads", threads()),  # a key frame every 5 seconds, for seeking
        *_encoder_specific(settings, encoder, number),
    )


def _encoder_specific(settings: EncodeSettings, encoder: str, number: int) -> tuple[str, ...]:
    """Return encoder-specific arguments: threads, passes, and the tag that Apple's players need."""
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
    layouts = "aformat=channel_layouts=mono|stereo"  # every player supports these, and libopus rejects some others
    return "-map", "0:a:0", "-af", layouts, "-c:a", encoder, "-b:a", _AUDIO_BITRATE[settings.bitrate_tier]


def _muxing(settings: EncodeSettings, name: str) -> tuple[str, ...]:
    index_first = ("-movflags", "+faststart") if settings.container in ("mp4", "mov") else ()
    # Drop the source's metadata: titles, locations and paths are private to its owner, and nobody requested them.
    return "-map_metadata", "-1", "-map_chapters", "-1", *index_first, "-f", _MUXERS[settings.container], name


@attrs.define
class _ProgressReader:
    """Turns ffmpeg's `-progress` lines into rising percentages."""

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
        self.passed += 1  # libaom reports no progress in its first pass
        await self.report(min(99.9, 100 * self.passed / self.passes))

    async def report(self, percent: float) -> None:
        if percent > self.reported:
            self.reported = percent
            if self.on_progress is not None:
                await self.on_progress(percent)


def _check_finished(finished: Finished, source: Path, folder: Path) -> None:
    if any(line in finished.log for line in _TRUNCATED):
        raise MediaError("the source ends early: the file is truncated")
    if finished.status != 0:
        raise MediaError(f"the source could not be encoded: {finished.reason(source.absolute(), folder)}")


def _check_duration(made: MediaInfo, info: MediaInfo, settings: EncodeSettings) -> None:
    """Detect a source that was cut between two packets: ffmpeg reads it without an error."""
    frames = 1 / settings.fps + 1 / (info.fps or settings.fps)
    if made.duration < info.duration * 0.99 - frames - 0.1:
        raise MediaError(
            f"the source ends early: {made.duration:.1f} of its {info.duration:.1f} seconds could be read; "
            "the file is truncated"
        )
