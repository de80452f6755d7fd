"""`ingest_folder` with a million objects: objects per second and peak memory, of a first run and of a rerun.

The objects are in a manifest, so that no S3 server is measured. Each run is a process of its own.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from .harness import Bench
from .memory import peak_memory

_COUNTS = (100_000, 1_000_000)
_MOST_MEMORY = 100


async def run(bench: Bench) -> None:
    """Print a row for each number of objects and its rerun, and how memory grows with their number."""
    page = bench.page
    page.table(
        "ingest: a folder's objects, from a manifest",
        ["", "objects", "objects/s", "CPU us each", "peak MiB"],
        "All of it is in the journal: each object, each batch before it is sent, its answer after. A rerun finds every",
        "object in there.",
    )
    peaks: list[float] = []
    for full in _COUNTS:
        count = min(full, 2_000) if bench.scale.quick else full
        with TemporaryDirectory(dir=bench.directory) as name:
            folder = Path(name)
            with (folder / "keys.txt").open("w") as file:
                file.writelines(f"season-{number % 50:02}/episode-{number:08}.mov\n" for number in range(count))
            for row in ("ingest_folder", "  again"):
                command = [sys.executable, "-m", __name__, bench.url, name, str(count)]
                done = await anyio.run_process(command, stderr=None)
                seconds, cpu, peak = json.loads(done.stdout)
                peaks.append(peak)
                page.row(row, f"{count:,}", f"{count / seconds:,.0f}", f"{cpu / count * 1e6:.1f}", f"{peak:.0f}")
    page.row("  memory", "", "", "", page.against("memory", [max(peaks)], at_most=_MOST_MEMORY))
    growth = max(peaks[2:]) / max(peaks[:2])
    page.row("  memory, ten times the objects", "", "", "", page.against("memory grows", [growth], at_most=1.1))


# ---- in the process that is measured


async def _ingest(url: str, folder: Path, count: int) -> None:
    from convertrilo import AsyncClient, ingest_folder

    async with AsyncClient("a-key", base_url=url) as client:
        report = await ingest_folder(
            client,
            "s3://films/",
            {"codec": "av1", "resolution": "1080p", "fps": 25},
            journal=folder / "ingest.db",
            manifest=folder / "keys.txt",
            anonymous=True,
        )
    assert report.submitted == count


if __name__ == "__main__":
    _url, _folder, _count = sys.argv[1:]
    _started, _cpu = time.perf_counter(), time.process_time()
    asyncio.run(_ingest(_url, Path(_folder), int(_count)))
    _used = time.perf_counter() - _started, time.process_time() - _cpu
    sys.stdout.write(json.dumps([*_used, peak_memory()]))
