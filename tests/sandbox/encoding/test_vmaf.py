"""Encodes with a target VMAF score: they reach the score, and VMAF itself confirms it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import anyio
import imageio_ffmpeg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_help import client_of

from convertrilo.sandbox import Sandbox
from convertrilo.sandbox.encoding import ffmpeg, vmaf
from convertrilo.sandbox.encoding.ffmpeg import EncodeSettings, RateFactors, encode
from convertrilo.sandbox.encoding.probe import probe

one_backend = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # the search is expensive
FPS = 10
SETTINGS = EncodeSettings("h264", "480p", FPS)


def run_ffmpeg(*arguments: str) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True).stderr


@pytest.fixture(scope="session")
def small(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small clip of one second, of Big Buck Bunny."""
    file = tmp_path_factory.mktemp("vmaf") / "small.mp4"
    crop = ("-vf", f"scale=320:180,fps={FPS}", "-c:v", "libx264", "-crf", "12", "-preset", "veryfast", "-an")
    run_ffmpeg("-i", str(clip), "-t", "1.2", *crop, str(file))
    return file


def score_of(reference: Path, output: Path) -> float:
    """Measure with raw frames, which have no misleading timestamps."""
    raw = [path.with_suffix(f"{path.suffix}.y4m") for path in (reference, output)]
    for path, frames in zip((reference, output), raw, strict=True):
        run_ffmpeg("-i", str(path), "-vf", f"settb=1/{FPS},setpts=N", "-r", str(FPS), str(frames))
    found = re.search(
        r"VMAF score: ([\d.]+)",
        run_ffmpeg("-i", str(raw[1]), "-i", str(raw[0]), "-lavfi", "libvmaf", "-f", "null", "-"),
    )
    assert found is not None
    return float(found[1])


async def nothing(_percent: float) -> None:
    pass


@one_backend
@pytest.mark.parametrize(
    ("codec", "container", "target"),
    [("h264", "mp4", 92), ("h264", "mkv", 70), ("h265", "mov", 85), ("av1", "webm", 90)],
)
async def test_the_output_has_the_score_that_was_asked_for(
    small: Path, tmp_path: Path, codec: str, container: str, target: float
) -> None:
    seen: list[float] = []

    async def note(percent: float) -> None:
        seen.append(percent)

    output, settings = tmp_path / "output", EncodeSettings(codec, "480p", FPS, container, passes=2)
    info = await probe(small)
    said = await vmaf.encode_to_score(small, output, settings, target, info=info, on_progress=note)
    assert said == pytest.approx(target, abs=2)
    assert score_of(small, output) == pytest.approx(said, abs=0.5)
    assert (await probe(output)).codec == codec
    assert seen == sorted(set(seen))
    assert seen[-1] == 100
    assert [path async for path in anyio.Path(tmp_path).glob(".*")] == []


@one_backend
@pytest.mark.parametrize(("codec", "containers"), [("h264", ["mp4", "mkv", "mov"]), ("av1", ["mp4", "mkv", "webm"])])
async def test_the_container_does_not_change_the_score(
    small: Path, tmp_path: Path, codec: str, containers: list[str]
) -> None:
    info = await probe(small)
    scores: list[float] = []
    for container in containers:
        # The interval of 24 frames per second is not a whole number of milliseconds.
        settings = EncodeSettings(codec, "480p", 24, container)
        await encode(small, tmp_path / "output", settings, info=info, factor=40)
        scores.append(await vmaf.measure(small, tmp_path / "output", settings, info))
    assert max(scores) - min(scores) < 0.01, scores
    assert scores[0] < 97


@one_backend
async def test_a_long_source_is_judged_by_sections_and_held_to_the_whole(clip: Path, tmp_path: Path) -> None:
    """A clip whose second half is hard to encode, so that no section represents all of it."""
    long = tmp_path / "long.mp4"
    hard = "[0:V:0]scale=160:90,fps=10[a];testsrc2=size=160x90:rate=10:duration=8[b];[a][b]concat=n=2:v=1[v]"
    run_ffmpeg("-i", str(clip), "-filter_complex", hard, "-map", "[v]", "-c:v", "libx264", "-qp", "0", str(long))
    info = await probe(long)
    assert info.duration > 12
    said = await vmaf.encode_to_score(long, tmp_path / "output", SETTINGS, 88, info=info, on_progress=nothing)
    assert said == pytest.approx(88, abs=2)
    assert score_of(long, tmp_path / "output") == pytest.approx(said, abs=0.5)


@one_backend
@pytest.mark.parametrize(("target", "picture"), [(60, "color=c=gray:"), (100, "testsrc2=")])
async def test_a_score_that_cannot_be_is_come_near_to_in_few_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: float, picture: str
) -> None:
    source = tmp_path / "source.mp4"
    run_ffmpeg("-f", "lavfi", "-i", f"{picture}size=160x90:rate=5:duration=0.6", str(source))
    encodes: list[Path] = []

    async def counted(*arguments: Any, **named: Any) -> Any:
        encodes.append(arguments[1])
        return await encode(*arguments, **named)

    monkeypatch.setattr(vmaf, "encode", counted)
    settings, info = EncodeSettings("h264", "480p", 5), await probe(source)
    said = await vmaf.encode_to_score(source, tmp_path / "out", settings, target, info=info, on_progress=nothing)
    assert said >= 90
    assert len(encodes) <= vmaf._TRIALS + vmaf._FULL_ENCODES


@one_backend
async def test_a_job_is_encoded_to_its_score(small: Path, tmp_path: Path) -> None:
    async with (
        Sandbox(encoder="ffmpeg") as sandbox,
        client_of(sandbox) as http,
        client_of(sandbox, accept="*/*") as bare,
    ):
        body = {"codec": "h264", "resolution": "480p", "fps": FPS, "optimize": "vmaf", "vmafTarget": 80}
        created = (await http.post("/jobs", json=body)).json()
        await bare.put(created["upload"]["url"], content=await anyio.Path(small).read_bytes())
        await http.post(f"/jobs/{created['jobId']}/confirm")
        await sandbox.wait_until_idle()
        status = (await http.get(f"/jobs/{created['jobId']}/status")).json()
        assert status["status"] == "success", status
        output = tmp_path / "output.mp4"
        await anyio.Path(output).write_bytes((await bare.get(status["downloadUrl"])).content)
    assert score_of(small, output) == pytest.approx(80, abs=2)


# ---- the search itself


@given(
    st.floats(40, 100),
    st.floats(0.05, 6),
    st.floats(0.5, 4),
    st.sampled_from([RateFactors(23, 1, 51, 0.5, 1.5), RateFactors(34, 1, 63, 1, 1.2)]),
)
def test_the_search_stays_within_bounds_repeats_nothing_and_ends_near(
    target: float, steepness: float, bend: float, factors: RateFactors
) -> None:
    def score(factor: float) -> float:
        return float(max(0.0, 100 - steepness * (factor / 10) ** bend * 4))

    scores: dict[float, float] = {}
    while (factor := vmaf.propose(scores, target, factors)) is not None:
        assert factors.low <= factor <= factors.high
        assert factor not in scores
        scores[factor] = score(factor)
        assert len(scores) < 60
    best = min(abs(found - target) for found in scores.values())
    every = [
        score(factors.low + n * factors.step) for n in range(round((factors.high - factors.low) / factors.step) + 1)
    ]
    assert best <= max(vmaf._CLOSE, min(abs(each - target) for each in every) + 1e-9)


def test_the_search_begins_with_what_the_quality_says() -> None:
    assert vmaf.propose({}, 90, RateFactors(23, 1, 51, 0.5, 1.5)) == 23


async def test_each_quality_begins_elsewhere() -> None:
    first = [
        (await ffmpeg.rate_factors(EncodeSettings("h264", "480p", 10, quality=quality))).first
        for quality in ("good", "better", "best")
    ]
    assert first == sorted(first, reverse=True)
