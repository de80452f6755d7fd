"""Microseconds from bytes to models and back, with orjson and with the standard library, against the generated client.

The JSON library is chosen at import, so each is measured in an interpreter of its own.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from . import data
from .generated import load
from .harness import Bench, Scale, in_turns, micro, ratios, repeated, typical

_LIBRARIES = ("orjson", "json")

Calls = dict[str, Callable[[], object]]


async def run(bench: Bench) -> None:
    """Print a row for each kind of body."""
    page = bench.page
    results = {library: _measured(bench, library) for library in _LIBRARIES}
    columns = ["generated", "with json", "times generated", "with orjson", "times generated"]
    page.table("codec: CPU us", ["body", *columns])
    for what, (with_orjson, theirs, times_orjson) in results["orjson"].items():
        with_json, _, times_json = results["json"][what]
        cells = [micro(theirs) if theirs else "-", micro(with_json), f"{median(times_json):.2f}" if theirs else "-"]
        # The json module itself takes a third of the generated client's time, so only orjson can reach 2.
        page.row(what, *cells, micro(with_orjson), page.against(what, times_orjson, at_least=2) if theirs else "-")


_Result = tuple[float, float | None, list[float]]


def _measured(bench: Bench, library: str) -> dict[str, _Result]:
    command = [sys.executable, "-m", __name__, library, "--quick" if bench.scale.quick else "--full"]
    command += [str(bench.directory)] if bench.generated else []
    results: dict[str, _Result] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return results


# ---- in the interpreter that measures


def _ours() -> Calls:
    from convertrilo._json import encode
    from convertrilo.codec import from_request, read_answer, to_wire
    from convertrilo.models import BulkCreateRequest, BulkCreateResponse, StatusResponse

    bulk = from_request(BulkCreateRequest, data.BULK_REQUEST)
    return {
        "status: bytes to model": lambda: read_answer(StatusResponse, data.STATUS),
        "1,000 jobs: model to bytes": lambda: encode(to_wire(bulk)),
        "1,000 items: bytes to model": lambda: read_answer(BulkCreateResponse, data.BULK_ANSWER),
    }


def _theirs(directory: Path) -> Calls:
    models = load(directory).models
    bulk = models.BulkCreateRequest.from_dict(data.BULK_REQUEST)
    return {
        "status: bytes to model": lambda: models.StatusResponse.from_dict(json.loads(data.STATUS)),
        "1,000 jobs: model to bytes": lambda: json.dumps(bulk.to_dict()).encode(),
        "1,000 items: bytes to model": lambda: models.BulkCreateResponse.from_dict(json.loads(data.BULK_ANSWER)),
    }


async def _measure(scale: Scale, directory: Path | None) -> dict[str, _Result]:
    theirs = _theirs(directory) if directory else {}
    results: dict[str, _Result] = {}
    for what, call in _ours().items():
        contestants = {"ours": repeated(call, scale.seconds(0.1))}
        if what in theirs:
            contestants["theirs"] = repeated(theirs[what], scale.seconds(0.1))
        rounds = await in_turns(contestants, scale.rounds(15))
        compared = "theirs" in rounds
        results[what] = (
            typical(rounds, "ours", "cpu"),
            typical(rounds, "theirs", "cpu") if compared else None,
            ratios(rounds, "theirs", "ours", "cpu") if compared else [],
        )
    return results


if __name__ == "__main__":
    _library, _scale, *_directory = sys.argv[1:]
    if _library == "json":
        sys.modules["orjson"] = None  # type: ignore[assignment]  # makes the import fail
    _done = asyncio.run(_measure(Scale(_scale == "--quick"), Path(_directory[0]) if _directory else None))
    sys.stdout.write(json.dumps(_done))
