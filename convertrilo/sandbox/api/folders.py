"""The handler of folder ingest: one on-demand job per video under an S3 prefix or in a Google Drive folder."""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from posixpath import basename, splitext
from typing import Any

import attrs

from convertrilo import operations
from convertrilo.errors import Issue
from convertrilo.models import OnDemandFolderIngestItem, OnDemandFolderIngestRequest, OnDemandFolderIngestResponse
from convertrilo.sandbox.api.call import ApiCall, Handler, Work, refuse
from convertrilo.sandbox.api.ondemand import OUTPUT_SECONDS, refuse_dropbox
from convertrilo.sandbox.outside.s3 import place_issues
from convertrilo.sandbox.outside.sources import duration_of
from convertrilo.sandbox.state import lifecycle
from convertrilo.sandbox.state.filenames import source_name
from convertrilo.sandbox.state.problem import MediaError, Problem, invalid_request
from convertrilo.sandbox.state.settings import settings_issues, settings_of
from convertrilo.sandbox.state.store import Tx

_MAX_FILES = 1_000
_MAX_LISTED = 100_000
"""The maximum number of objects examined in the search for videos."""
_VIDEOS = frozenset(
    f".{extension}"
    for extension in (
        *("3g2", "3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf"),
        *("ogv", "ts", "webm", "wmv"),
    )
)


@attrs.frozen
class _Video:
    """One video in the folder: `name` is relative to the folder, `source` is the place that the job reads."""

    name: str
    size: int
    source: Mapping[str, Any] = attrs.field(repr=False)


async def on_demand_ingest_folder(call: ApiCall) -> Work:
    """Answer `onDemandIngestFolder`: queue all videos that were found, or none."""
    body = call.body_as(OnDemandFolderIngestRequest)
    refuse_dropbox(call, body.source_dropbox, body.output_dropbox)
    settings = settings_of(call.wire, {"quality": "better"})
    refuse([*settings_issues(settings), *_location_issues(call.wire)])
    places = call.backend.places
    if body.output_destination == "s3":
        await places.s3.check(call.wire["outputS3"])
    if body.output_destination == "google-drive":
        await places.drive.check(call.wire["outputGoogleDrive"])
    videos = await _videos(call, body.max_files or _MAX_FILES)
    if not videos:
        raise Problem(404, "no_video_files_found", "No video files were found in the folder.")
    outputs = output_names([video.name for video in videos], settings["container"])

    def work(call: ApiCall, tx: Tx) -> OnDemandFolderIngestResponse:
        items: list[OnDemandFolderIngestItem] = []
        for video, output in zip(videos, outputs, strict=True):
            job = call.new_job(
                tx,
                "ondemand",
                settings,
                source_name(video.name, None),
                external_id=f"{body.external_id_prefix}:{video.name}" if body.external_id_prefix else None,
                metadata=body.metadata,
                source=video.source,
                duration=duration_of(video.size) if places.fetches else None,
                high_priority=body.priority == "high",
                output_expiry=OUTPUT_SECONDS,
                destination=_destination(call.wire, output),
            )
            tx.add_job(job)
            lifecycle.queue(tx, job)
            items.append(OnDemandFolderIngestItem(job_id=job.id, external_id=job.external_id, file_name=video.name))
        return OnDemandFolderIngestResponse(message=f"{len(items)} jobs were queued.", jobs=items)

    return work


def _location_issues(wire: Mapping[str, Any]) -> list[Issue]:
    """Return the issues with the source folder and the output destination."""
    issues: list[Issue] = []
    source, to = wire.get("sourceS3"), wire.get("outputDestination")
    if (source is None) == (wire.get("sourceGoogleDrive") is None):
        issues.append(Issue("sourceS3", "is required unless sourceGoogleDrive is given; exactly one of them must be"))
    elif source is not None:
        issues += place_issues(source, "sourceS3", needs_key=False)
    if to == "s3" and wire.get("outputS3") is None:
        issues.append(Issue("outputS3", "is required with outputDestination s3"))
    elif to == "s3":
        issues += place_issues(wire["outputS3"], "outputS3", needs_key=False)
    if to == "google-drive" and wire.get("outputGoogleDrive") is None:
        issues.append(Issue("outputGoogleDrive", "is required with outputDestination google-drive"))
    return issues


async def _videos(call: ApiCall, limit: int) -> list[_Video]:
    """Return the videos in the folder, at most `limit`."""
    wire = call.wire
    listed = (
        _in_bucket(call, {"forcePathStyle": True, **wire["sourceS3"]})
        if wire.get("sourceS3") is not None
        else _in_drive(call, wire["sourceGoogleDrive"])
    )
    videos: list[_Video] = []
    seen = 0
    try:
        async with aclosing(listed):
            async for video in listed:
                seen += 1
                if splitext(video.name)[1].lower() in _VIDEOS:
                    videos.append(video)
                if len(videos) == limit or seen == _MAX_LISTED:
                    break
    except MediaError as error:
        raise invalid_request(f"The folder cannot be listed: {error}.") from None
    return videos


async def _in_bucket(call: ApiCall, place: Mapping[str, Any]) -> AsyncGenerator[_Video]:
    s3, prefix = call.backend.places.s3, place.get("prefix") or ""
    await s3.check(place)
    folder = "".join(prefix.rpartition("/")[:2])
    base = {name: value for name, value in place.items() if name != "prefix"}
    async with aclosing(s3.objects(place)) as objects:
        async for each in objects:
            yield _Video(each.key.removeprefix(folder), each.size, {**base, "key": each.key})


async def _in_drive(call: ApiCall, place: Mapping[str, Any]) -> AsyncGenerator[_Video]:
    base = {name: value for name, value in place.items() if name != "folderId"}
    async with aclosing(call.backend.places.drive.files(place)) as files:
        async for each in files:
            yield _Video(each.name, each.size, {**base, "fileId": each.id})


def output_names(names: Sequence[str], container: str) -> list[str]:
    """Return a unique name per output.

    The container's extension replaces the source's; it is appended instead if two outputs would have the same name.
    """
    shorter = [f"{splitext(name)[0]}.{container}" for name in names]
    longer = [f"{name}.{container}" for name in names]
    times = Counter([*shorter, *longer])
    return [short if times[short] == 1 else long for short, long in zip(shorter, longer, strict=True)]


def _destination(wire: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    to = wire.get("outputDestination")
    if to == "s3":
        place: dict[str, Any] = {"forcePathStyle": True, "prefix": "outputs/", **wire["outputS3"]}
        prefix = place.pop("prefix") or ""
        return {**place, "key": f"{prefix}{name}"}
    if to == "google-drive":
        return {"fileName": basename(name), **wire["outputGoogleDrive"]}
    return None


HANDLERS: Mapping[str, Handler] = {operations.ON_DEMAND_INGEST_FOLDER.id: on_demand_ingest_folder}
