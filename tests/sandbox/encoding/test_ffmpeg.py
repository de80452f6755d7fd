"""Real encodes with the wheel's ffmpeg: the outputs, the refusals, and that nothing is left behind."""

import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
import imageio_ffmpeg
import psutil
import pytest

from convertrilo.sandbox.encoding import ffmpeg, process
from convertrilo.sandbox.encoding.ffmpeg import EncodeSettings, encode
from convertrilo.sandbox.encoding.probe import probe
from convertrilo.sandbox.state.problem import MediaError
from convertrilo.sandbox.state.settings import unsupported

BUNNY = Path(__file__).parents[3] / "examples" / "media" / "big-buck-bunny-5s.mp4"
CODECS = ("h264", "h265", "av1")
CONTAINERS = ("mp4", "mkv", "webm", "mov")
ALLOWED = [(codec, box) for codec in CODECS for box in CONTAINERS if unsupported(codec, box) is None]
SMALL = EncodeSettings("h264", "480p", 25)

# Tests whose rows differ only in their media run on one backend: encoding is expensive, and other tests in this file
# run every kind of encode on both backends.
one_backend = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def make(target: Path, *arguments: str) -> Path:
    """Create a test clip with ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", "-loglevel", "error", *arguments, str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


def picture(size: str = "160x120", seconds: float = 1, fps: int = 25) -> tuple[str, ...]:
    return "-f", "lavfi", "-i", f"testsrc2=size={size}:rate={fps}:duration={seconds}"


def sound(seconds: float = 1) -> tuple[str, ...]:
    return "-f", "lavfi", "-i", f"sine=duration={seconds}"


H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the clips that the tests read, once."""
    folder = tmp_path_factory.mktemp("clips")
    clip = make(folder / "clip.mp4", *picture(), *sound(), *H264, "-c:a", "aac", "-metadata", "title=/home/alice/a.mp4")
    make(folder / "large.mp4", *picture("640x512"), *sound(), *H264, "-c:a", "aac")
    make(folder / "silent.mp4", *picture(), *H264)
    make(folder / "turned.mp4", "-display_rotation", "90", "-i", str(clip), "-c", "copy")
    make(folder / "wide_pixels.mp4", *picture(), "-vf", "setsar=2/1", *H264)
    make(
        folder / "surround.mkv", *picture(), *sound(), *H264, "-af", "aformat=channel_layouts=5.1(side)", "-c:a", "ac3"
    )
    make(folder / "live.mkv", "-i", str(clip), "-c", "copy", "-live", "1")
    make(folder / "late.mkv", "-i", str(clip), "-c", "copy", "-output_ts_offset", "3")
    words = folder / "words.srt"
    words.write_text("1\n00:00:00,500 --> 00:00:20,000\nlonger than the film\n")
    make(folder / "outlasting_words.mkv", "-i", str(clip), "-i", str(words), "-map", "0", "-map", "1", "-c", "copy")
    make(folder / "sound.m4a", "-i", str(clip), "-vn", "-c", "copy")
    make(folder / "picture.png", "-i", str(clip), "-frames:v", "1")
    make(folder / "picture.avif", "-i", str(clip), "-frames:v", "1", "-an", "-c:v", "libaom-av1", "-cpu-used", "8")
    cover = ("-i", str(folder / "sound.m4a"), "-i", str(folder / "picture.png"), "-map", "0", "-map", "1", "-c", "copy")
    make(folder / "cover.m4a", *cover, "-disposition:v", "attached_pic")
    make(folder / "bunny.ts", "-i", str(BUNNY), "-c", "copy")
    make(folder / "bunny.mkv", "-i", str(BUNNY), "-c", "copy")
    make(folder / "bunny.flv", "-i", str(BUNNY), "-c", "copy")
    make(folder / "bunny_index_first.mp4", "-i", str(BUNNY), "-c", "copy", "-movflags", "+faststart")
    make(folder / "bunny_index_last.mp4", "-i", str(BUNNY), "-c", "copy")
    return folder


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    """Check after every test that no ffmpeg process and no working folder is left."""
    yield
    assert psutil.Process().children(recursive=True) == []
    assert not list(tmp_path.rglob("*.encoding"))


def into(seen: list[float]) -> Callable[[float], Awaitable[None]]:
    async def note(percent: float) -> None:
        seen.append(percent)

    return note


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def kind_of(path: Path) -> str:
    head = path.read_bytes()[:64]
    if head[4:8] == b"ftyp":
        return "mov" if head[8:12] == b"qt  " else "mp4"
    return "webm" if b"webm" in head else "mkv"


# Outputs


@one_backend
@pytest.mark.parametrize(("codec", "container"), ALLOWED)
async def test_output_is_what_was_asked(clips: Path, tmp_path: Path, codec: str, container: str) -> None:
    target = tmp_path / "out"
    made = await encode(clips / "large.mp4", target, EncodeSettings(codec, "480p", 15, container))
    assert (made.codec, made.width, made.height, made.fps) == (codec, 600, 480, 15)
    assert made.duration == pytest.approx(1, abs=0.1)
    assert made.audio_codec == ("opus" if container == "webm" else "aac")
    assert kind_of(target) == container
    assert made == await probe(target)
    assert files_in(tmp_path) == [target]
    if container in ("mp4", "mov"):
        data = target.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat"), "plays before it is downloaded whole"
        assert (codec == "h265") == (b"hvc1" in data), "Apple's players look for this tag"


@one_backend
@pytest.mark.parametrize("codec", CODECS)
async def test_two_passes(clips: Path, tmp_path: Path, codec: str) -> None:
    target = tmp_path / "out.mp4"
    seen: list[float] = []
    settings = EncodeSettings(codec, "480p", 25, passes=2, quality="good", bitrate_tier="low")
    made = await encode(clips / "clip.mp4", target, settings, on_progress=into(seen))
    assert (made.codec, made.height, made.audio_codec) == (codec, 120, "aac")
    assert any(45 < percent <= 50 for percent in seen), "the first pass is the first half"
    assert files_in(tmp_path) == [target]


@one_backend
async def test_better_quality_spends_more_bits(tmp_path: Path, clips: Path) -> None:
    sizes = []
    for quality in ("good", "better", "best"):
        settings = attrs.evolve(SMALL, quality=quality, bitrate_tier="high")
        await encode(clips / "silent.mp4", tmp_path / quality, settings)
        sizes.append((tmp_path / quality).stat().st_size)
    assert sizes == sorted(set(sizes))


@one_backend
@pytest.mark.parametrize("passes", [1, 2])
async def test_bitrate_tier_is_a_ceiling(tmp_path: Path, passes: int) -> None:
    noise = make(tmp_path / "noise.mkv", *picture("320x240", 3), "-vf", "noise=all_seed=1:alls=100:allf=t", *H264)
    sizes = []
    for tier in ("low", "medium", "high"):
        settings = attrs.evolve(SMALL, quality="best", bitrate_tier=tier, passes=passes)
        made = await encode(noise, tmp_path / tier, settings)
        sizes.append((tmp_path / tier).stat().st_size)
        # The buffer may add two seconds of bits to the three of the clip.
        ceiling = max(100_000, ffmpeg._CEILING[tier] * 320 * 240 * 25)
        assert sizes[-1] * 8 <= ceiling * (made.duration + 2) * 1.1
    assert sizes == sorted(set(sizes))


async def test_progress_rises_to_100(clips: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    await encode(clips / "clip.mp4", tmp_path / "out.mp4", attrs.evolve(SMALL, passes=2), on_progress=into(seen))
    assert seen == sorted(set(seen))
    assert len(seen) >= 3
    assert seen[0] > 0
    assert seen[-1] == 100
    assert seen.count(100) == 1


@pytest.mark.parametrize(
    ("source", "size", "audio"),
    [
        ("clip.mp4", (160, 120), "aac"),
        ("silent.mp4", (160, 120), None),
        ("turned.mp4", (120, 160), "aac"),
        ("wide_pixels.mp4", (320, 120), None),
        ("surround.mkv", (160, 120), "aac"),
        ("live.mkv", (160, 120), "aac"),
        ("late.mkv", (160, 120), "aac"),
        ("outlasting_words.mkv", (160, 120), "aac"),
    ],
)
async def test_output_looks_like_its_source_and_is_not_upscaled(
    clips: Path, tmp_path: Path, source: str, size: tuple[int, int], audio: str | None
) -> None:
    info = await probe(clips / source)
    made = await encode(clips / source, tmp_path / "out.mp4", attrs.evolve(SMALL, resolution="1080p"), info=info)
    assert (info.width, info.height) == (made.width, made.height) == size
    assert made.audio_codec == audio
    assert info.duration == pytest.approx(1, abs=0.1)
    assert made.duration == pytest.approx(1, abs=0.1)


@one_backend
@pytest.mark.parametrize(("codec", "container"), [("h264", "mov"), ("av1", "webm")])
async def test_surround_sound_fits_every_container(clips: Path, tmp_path: Path, codec: str, container: str) -> None:
    made = await encode(clips / "surround.mkv", tmp_path / "out", EncodeSettings(codec, "480p", 25, container))
    assert made.audio_codec == ("opus" if container == "webm" else "aac")


@one_backend
async def test_output_tells_nothing_of_where_it_was_made(clips: Path, tmp_path: Path) -> None:
    for container in ("mp4", "mkv"):
        for codec in ("h264", "h265"):
            target = tmp_path / f"{codec}.{container}"
            await encode(clips / "clip.mp4", target, EncodeSettings(codec, "480p", 25, container, passes=2))
            data = target.read_bytes()
            for secret in ("alice", str(clips), str(tmp_path), ".encoding"):
                assert secret.encode() not in data


async def test_an_older_output_is_replaced_and_encodes_do_not_mix(clips: Path, tmp_path: Path) -> None:
    targets = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    targets[0].write_text("an older file")
    async with anyio.create_task_group() as group:
        for target in targets:
            group.start_soon(encode, clips / "clip.mp4", target, SMALL)
    assert files_in(tmp_path) == targets
    for target in targets:
        assert (await probe(target)).codec == "h264"


@pytest.mark.parametrize(
    ("source", "resolution", "expected"),
    [
        ((1920, 1080), "720p", (1280, 720)),
        ((1280, 720), "480p", (854, 480)),
        ((1280, 720), "4320p", (1280, 720)),
        ((1080, 1920), "720p", (720, 1280)),
        ((3840, 1608), "1080p", (2580, 1080)),
        ((1920, 804), "1080p", (1920, 804)),
        ((161, 121), "480p", (160, 120)),
        ((163, 123), "480p", (162, 122)),
        ((1000, 1), "480p", (1000, 2)),
    ],
)
def test_resolution_names_the_shorter_side(source: tuple[int, int], resolution: str, expected: tuple[int, int]) -> None:
    assert ffmpeg.output_size(*source, resolution) == expected


# Choice of the encoder


@pytest.mark.parametrize(
    ("codec", "passes", "available", "expected"),
    [
        ("h264", 1, {"libx264", "libx265"}, "libx264"),
        ("h265", 2, {"libx264", "libx265"}, "libx265"),
        ("av1", 1, {"libaom-av1", "libsvtav1"}, "libsvtav1"),
        ("av1", 2, {"libaom-av1", "libsvtav1"}, "libaom-av1"),
        ("av1", 1, {"libaom-av1"}, "libaom-av1"),
    ],
)
def test_encoder_is_the_best_there_is(codec: str, passes: int, available: set[str], expected: str) -> None:
    assert ffmpeg.choose_encoder(codec, passes, available) == expected


@pytest.mark.parametrize(("codec", "passes", "available"), [("av1", 1, {"libx264"}), ("av1", 2, {"libsvtav1"})])
def test_missing_encoder_is_said(codec: str, passes: int, available: set[str]) -> None:
    with pytest.raises(MediaError, match="no encoder for av1"):
        ffmpeg.choose_encoder(codec, passes, available)


async def test_av1_is_encoded_without_svt(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = await ffmpeg.available_encoders()
    assert {"libx264", "libx265", "aac", "libopus"} <= everything
    monkeypatch.setitem(ffmpeg._available, await process.executable(), everything - {"libsvtav1"})
    settings = EncodeSettings("av1", "480p", 25, "mkv")
    assert await ffmpeg.encoder_for(settings) == "libaom-av1"
    made = await encode(clips / "clip.mp4", tmp_path / "out.mkv", settings)
    assert made.codec == "av1"
    assert b"libaom-av1" in (tmp_path / "out.mkv").read_bytes()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("codec", CODECS)
async def test_combination_that_the_container_forbids_is_refused(
    clips: Path, tmp_path: Path, codec: str, container: str
) -> None:
    forbidden = (codec, container) in {("h264", "webm"), ("h265", "webm"), ("av1", "mov")}
    reason = unsupported(codec, container)
    assert (reason is not None) == forbidden
    if reason is not None:
        assert container in reason
        assert codec in reason
        with pytest.raises(MediaError, match="cannot carry"):
            await encode(clips / "clip.mp4", tmp_path / "out", EncodeSettings(codec, "480p", 25, container))


# Refusals


def concat(clips: Path) -> bytes:
    return f"ffconcat version 1.0\nfile {clips / 'clip.mp4'}\n".encode()


def playlist(clips: Path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{clips / 'bunny.ts'}\n#EXT-X-ENDLIST\n".encode()


def manifest(clips: Path) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        f'profiles="urn:mpeg:dash:profile:isoff-main:2011"><BaseURL>{clips}/clip.mp4</BaseURL></MPD>'
    ).encode()


def content_of(name: str, share: float = 1.0) -> Callable[[Path], bytes]:
    def read(clips: Path) -> bytes:
        data = (clips / name).read_bytes()
        return data[: round(len(data) * share)]

    return read


UNREADABLE = [
    pytest.param("in.mp4", lambda _: b"this is not a video\n", "not a video", id="text"),
    pytest.param("in.mp4", lambda _: b"", "empty", id="empty"),
    pytest.param("in.mp4", lambda _: bytes(range(256)) * 100, "not a video", id="no format"),
    pytest.param("in.mp4", content_of("bunny_index_last.mp4", 0.5), "truncated", id="truncated before its index"),
    pytest.param("in.mp4", content_of("clip.mp4", 0.01), "truncated|not a video", id="hardly begun"),
    pytest.param("in.mp4", content_of("sound.m4a"), "no video stream", id="sound alone"),
    pytest.param("in.mp4", content_of("cover.m4a"), "no video stream", id="sound with a cover"),
    pytest.param("in.mp4", content_of("picture.png"), "not a video", id="png"),
    pytest.param("in.mp4", content_of("picture.avif"), "still image", id="avif"),
    pytest.param("in.mp4", concat, "not a video", id="ffconcat"),
    pytest.param("in.ffconcat", concat, "not a video", id="ffconcat by name"),
    pytest.param("in.mp4", playlist, "not a video", id="hls"),
    pytest.param("in.m3u8", playlist, "not a video", id="hls by name"),
    pytest.param("in.mp4", manifest, "not a video", id="dash"),
    pytest.param("in.mpd", manifest, "not a video", id="dash by name"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
async def test_what_is_no_video_is_refused(
    clips: Path, tmp_path: Path, name: str, content: Callable[[Path], bytes], message: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content(clips))
    with pytest.raises(MediaError, match=message) as raised:
        await encode(source, tmp_path / "out.mp4", SMALL)
    assert str(tmp_path) not in str(raised.value)
    assert files_in(tmp_path) == [source]


@pytest.mark.parametrize("name", ["missing.mp4", "."])
async def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="not a file"):
        await probe(tmp_path / name)


async def test_concat_is_refused_even_if_the_caller_vouches_for_it(clips: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    source.write_bytes(concat(clips))
    info = await probe(clips / "clip.mp4")
    with pytest.raises(MediaError, match="could not be encoded"):
        await encode(source, tmp_path / "out.mp4", SMALL, info=info)
    assert files_in(tmp_path) == [source]


def between_packets(clips: Path) -> bytes:
    data = (clips / "bunny.flv").read_bytes()
    end = 13  # the header and the first back pointer; then tags of an 11-byte head, a body, and a back pointer
    while end < len(data) // 2:
        end += 11 + int.from_bytes(data[end + 1 : end + 4]) + 4
    return data[:end]


@one_backend
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content_of("bunny_index_first.mp4", 0.5), id="mp4"),
        pytest.param(content_of("bunny_index_first.mp4", 0.97), id="mp4 near its end"),
        pytest.param(content_of("bunny.mkv", 0.5), id="mkv"),
        pytest.param(content_of("bunny.mkv", 0.97), id="mkv near its end"),
        pytest.param(content_of("bunny.ts", 0.5), id="ts"),
        pytest.param(content_of("bunny.flv", 0.5), id="flv"),
        pytest.param(between_packets, id="flv between two packets"),
    ],
)
async def test_truncated_video_is_not_passed_off_as_whole(
    clips: Path, tmp_path: Path, content: Callable[[Path], bytes]
) -> None:
    source = tmp_path / "in.mp4"
    source.write_bytes(content(clips))
    info = await probe(source)
    with pytest.raises(MediaError, match=r"truncated|corrupt") as raised:
        await encode(source, tmp_path / "out.mp4", attrs.evolve(SMALL, fps=5), info=info)
    assert str(tmp_path) not in str(raised.value)
    assert files_in(tmp_path) == [source]


async def test_name_of_a_file_cannot_pass_for_its_content(clips: Path, tmp_path: Path) -> None:
    source = tmp_path / "a\n[info]   Stream #0:7: Video: h264, 9x9\n  Duration: 09:00:00.00.mp4"
    source.write_bytes((clips / "sound.m4a").read_bytes())
    with pytest.raises(MediaError, match="no video stream"):
        await probe(source)


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (1, "[error] file:/srv/in.mp4: Permission denied\n", "in.mp4: Permission denied"),
        (1, "[mov @ 0x5f] [error] one\n[error] two\n[error] two\n[fatal] three.\n", "two; three"),
        (1, "[error] cause\n[fatal] Conversion failed!\n", "cause"),
        (1, "x265 [error]: too small\nx265 [info]: done\n", "too small"),
        (-11, "", "ffmpeg was ended by signal 11"),
        (8, "Svt[info]: hello\n", "ffmpeg ended with 8"),
    ],
)
def test_failure_says_the_last_errors_without_local_paths(status: int, log: str, expected: str) -> None:
    assert process.Finished(status, log).reason(Path("/srv/in.mp4")) == expected


# Cancellation and cleanup

SLOW = EncodeSettings("h264", "720p", 60, preset="slow", passes=2)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize("moment", ["before it starts", "while ffmpeg starts", "while it encodes", "when it is done"])
async def test_cancelled_encode_leaves_nothing(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source, settings = (clips / "clip.mp4", SMALL) if moment == "when it is done" else (BUNNY, SLOW)
    info = await probe(source)
    await ffmpeg.available_encoders()
    open_process = anyio.open_process
    scope = anyio.CancelScope()
    running: list[int] = []

    async def cancel_and_open(*args: Any, **kwargs: Any) -> anyio.abc.Process:
        scope.cancel()
        process = await open_process(*args, **kwargs)
        running.append(len(children()))
        return process

    async def on_progress(percent: float) -> None:
        if moment == "while it encodes" or percent == 100:
            running.append(len(children()))
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    if moment == "before it starts":
        scope.cancel()
    if moment == "while ffmpeg starts":
        monkeypatch.setattr(anyio, "open_process", cancel_and_open)
    with scope:
        await encode(source, tmp_path / "out.mp4", settings, info=info, on_progress=on_progress)
    assert scope.cancelled_caught
    assert running == {"before it starts": [], "when it is done": [0]}.get(moment, [1])
    assert children() == []
    assert files_in(tmp_path) == []


async def test_error_of_the_progress_callback_ends_the_encode(tmp_path: Path) -> None:
    async def on_progress(percent: float) -> None:
        raise LookupError(percent)

    with pytest.raises(LookupError):
        await encode(BUNNY, tmp_path / "out.mp4", SLOW, on_progress=on_progress)
    assert children() == []
    assert files_in(tmp_path) == []


async def test_ffmpeg_killed_by_the_system_is_a_clear_failure(tmp_path: Path) -> None:
    async def on_progress(percent: float) -> None:
        for child in children():
            child.kill()

    with pytest.raises(MediaError, match="ended by signal 9"):
        await encode(BUNNY, tmp_path / "out.mp4", SLOW, on_progress=on_progress)
    assert files_in(tmp_path) == []


async def test_terminal_interrupt_does_not_reach_ffmpeg(tmp_path: Path) -> None:
    groups: list[int] = []

    async def on_progress(percent: float) -> None:
        groups.extend(os.getpgid(child.pid) for child in children())
        scope.cancel()

    with anyio.CancelScope() as scope:
        await encode(BUNNY, tmp_path / "out.mp4", SLOW, on_progress=on_progress)
    assert groups
    assert os.getpgid(0) not in groups
