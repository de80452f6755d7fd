"""What `convertrilo encode` does: checks what it was given, encodes, and prints what came out."""

import importlib.util
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, get_args

import attrs
import click

from convertrilo._output_file import part_path
from convertrilo.cli.failures import JOB_FAILED, NO_ANSWER, UNCLEAR, exit_code
from convertrilo.cli.options import readable_file, writable_file
from convertrilo.cli.output import Output, print_line, size_text, wire_of
from convertrilo.cli.progress import Show, progress
from convertrilo.cli.service import Service
from convertrilo.cli.wait_flow import Waiting
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

_SETTINGS = ("codec", "resolution", "fps", "preset", "bitrate_tier", "quality", "external_id")
_OF_JOBS = ("passes", "optimize", "vmaf_target")
"""What `createJob` takes and `onDemandEncode` does not."""
_OF_ON_DEMAND = ("priority", "webhook", "output_expiry")
"""What `onDemandEncode` takes and `createJob` does not."""


@attrs.define(kw_only=True)
class Encoding:
    """One run of `convertrilo encode`."""

    source: str
    path: Path | None
    """Where to put the result; `None` leaves it with the service."""
    request: JobCreateRequest | OnDemandEncodeRequest
    key: str | None
    waits: bool
    waiting: Waiting
    output: Output
    service: Service
    job_id: str | None = None
    """The job, once it is there."""
    stage: Stage = "upload"

    @classmethod
    def of(cls, source: str, options: dict[str, Any]) -> "Encoding":
        """Check the options, and say all that is wrong before anything is done.

        Raises:
            click.UsageError: An option or a file is not right.
            ValidationError: A value is not what the contract allows.
        """
        is_url = "://" in source
        path, key = options["path"], options["idempotency_key"]
        container = _container(path, options["container"])
        if is_url:
            _check_url(source)
        else:
            name = Path(source)
            path = path or Path(f"{name.stem or 'output'}.{options['codec']}.{container}")
            _check_file(source, path)
        if key is None and not options["external_id"]:  # an empty one names nothing
            key = f"cli-{uuid.uuid4().hex}"  # known here, so that an interrupted run can be gone on with
        if path is not None:
            writable_file(path)
        return cls(
            source=source,
            path=path,
            request=_request(source, container, options, is_url=is_url),
            key=key,
            **{name: options[name] for name in ("waits", "waiting", "output", "service")},
        )

    def run(self) -> None:
        """Encode, show how it goes, and print what came out."""
        result = self.service.run(self._work, state=self._how_to_go_on)
        try:
            self.output.show(result, _for_people if self.path is not None else None, quiet=self.waiting.quiet)
        except OSError as error:  # the disk is full, or the like
            error.add_note(f"job {self.job_id} is made: convertrilo status {self.job_id}{self.service.suffix} shows it")
            raise

    async def _work(self, client: AsyncClient) -> dict[str, Any]:
        try:
            return await (self._encode_url if "://" in self.source else self._encode_file)(client)
        except ConvertriloError as error:
            code = exit_code(error)
            if code != JOB_FAILED and (self.job_id is not None or code in (NO_ANSWER, UNCLEAR)):
                error.add_note(self._how_to_go_on())
            raise

    # ---- a file

    async def _encode_file(self, client: AsyncClient) -> dict[str, Any]:
        assert self.path is not None
        assert isinstance(self.request, JobCreateRequest)
        started = time.monotonic()
        with progress(quiet=self.waiting.quiet) as on_progress:
            async with self.waiting.asking(client, lambda: self.job_id):
                done = await client.encode_file(
                    self.source,
                    self.request,
                    self.path,
                    timeout=self.waiting.timeout,
                    on_progress=self._noting(on_progress),
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
        with progress(quiet=self.waiting.quiet) as on_progress:
            done = await self.waiting.wait(client, self.job_id, on_progress)
            if self.path is None:
                return wire_of(done)
            await client.download(done, self.path, on_progress=on_progress)
        return await self._result(done.download_url, done.status, started)

    # ---- both

    def _noting(self, on_progress: Show) -> Show:
        def note(at: Progress) -> None:
            self.job_id, self.stage = at.job_id or self.job_id, at.stage
            on_progress(at)

        return note

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

    def _how_to_go_on(self) -> str:
        """Say in which state an unfinished run is, and how to go on."""
        suffix = self.service.suffix
        if self.job_id is None:
            if self.key is None:
                return ""
            return f"no job is known to be there; the same command with --idempotency-key {self.key} makes one at most"
        if "://" not in self.source:
            key = "" if self.key is None else f" with --idempotency-key {self.key}"
            how = f"the same command{key}"
        elif self.path is None:
            how = f"convertrilo wait {self.job_id}{suffix}"
        else:
            how = f"convertrilo download {self.job_id} --wait -o {self.path}{suffix}"
        kept = f"job {self.job_id} is kept: {how} goes on"
        if self.stage != "upload" and isinstance(self.request, JobCreateRequest):
            return kept  # what runs already can be canceled no more, unless it is on-demand
        return f"{kept}, convertrilo cancel {self.job_id}{suffix} gives it up"


def _request(
    source: str, container: str, options: dict[str, Any], *, is_url: bool
) -> JobCreateRequest | OnDemandEncodeRequest:
    """Choose the operation by what the options need, and return its body."""
    jobs = [name for name in _OF_JOBS if options[name] is not None]
    s3: dict[str, Any] = options["output_s3"]
    on_demand = [name for name in _OF_ON_DEMAND if options[name] is not None] + (["output-s3-…"] if s3 else [])
    wire = {wire_name(name): options[name] for name in _SETTINGS}
    wire |= {"container": container, "metadata": metadata_of(options["metadata"])}
    if not is_url:
        if on_demand:
            raise click.UsageError(f"{_flags(on_demand)}: for URLs only, not for files")
        name = os.fsencode(Path(source).name).decode(errors="replace")  # a file system takes names that JSON does not
        wire |= {"originalFilename": name, **{wire_name(name): options[name] for name in _OF_JOBS}}
        return from_request(JobCreateRequest, wire)
    wire["sourceUrl"] = source
    if jobs and on_demand:
        raise click.UsageError(f"{_flags(jobs)} cannot be given together with {_flags(on_demand)}")
    if jobs:
        wire |= {"confirm": True, **{wire_name(name): options[name] for name in jobs}}
        return from_request(JobCreateRequest, wire)
    if s3 and options["path"] is not None:
        raise click.UsageError("--output and --output-s3-… exclude each other: the result is in one place")
    wire |= {wire_name(name): options[name] for name in _OF_ON_DEMAND}
    wire["outputS3"] = s3 or None
    return from_request(OnDemandEncodeRequest, wire)


def _flags(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _container(path: Path | None, given: str | None) -> str:
    suffix = "" if path is None else path.suffix[1:].lower()
    if suffix in _CONTAINERS:
        if given is not None and given != suffix:
            raise click.UsageError(f"{path} says {suffix}, and --container {given}")
        return suffix
    return given or "mp4"


def _check_url(source: str) -> None:
    if not source.startswith(("http://", "https://")):
        raise click.UsageError("only http and https URLs can be encoded")


def _check_file(source: str, path: Path) -> None:
    readable_file(source)
    for written in (path, part_path(path)):
        if written.exists() and written.samefile(source):
            raise click.UsageError(f"{written} is the source itself")


def metadata_of(given: tuple[str, ...]) -> dict[str, Any] | None:
    """Return what `--metadata` was given as one object.

    Raises:
        click.UsageError: It is none.
    """
    metadata: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if each.lstrip().startswith("{"):
            try:
                metadata |= json.loads(each)
            except ValueError as error:
                raise click.UsageError(f"--metadata is no JSON object: {error}") from None
        elif mark and name:
            metadata[name] = value
        else:
            raise click.UsageError(f"--metadata takes KEY=VALUE or a JSON object, not {each!r}")
    return metadata or None


async def _probed(path: Path) -> dict[str, Any]:
    """Return what ffmpeg finds in the output; nothing, where there is no ffmpeg."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return {}
    from convertrilo.sandbox.encoding.probe import probe
    from convertrilo.sandbox.state.problem import MediaError

    try:
        info = await probe(path)
    except MediaError:
        return {}
    return {"codec": info.codec, "width": info.width, "height": info.height, "durationSec": info.duration}


def _for_people(result: Any) -> None:
    parts = [size_text(result["size"])]
    if result.get("codec"):
        parts.append(f"{result['codec']} {result['width']}x{result['height']}, {result['durationSec']:.1f} s long")
    parts.append(f"took {result['tookSec']:.1f} s")
    print_line(f"{result['output']}: {', '.join(parts)}")
