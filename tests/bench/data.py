"""Requests and answers in the wire format: realistic, and the same in every run."""

import json
import random
import uuid
from typing import Any

SEED = 2025
BULK = 1000

_random = random.Random(SEED)


def _id() -> str:
    return str(uuid.UUID(int=_random.getrandbits(128), version=4))


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


JOB_IDS = [_id() for _ in range(500)]

STATUS = _bytes(
    {
        "id": JOB_IDS[0],
        "externalId": "episode-0042",
        "metadata": {"show": "Čas", "season": 3, "tags": ["drama", "uhd"]},
        "sourceFilename": "episode-0042.mov",
        "outputFilename": "episode-0042-1080p.mp4",
        "status": "success",
        "ingest": None,
        "output": {"key": f"out/{JOB_IDS[0]}.mp4", "publicUrl": None},
        "downloadUrl": f"https://cdn.example.com/out/{JOB_IDS[0]}.mp4?expires=1764000000&signature={'5f' * 32}",
        "encoder": "svt-av1",
        "pct": 100,
        "createdAt": "2025-11-23T09:00:00.000Z",
        "startedAt": "2025-11-23T09:00:04.512Z",
        "finishedAt": "2025-11-23T09:03:41.007Z",
        "failureMessage": None,
    }
)

CREATED = _bytes(
    {
        "jobId": JOB_IDS[0],
        "externalId": "episode-0042",
        "metadata": {"show": "Čas", "season": 3},
        "sourceFilename": "episode-0042.mov",
        "outputFilename": "episode-0042-1080p.mp4",
        "upload": None,
        "output": {"key": f"out/{JOB_IDS[0]}.mp4", "publicUrl": None},
        "estimate": {"neu": 12.5, "totalNeu": 12.5, "reserved": 0},
    }
)


def job(number: int) -> dict[str, Any]:
    """Return the body of `createJob` for a new job."""
    return {
        "externalId": f"episode-{number:06}",
        "metadata": {"show": "Čas", "season": 3, "episode": number},
        "codec": "av1",
        "resolution": "1080p",
        "fps": 25,
        "container": "mp4",
        "preset": "standard",
        "sourceUrl": f"https://media.example.com/in/episode-{number:06}.mov",
        "originalFilename": f"episode-{number:06}.mov",
        "vmafTarget": 93.5,
    }


BULK_REQUEST = {
    "jobs": [job(number) for number in range(BULK)],
    "settings": {"failFast": False, "confirm": True},
}

BULK_ANSWER = _bytes(
    {
        "totalJobs": BULK,
        "totalEstimatedNeu": 12.5 * BULK,
        "reserved": 0,
        "jobs": [
            {
                "index": number,
                "jobId": _id(),
                "externalId": f"episode-{number:06}",
                "metadata": {"show": "Čas", "season": 3, "episode": number},
                "status": "queued",
                "estimate": {"neu": 12.5},
            }
            for number in range(BULK)
        ],
    }
)
