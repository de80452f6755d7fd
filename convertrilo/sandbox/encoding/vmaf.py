"""Encode to a VMAF score: search the rate factor on short sections of the source, then encode and measure all of it.

The score measures the loss from encoding, not from scaling: the reference is the source at the output's size and frame
rate. Frames are paired by number. Timestamps would pair them wrongly, because mkv and webm round them to milliseconds,
and cost 20 points.
"""

import math
import re
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import attrs

from convertrilo.sandbox.encoding.ffmpeg import (
    EncodeSettings,
    RateFactors,
    encode,
    picture_filters,
    rate_factors,
    threads,
)
from convertrilo.sandbox.encoding.probe import MediaInfo, probe
from convertrilo.sandbox.encoding.process import Finished, input_arguments, run
from convertrilo.sandbox.state.problem import MediaError

TARGETS: Mapping[str, float] = {"good": 85.0, "better": 92.0, "best": 96.0}
"""The target score of each quality, for jobs without `vmafTarget`."""

_SECTIONS = 4
_SECTION_SECONDS = 2.0
_TRIALS = 6
_FULL_ENCODES = 3
_CLOSE = 0.7
"""The distance to the target, in points, at which a trial ends the search."""
_CLOSE_ENOUGH = 1.0
"""The distance to the target, in points, at which a full encode is accepted."""
_FRAMES_MEASURED = 3_000
_SHARE_OF_TRIALS = 0.3

_SCORE = re.compile(r"VMAF score: ([\d.]+)")


async def encode_to_score(
    source: Path,
    target: Path,
    settings: EncodeSettings,
    score: float,
    *,
    info: MediaInfo,
    on_progress: Callable[[float], Awaitable[object]],
) -> float:
    """Encode `source` into `target` at the highest rate factor that comes near a VMAF score.

    The output appears only when complete. The tier's ceiling and a second pass do not apply: the score determines
    the bitrate.

    Args:
        source: a local media file.
        target: the path of the output; an existing file is replaced.
        settings: the encode settings.
        score: the target score, 0 to 100.
        info: the result of `probe` for the source.
        on_progress: awaited with rising percentages, up to 100.

    Returns:
        The score of the output: within 2 points of the target, unless no rate factor reaches the target.

    Raises:
        MediaError: the settings are not allowed together, the source is not a readable video or is truncated, or
            encoding fails.
    """
    settings = attrs.evolve(settings, passes=1)
    factors = await rate_factors(settings)
    progress = _RisingProgress(on_progress)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=".", suffix=".encoding", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        trials = await _search(source, folder, settings, factors, score, info, progress)
        factor, full_scores, best = _nearest(trials, score), dict[float, float](), folder / "best"
        for number in range(_FULL_ENCODES):
            output = folder / "whole"
            before = _SHARE_OF_TRIALS + (1 - _SHARE_OF_TRIALS) * number / _FULL_ENCODES
            await encode(source, output, settings, info=info, factor=factor, on_progress=progress.part(before, 0.9))
            full_scores[factor] = await measure(source, output, settings, info)
            if _nearest(full_scores, score) == factor:
                output.replace(best)
            if abs(full_scores[factor] - score) <= _CLOSE_ENOUGH:
                break
            # The sections were easier or harder than the whole source. Assume the same offset for every rate factor.
            offset = full_scores[factor] - trials.get(factor, full_scores[factor])
            known = {each: found + offset for each, found in trials.items()} | full_scores
            following = propose(known, score, factors)
            factor = _nearest(known, score) if following is None else following
            if factor in full_scores:
                break
        await progress.report(100.0)
        best.replace(target)  # no await after this line: a cancellation finds the target complete or absent
    return full_scores[_nearest(full_scores, score)]


async def _search(
    source: Path,
    folder: Path,
    settings: EncodeSettings,
    factors: RateFactors,
    score: float,
    info: MediaInfo,
    progress: "_RisingProgress",
) -> dict[float, float]:
    """Return the scores of a few rate factors, measured on sections of the source."""
    sections, trial = folder / "sections.mkv", folder / "trial"
    await _cut(source, sections, settings, info)
    part = await probe(sections)
    trials: dict[float, float] = {}
    while len(trials) < _TRIALS and (factor := propose(trials, score, factors)) is not None:
        await encode(sections, trial, settings, info=part, factor=factor)
        trials[factor] = await measure(sections, trial, settings, part)
        await progress.report(100 * _SHARE_OF_TRIALS * len(trials) / _TRIALS)
    return trials


async def _cut(source: Path, sections: Path, settings: EncodeSettings, info: MediaInfo) -> None:
    """Write a few sections of the source to one file, scaled and lossless, as the reference of the trials."""
    count, seconds = _SECTIONS, _SECTION_SECONDS
    if info.duration <= 1.5 * count * seconds:
        count, seconds = 1, info.duration + 1
    starts = [info.duration * (index + 0.5) / count - seconds / 2 if count > 1 else 0.0 for index in range(count)]
    inputs = [
        part for start in starts for part in ("-ss", f"{start:.3f}", "-t", f"{seconds:.3f}", *input_arguments(source))
    ]
    filters = picture_filters(settings, info)
    graph = "".join(f"[{index}:V:0]{filters}[s{index}];" for index in range(count))
    graph += "".join(f"[s{index}]" for index in range(count)) + f"concat=n={count}:v=1:a=0[all]"
    finished = await run(
        *("-y", "-loglevel", "level+error", "-filter_complex_threads", threads(), *inputs),
        *("-filter_complex", graph, "-map", "[all]", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "0"),
        *("-threads", threads(), "-f", "matroska", sections.name),
        cwd=sections.parent,
    )
    _check(finished, "the source could not be read", source, sections)


async def measure(reference: Path, distorted: Path, settings: EncodeSettings, info: MediaInfo) -> float:
    """Return the VMAF score of an output, 0 to 100.

    Args:
        reference: the source of the output.
        distorted: the output.
        settings: the settings of the encode.
        info: the result of `probe` for the reference.

    Raises:
        MediaError: the output cannot be measured.
    """
    numbered = f"settb=1/{settings.fps},setpts=N"
    every = max(1, math.ceil(info.duration * settings.fps / _FRAMES_MEASURED))
    graph = (
        f"[0:V:0]{picture_filters(settings, info)},{numbered}[reference];[1:V:0]format=yuv420p,{numbered}[distorted];"
        f"[distorted][reference]libvmaf=shortest=1:n_threads={threads()}:n_subsample={every}"
    )
    finished = await run(
        *("-loglevel", "level+info", "-nostats", "-filter_complex_threads", threads()),
        *(*input_arguments(reference), *input_arguments(distorted), "-filter_complex", graph, "-an", "-f", "null", "-"),
        cwd=distorted.parent,
    )
    _check(finished, "the output could not be measured", reference, distorted)
    found = _SCORE.search(finished.log)
    if found is None:
        raise MediaError("the output could not be measured: it has no frame in common with the source")
    return float(found[1])


def _check(finished: Finished, what: str, source: Path, output: Path) -> None:
    if finished.status != 0:
        raise MediaError(f"{what}: {finished.reason(source.absolute(), output.parent)}")


def propose(scores: Mapping[float, float], target: float, factors: RateFactors) -> float | None:
    """Return the rate factor to try next, or None if no other is likely to come nearer to the target.

    Args:
        scores: the known scores by rate factor; they fall as the rate factor rises.
        target: the target score.
        factors: the range of rate factors.
    """
    if not scores:
        return factors.first
    if abs(scores[_nearest(scores, target)] - target) <= _CLOSE:
        return None
    above = max((each for each, score in scores.items() if score >= target), default=None)
    below = min((each for each, score in scores.items() if score < target), default=None)
    if above is not None and below is not None:
        fall = scores[above] - scores[below]
        guess = above + (below - above) * ((scores[above] - target) / fall if fall > 0 else 0.5)
        low, high = above + factors.step, below - factors.step
        if low > high + factors.step / 2:
            return None
    else:
        known = below if above is None else above
        assert known is not None
        guess = known + (scores[known] - target) / factors.slope
        low, high = (factors.low, known - factors.step) if above is None else (known + factors.step, factors.high)
        if low > high:
            return None
    guess = factors.step * round(min(max(guess, low), high) / factors.step)
    return None if guess in scores else round(guess, 3)


def _nearest(scores: Mapping[float, float], target: float) -> float:
    return min(scores, key=lambda factor: (abs(scores[factor] - target), -factor))


@attrs.define
class _RisingProgress:
    """Reports percentages that only rise."""

    on_progress: Callable[[float], Awaitable[object]]
    reported: float = 0.0

    async def report(self, percent: float) -> None:
        if percent > self.reported:
            self.reported = percent
            await self.on_progress(percent)

    def part(self, begin: float, end: float) -> Callable[[float], Awaitable[None]]:
        """Return a function that reports the progress of one part; `begin` and `end` are shares of the whole."""

        async def report(percent: float) -> None:
            await self.report(100 * begin + percent * (end - begin))

        return report
