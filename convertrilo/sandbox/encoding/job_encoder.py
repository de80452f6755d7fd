"""The encode of one job: fetch its source, encode it, and deliver its output."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Literal

from convertrilo._clock import Clock
from convertrilo.sandbox.encoding import vmaf
from convertrilo.sandbox.encoding.ffmpeg import EncodeSettings, encode, encoder_for
from convertrilo.sandbox.encoding.probe import probe
from convertrilo.sandbox.encoding.sample import SAMPLE_MP4
from convertrilo.sandbox.outside.places import Places
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.books import NOMINAL_DURATION
from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.problem import MediaError
from convertrilo.sandbox.state.records import INSTANT, Job
from convertrilo.sandbox.state.store import Store, Tx

Encoder = Literal["ffmpeg", "instant"]

Ending = Callable[[Tx, Job], Job]
"""Writes the end of a job in a transaction: `lifecycle.succeed` or `lifecycle.fail` with its arguments."""


class JobEncoder:
    """Encodes jobs, one per call, and manages their files.

    Args:
        store: stores the name of the encoder that a job uses.
        clock: the time that instant encodes take.
        files: the local sources and outputs.
        places: fetches sources and delivers outputs.
        encoder: `ffmpeg` really encodes; `instant` produces the same tiny file for every job.
        seconds: how long an instant encode takes by the clock.
    """

    def __init__(
        self, store: Store, clock: Clock, files: Files, places: Places, *, encoder: Encoder, seconds: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._files = files
        self._places = places
        self._is_instant = encoder == INSTANT
        self._seconds = seconds
        self._failures: list[str] = []

    @property
    def name(self) -> str | None:
        """The encoder's name at the start of a job; None if the encoder is chosen during the encode."""
        return INSTANT if self._is_instant else None

    @property
    def is_immediate(self) -> bool:
        """Whether an encode takes no time; delivering its output to a destination does."""
        return self._is_instant and self._seconds == 0 and not self._places.fetches

    def fail_next(self, message: str, times: int = 1) -> None:
        """Make the next encodes fail with this message."""
        self._failures += [message] * times

    def elapsed(self, job: Job) -> float:
        """Return how much of an instant encode's time has passed, in percent."""
        started = job.started_at or self._clock.time()
        return min(100.0, 100 * (self._clock.time() - started) / self._seconds) if self._seconds else 0.0

    # ---- files

    def sample(self) -> Path:
        """Return the path of the instant encoder's output."""
        path = self._files.folder / "sample.mp4"
        if not path.exists():
            path.write_bytes(SAMPLE_MP4)
        return path

    def drop_source(self, job: Job) -> None:
        """Remove the source of a job that has ended."""
        if job.uploaded or self._places.fetches:
            self._files.source(job.id).unlink(missing_ok=True)
        if job.kind == "upload":
            self._files.drop_parts(job.id)

    def drop_output(self, job: Job) -> None:
        """Remove the local output of a job."""
        self._files.output(job.id).unlink(missing_ok=True)

    async def _fetch_source(self, job: Job) -> None:
        source = self._files.source(job.id)
        if job.kind != "upload" and self._places.fetches and not source.exists():
            await self._places.fetch(job, source)

    async def _deliver_output(self, job: Job) -> None:
        output = self.sample() if self._is_instant else self._files.output(job.id)
        try:
            await self._places.store(job, output)
        except MediaError as error:
            raise MediaError(f"the output could not be written: {error}") from None
        finally:
            self.drop_output(job)

    # ---- measuring and encoding

    async def measure(self, job: Job) -> float:
        """Return the duration of a job's source in seconds.

        Raises:
            MediaError: the source cannot be fetched, or is not a readable video.
        """
        try:
            await self._fetch_source(job)
            return NOMINAL_DURATION if self._is_instant else (await probe(self._files.source(job.id))).duration
        finally:
            now = self._store.read(lambda tx: tx.job(job.id))
            if now is not None and now.ended:  # the job ended before its source arrived, so the source was not dropped
                self.drop_source(now)

    async def encode(self, job: Job, on_progress: Callable[[float], Awaitable[None]]) -> Ending:
        """Encode a job that is running, and deliver its output.

        Args:
            job: the job.
            on_progress: awaited with rising percentages.

        Raises:
            MediaError: the job failed.
        """
        self._check_source(job)
        await self._fetch_source(job)
        if self._is_instant:
            await self._wait_instant(job)
            ending = _instant_ending(job)
        else:
            ending = await self._encode_with_ffmpeg(job, on_progress)
        if job.destination is not None:
            await self._deliver_output(job)
        return ending

    def encode_immediately(self, job: Job) -> Ending:
        """Encode a job without waiting; `is_immediate` must hold, and the job must have no destination.

        Raises:
            MediaError: the job failed.
        """
        self._check_source(job)
        return _instant_ending(job)

    def _check_source(self, job: Job) -> None:
        if self._failures:
            raise MediaError(self._failures.pop(0))
        if job.uploaded and self._files.source(job.id).stat().st_size == 0:
            raise MediaError("the source is empty (0 bytes)")

    async def _wait_instant(self, job: Job) -> None:
        if self._seconds:
            started = job.started_at or self._clock.time()
            await self._clock.sleep(started + self._seconds - self._clock.time())

    async def _encode_with_ffmpeg(self, job: Job, on_progress: Callable[[float], Awaitable[None]]) -> Ending:
        wire = job.settings
        settings = EncodeSettings(
            codec=wire["codec"],
            resolution=wire["resolution"],
            fps=wire["fps"],
            container=wire["container"],
            preset=wire["preset"],
            bitrate_tier=wire["bitrateTier"],
            quality=wire["quality"],
            passes=1 if wire["optimize"] == "vmaf" else wire["passes"],
        )
        encoder = await encoder_for(settings)
        await self._store.transaction(lambda tx: tx.run("UPDATE jobs SET encoder = ? WHERE id = ?", encoder, job.id))
        source, target = self._files.source(job.id), self._files.output(job.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        info = await probe(source)
        if wire["optimize"] == "vmaf":
            score = wire["vmafTarget"] or vmaf.TARGETS[wire["quality"] or "better"]
            await vmaf.encode_to_score(source, target, settings, score, info=info, on_progress=on_progress)
        else:
            await encode(source, target, settings, info=info, on_progress=on_progress)
        return partial(lifecycle.succeed, output_size=target.stat().st_size, duration=info.duration)


def _instant_ending(job: Job) -> Ending:
    return partial(lifecycle.succeed, output_size=len(SAMPLE_MP4), duration=job.duration or NOMINAL_DURATION)
