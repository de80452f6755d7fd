"""The queue and the encoders: jobs are taken on in order, high priority first, a few at a time."""

import itertools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from convertrilo._clock import Clock
from convertrilo.sandbox.api.tokens import NOMINAL_DURATION
from convertrilo.sandbox.encoding import vmaf
from convertrilo.sandbox.encoding.ffmpeg import EncodeSettings, MediaError, encode, encoder_for, probe
from convertrilo.sandbox.encoding.sample import SAMPLE_MP4
from convertrilo.sandbox.outside.places import Places
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.records import CANCELED, CREATED, INSTANT, RUNNING, SUCCESS, Job
from convertrilo.sandbox.state.store import Store, Tx

Encoder = Literal["ffmpeg", "instant"]

_BATCH = 50
"""How many jobs the instant encoder ends in one transaction: a millisecond or two."""

_log = logging.getLogger("convertrilo.sandbox")


@attrs.define(eq=False)
class _Running:
    scope: anyio.CancelScope
    percent: Callable[[], float]


class Worker:
    """Takes jobs from the queue and encodes them.

    Args:
        encoder: `ffmpeg` really encodes; `instant` answers with a tiny file, whatever was asked for.
        limit: how many encodes run at once.
        seconds: how long an instant encode takes by the sandbox's clock.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        files: Files,
        places: Places,
        *,
        encoder: Encoder,
        limit: int,
        seconds: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._files = files
        self._places = places
        self._encoder: Encoder = encoder
        self._limit = limit
        self._seconds = seconds
        self.busy: int = 0
        """How many things it is doing; an instant encode may be waiting for the clock meanwhile."""
        self._running: dict[str, _Running] = {}
        self._failures: list[str] = []
        self._woken = anyio.Event()
        self._turn = anyio.Event()

    # ---- what others see

    def sample(self) -> Path:
        """Return the file that stands for every output of the instant encoder."""
        path = self._files.folder / "sample.mp4"
        if not path.exists():
            path.write_bytes(SAMPLE_MP4)
        return path

    def percent(self, job_id: str) -> float:
        """Return how far a running job is."""
        running = self._running.get(job_id)
        return round(running.percent(), 1) if running else 0.0

    def fail_next(self, message: str, times: int = 1) -> None:
        """Let the next jobs that are taken on fail with this message."""
        self._failures += [message] * times

    def moved(self, jobs: list[Job]) -> None:
        """Hear about jobs whose status has changed: canceled ones end their encode, the others may wake the queue."""
        for job in jobs:
            if job.status == CREATED:
                continue
            self._woken.set()
            if job.ended:
                running = self._running.get(job.id)
                if running is None:
                    self._drop_source(job)
                elif job.status == CANCELED:
                    running.scope.cancel()

    def _drop_source(self, job: Job) -> None:
        if job.uploaded or self._places.fetches:
            self._files.source(job.id).unlink(missing_ok=True)
        if job.kind == "upload":
            self._files.drop_parts(job.id)

    async def wait_until_idle(self) -> None:
        """Wait until no job is queued or running."""
        while True:
            turn = self._turn
            if not await self._store.transaction(_busy):
                return
            await turn.wait()

    async def measure(self, job: Job) -> float:
        """Return the duration of a job's source in seconds.

        Raises:
            MediaError: it cannot be had, or is no readable video.
        """
        try:
            await self._bring_source(job)
            return await self._measure_file(job)
        finally:
            now = self._store.read(lambda tx: tx.job(job.id))
            if now is not None and now.ended:  # in the meantime: whoever ended it found no source yet
                self._drop_source(now)

    # ---- the queue

    async def run(self) -> None:
        """Work the queue for ever; cancelled, every encode ends and leaves nothing behind."""
        async with anyio.create_task_group() as encodes:
            while True:
                self._woken = anyio.Event()
                with self._counted():
                    while len(self._running) < self._limit:
                        if self._is_immediate() and await self._store.transaction(self._finish_batch):
                            await anyio.lowlevel.checkpoint()
                        elif not await self._take(encodes):
                            break
                self._turn.set()
                self._turn = anyio.Event()
                await self._woken.wait()

    @contextmanager
    def _counted(self) -> Generator[None]:
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def _is_immediate(self) -> bool:
        return self._encoder == "instant" and self._seconds == 0 and not self._places.fetches

    def _finish_batch(self, tx: Tx) -> bool:
        """End queued jobs at once, up to one whose output has a way to go; return whether there were any."""
        jobs = list(itertools.takewhile(lambda job: job.destination is None, _queued(tx, _BATCH)))
        for job in jobs:
            job = lifecycle.start(tx, job, self._encoder)
            try:
                self._check_upload(job)
            except MediaError as error:
                lifecycle.fail(tx, job, str(error))
            else:
                lifecycle.succeed(tx, job, output_size=len(SAMPLE_MP4), duration=job.duration or NOMINAL_DURATION)
        return bool(jobs)

    def _check_upload(self, job: Job) -> None:
        if self._failures:
            raise MediaError(self._failures.pop(0))
        if job.uploaded and self._files.source(job.id).stat().st_size == 0:
            raise MediaError("the source is empty (0 bytes)")

    async def _take(self, encodes: anyio.abc.TaskGroup) -> bool:
        def take(tx: Tx) -> Job | None:
            jobs = _queued(tx, 1)
            encoder = INSTANT if self._encoder == INSTANT else None  # which one of ffmpeg's is known later
            return lifecycle.start(tx, jobs[0], encoder) if jobs else None

        job = await self._store.transaction(take)
        if job is None:
            return False
        self._running[job.id] = _Running(anyio.CancelScope(), partial(self._elapsed, job))
        encodes.start_soon(self._work_on, job)
        return True

    # ---- one job

    async def _work_on(self, job: Job) -> None:
        running = self._running[job.id]
        try:
            with running.scope, self._counted():
                await self._encode(job, running)
            if running.scope.cancelled_caught:
                self._files.output(job.id).unlink(missing_ok=True)  # it may have been there just then
            self._drop_source(job)  # not if the sandbox is ending: the job runs again then
        finally:
            del self._running[job.id]
            self._woken.set()

    async def _encode(self, job: Job, running: _Running) -> None:
        ending: Callable[[Tx, Job], Job]
        try:
            self._check_upload(job)
            await self._bring_source(job)
            if self._encoder == "instant":
                ending = await self._encode_instantly(job)
            else:
                ending = await self._encode_really(job, running)
            if job.destination is not None:
                await self._take_away(job)
        except MediaError as error:
            ending = partial(lifecycle.fail, message=str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the job must end and the queue go on
            _log.exception("job %s failed for a reason of the sandbox's own", job.id)
            ending = partial(lifecycle.fail, message="the sandbox failed; its log says why")

        def end(tx: Tx) -> bool:
            now = tx.job(job.id)
            if now is None or now.status != RUNNING:  # canceled a moment ago
                return False
            ending(tx, now)
            return True

        if not await self._store.transaction(end):
            self._files.output(job.id).unlink(missing_ok=True)

    async def _bring_source(self, job: Job) -> None:
        source = self._files.source(job.id)
        if job.kind != "upload" and self._places.fetches and not source.exists():
            await self._places.fetch(job, source)

    async def _take_away(self, job: Job) -> None:
        output = self.sample() if self._encoder == "instant" else self._files.output(job.id)
        try:
            await self._places.store(job, output)
        except MediaError as error:
            raise MediaError(f"the output could not be written: {error}") from None
        finally:
            self._files.output(job.id).unlink(missing_ok=True)

    async def _measure_file(self, job: Job) -> float:
        if self._encoder == "instant":
            return NOMINAL_DURATION
        return (await probe(self._files.source(job.id))).duration

    def _elapsed(self, job: Job) -> float:
        """Return how much of an instant encode's time has passed, in percent."""
        started = job.started_at or self._clock.time()
        return min(100.0, 100 * (self._clock.time() - started) / self._seconds) if self._seconds else 0.0

    async def _encode_instantly(self, job: Job) -> Callable[[Tx, Job], Job]:
        if self._seconds:
            started = job.started_at or self._clock.time()
            await self._clock.sleep(started + self._seconds - self._clock.time())
        return partial(lifecycle.succeed, output_size=len(SAMPLE_MP4), duration=job.duration or NOMINAL_DURATION)

    async def _encode_really(self, job: Job, running: _Running) -> Callable[[Tx, Job], Job]:
        wanted = job.settings
        settings = EncodeSettings(
            codec=wanted["codec"],
            resolution=wanted["resolution"],
            fps=wanted["fps"],
            container=wanted["container"],
            preset=wanted["preset"],
            bitrate_tier=wanted["bitrateTier"],
            quality=wanted["quality"],
            passes=1 if wanted["optimize"] == "vmaf" else wanted["passes"],
        )
        encoder = await encoder_for(settings)
        await self._store.transaction(lambda tx: tx.run("UPDATE jobs SET encoder = ? WHERE id = ?", encoder, job.id))

        async def on_progress(percent: float) -> None:
            running.percent = lambda: percent

        target = self._files.output(job.id)
        target.parent.mkdir(parents=True, exist_ok=True)
        info = await probe(self._files.source(job.id))
        if wanted["optimize"] == "vmaf":
            score = wanted["vmafTarget"] or vmaf.TARGETS[wanted["quality"] or "better"]
            source = self._files.source(job.id)
            await vmaf.encode_to_score(source, target, settings, score, info=info, on_progress=on_progress)
        else:
            await encode(self._files.source(job.id), target, settings, info=info, on_progress=on_progress)
        return partial(lifecycle.succeed, output_size=target.stat().st_size, duration=info.duration)


def _queued(tx: Tx, limit: int) -> list[Job]:
    return tx.jobs("WHERE status = 'queued' ORDER BY high_priority DESC, queued_at, n LIMIT ?", limit)


def _busy(tx: Tx) -> bool:
    return tx.row("SELECT 1 FROM jobs WHERE status IN ('queued', 'running') LIMIT 1") is not None


def sweep(tx: Tx, files: Files) -> None:
    """Remove what a crash may have left: sources and parts of jobs that have ended, outputs of jobs that have none."""
    for path in files.sources():
        job = tx.job(path.name)
        if job is None or job.ended:
            path.unlink()
    for job_id in files.parted():
        job = tx.job(job_id)
        if job is None or job.ended:
            files.drop_parts(job_id)
    for path in files.outputs():
        job = tx.job(path.name)
        if job is None or job.status != SUCCESS or job.destination is not None:
            path.unlink()


def requeue(tx: Tx) -> None:
    """Queue the jobs again that were running when the sandbox was last ended."""
    tx.run("UPDATE jobs SET status = 'queued', started_at = NULL, encoder = NULL WHERE status = 'running'")
