"""The work of `convertrilo encode`: check the options, encode, and print the result."""

import importlib.util
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import attrs
import click

from convertrilo._output_file import part_path
from convertrilo.cli.failures import JOB_FAILED, NO_ANSWER, UNCLEAR, exit_code
from convertrilo.cli.files import check_readable, check_writable
from convertrilo.cli.job_wait import JobWait
from convertrilo.cli.options import parse_metadata
from convertrilo.cli.output import Output, print_line, size_text, wire_of
from convertrilo.cli.progress import ShowProgress, show_progress
from convertrilo.cli.service import ServiceTarget
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request, wire_name
from convertrilo.errors import ConvertriloError
from convertrilo.models import (
    Container,
    JobCreateRequest,
    JobCreateResponse,
    OnDemandEncodeRequest,
    OnDemandEncodeResponse,
)
from convertrilo.transfers import Progress, Stage

_CONTAINERS: tuple[str, ...] = get_args(Container)

_FOR_BOTH = ("codec", "resolution", "fps", "preset", "bitrate_tier", "quality", "external_id")
"""Options that both `createJob` and `onDemandEncode` take."""
_FOR_JOBS = ("passes", "optimize", "vmaf_target")
"""Options that only `createJob` takes."""
_FOR_ON_DEMAND = ("priority", "webhook", "output_expiry")
"""Options that only `onDemandEncode` takes."""


@attrs.define(kw_only=True)
class EncodeCommand:
    """One run of `convertrilo encode`."""

    source: str
    path: Path | None
    """The output file; `None` leaves the output with the service."""
    request: JobCreateRequest | OnDemandEncodeRequest
    key: str | None
    """The idempotency key; `None` if the external id names the job."""
    waits: bool
    waiting: JobWait
    output: Output
    service: ServiceTarget
    job_id: str | None = None
    """The job's id, once the job exists."""
    stage: Stage = "upload"

    @classmethod
    def from_options(cls, source: str, options: dict[str, Any]) -> "EncodeCommand":
        """Check the options before anything is sent, and return the command to run.

        Raises:
            click.UsageError: An option or a file is wrong.
            ValidationError: The contract does not allow a value.
        """
        is_url = "://" in source
        path: Path | None = options["path"]
        key: str | None = options["idempotency_key"]
        container = _container(path, options["container"])
        if is_url:
            _check_url(source)
        else:
            name = Path(source)
            path = path or Path(f"{name.stem or 'output'}.{options['codec']}.{container}")
            _check_file(source, path)
        if key is None and not options["external_id"]:  # an empty id names no job
            key = f"cli-{uuid.uuid4().hex}"  # created here, so that an interrupted run can be resumed
        if path is not None:
            check_writable(path)
        return cls(
            source=source,
            path=path,
            request=_request(source, container, options, is_url=is_url),
            key=key,
            **{name: options[name] for name in ("waits", "waiting", "output", "service")},
        )

    def run(self) -> None:
        """Encode, show the progress, and print the result."""
        result = self.service.run(self._work, how_to_resume=self._how_to_resume)
        try:
            self.output.show(result, _print_result if self.path is not None else None, quiet=self.waiting.quiet)
        except OSError as error:  # stdout cannot be written, for example because the disk is full
            error.add_note(
                f"job {self.job_id} was created: convertrilo status {self.job_id}{self.service.suffix} shows it"
            )
            raise

    async def _work(self, client: AsyncClient) -> dict[str, Any]:
        try:
            return await (self._encode_url if "://" in self.source else self._encode_file)(client)
        except ConvertriloError as error:
            code = exit_code(error)
            if code != JOB_FAILED and (self.job_id is not None or code in (NO_ANSWER, UNCLEAR)):
                error.add_note(self._how_to_resume())
            raise

    # ---- a file

    async def _encode_file(self, client: AsyncClient) -> dict[str, Any]:
        assert self.path is not None
        assert isinstance(self.request, JobCreateRequest)
        started = time.monotonic()
        with show_progress(quiet=self.waiting.quiet) as on_progress:
            async with self.waiting.polling(client, lambda: self.job_id):
                done = await client.encode_file(
                    self.source,
                    self.request,
                    self.path,
                    timeout=self.waiting.timeout,
                    on_progress=self._tracking(on_progress),
                    idempotency_key=self.key,
                )
        return await self._result(done.download_url, done.status, started)

    # ---- a URL

    async def _encode_url(self, client: AsyncClient) -> dict[str, Any]:
        started = time.monotonic()
        job: JobCreateResponse | OnDemandEncodeResponse
        if isinstance(self.request, JobCreateRequest):
            job = await client.create_job(self.request, idempotency_key=self.key)
        else:
            job = await client.on_demand_encode(self.request, idempotency_key=self.key)
        self.job_id = job.job_id
        if not self.waits and self.path is None:
            return wire_of(job)
        with show_progress(quiet=self.waiting.quiet) as on_progress:
            done = await self.waiting.wait(client, self.job_id, on_progress)
            if self.path is None:
                return wire_of(done)
            await client.download(done, self.path, on_progress=on_progress)
        return await self._result(done.download_url, done.status, started)

    # ---- files and URLs

    def _tracking(self, on_progress: ShowProgress) -> ShowProgress:
        """Return a callback that also records the job's id and stage, for `_how_to_resume`."""

        def track(at: Progress) -> None:
            self.job_id, self.stage = at.job_id or self.job_id, at.stage
            on_progress(at)

        return track

    async def _result(self, url: str | None, status: str | None, started: float) -> dict[str, Any]:
        assert self.path is not None
        return {
            "jobId": self.job_id,
            "status": status,
            "downloadUrl": url,
            "output": str(self.path),
            "size": self.path.stat().st_size,
            "tookSec": round(time.monotonic() - started, 3),
            **await _probed(self.path),
        }

    def _how_to_resume(self) -> str:
        """Return what state an unfinished run is in, and how to resume it."""
        suffix = self.service.suffix
        if self.job_id is None:
            if self.key is None:
                return ""
            return (
                f"no job is known to exist; repeat the command with --idempotency-key {self.key} to create at most one"
            )
        if "://" not in self.source:
            key = "" if self.key is None else f" with --idempotency-key {self.key}"
            how = f"repeat the command{key}"
        elif self.path is None:
            how = f"run convertrilo wait {self.job_id}{suffix}"
        else:
            how = f"run convertrilo download {self.job_id} --wait -o {self.path}{suffix}"
        kept = f"job {self.job_id} is kept: {how} to continue"
        if self.stage != "upload" and isinstance(self.request, JobCreateRequest):
            return kept  # a running job can be canceled only if it is on-demand
        return f"{kept}, or convertrilo cancel {self.job_id}{suffix} to give it up"


def _request(
    source: str, container: str, options: dict[str, Any], *, is_url: bool
) -> JobCreateRequest | OnDemandEncodeRequest:
    """Choose the operation that takes these options, and return its body."""
    jobs = [name for name in _FOR_JOBS if options[name] is not None]
    s3: dict[str, Any] = options["output_s3"]
    on_demand = [name for name in _FOR_ON_DEMAND if options[name] is not None] + (["output-s3-…"] if s3 else [])
    wire = {wire_name(name): options[name] for name in _FOR_BOTH}
    wire |= {"container": container, "metadata": parse_metadata(options["metadata"])}
    if not is_url:
        if on_demand:
            raise click.UsageError(f"{_flags(on_demand)}: only for URLs, not for files")
        name = os.fsencode(Path(source).name).decode(errors="replace")  # file names need not be valid Unicode, JSON is
        wire |= {"originalFilename": name, **{wire_name(name): options[name] for name in _FOR_JOBS}}
        return from_request(JobCreateRequest, wire)
    wire["sourceUrl"] = source
    if jobs and on_demand:
        raise click.UsageError(f"{_flags(jobs)} cannot be given together with {_flags(on_demand)}")
    if jobs:
        wire |= {"confirm": True, **{wire_name(name): options[name] for name in jobs}}
        return from_request(JobCreateRequest, wire)
    if s3 and options["path"] is not None:
        raise click.UsageError("--output and --output-s3-… exclude each other: the output has one destination")
    wire |= {wire_name(name): options[name] for name in _FOR_ON_DEMAND}
    wire["outputS3"] = s3 or None
    return from_request(OnDemandEncodeRequest, wire)


def _flags(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _container(path: Path | None, given: str | None) -> str:
    suffix = "" if path is None else path.suffix[1:].lower()
    if suffix in _CONTAINERS:
        if given is not None and given != suffix:
            raise click.UsageError(f"{path} ends in .{suffix}, but --container is {given}")
        return suffix
    return given or "mp4"


def _check_url(source: str) -> None:
    if not source.startswith(("http://", "https://")):
        raise click.UsageError("only http and https URLs can be encoded")


def _check_file(source: str, path: Path) -> None:
    check_readable(source)
    for written in (path, part_path(path)):
        if written.exists() and written.samefile(source):
            raise click.UsageError(f"{written} is the source itself")


async def _probed(path: Path) -> dict[str, Any]:
    """Return what ffmpeg finds in the output, or nothing if there is no ffmpeg."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return {}
    from convertrilo.sandbox.encoding.probe import probe
    from convertrilo.sandbox.state.problem import MediaError

    try:
        info = await probe(path)
    except MediaError:
        return {}
    return {"codec": info.codec, "width": info.width, "height": info.height, "durationSec": info.duration}


def _print_result(result: Mapping[str, Any]) -> None:
    parts = [size_text(result["size"])]
    if result.get("codec"):
        parts.append(f"{result['codec']} {result['width']}x{result['height']}, {result['durationSec']:.1f} s long")
    parts.append(f"took {result['tookSec']:.1f} s")
    print_line(f"{result['output']}: {', '.join(parts)}")
