"""Big files over loopback: throughput and peak of memory against a bare httpx stream of the same bytes."""

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

import anyio

from .file_server import serving
from .harness import Bench, Measure, Sample, in_turns, ratios, typical

_MIB = 1024 * 1024
_SIZE = 2048 * _MIB
_ROUNDS = 5
_MANY_ROUNDS = 15
"""Rounds of transfers that take less than a second on both cores, so that single rounds vary with the machine."""
_LATENCY = 20
"""Milliseconds until the server answers a part."""
_IN_PARTS = {8 * _MIB: 1024 * _MIB, _MIB: 128 * _MIB}
"""The bytes to upload by part size: 128 parts each."""
_MOST_MEMORY = 100.0


def _transfer(peaks: dict[str, list[float]], way: str, url: str, path: Path, *numbers: int) -> Measure:
    """Measure a transfer in a process of its own, and record its peak memory in MiB."""
    command = [sys.executable, "-m", "tests.bench.transfer", way, url, str(path), *map(str, numbers)]

    async def measure() -> Sample:
        done = await anyio.run_process(command, stderr=None)
        if "download" in way:
            path.unlink(missing_ok=True)
        measured = json.loads(done.stdout)
        peaks.setdefault(f"{way} {numbers}", []).append(measured["peak"])
        return Sample(measured["wall"], measured["cpu"])

    return measure


async def run(bench: Bench) -> None:
    """Print an upload and a download against httpx, and concurrent parts against sequential ones."""
    source, target = bench.directory / "in.mp4", bench.directory / "out.mp4"
    size = _MIB if bench.scale.quick else _SIZE
    with source.open("wb") as file:
        for _ in range(size // _MIB):
            file.write(bytes(_MIB))
    # Data that is not yet on the disk would slow down the measured transfer.
    await anyio.run_process(["sync"])
    with serving() as url:
        await _against_httpx(bench, url, source, target, size)
        await _in_parts(bench, url, source)
    source.unlink()


async def _against_httpx(bench: Bench, url: str, source: Path, target: Path, size: int) -> None:
    page, peaks = bench.page, dict[str, list[float]]()
    transfer = partial(_transfer, peaks)
    page.table(
        f"transfers: {size // _MIB} MiB over loopback, each in a process of its own",
        ["", "MiB/s", "CPU s", "peak MiB", "of httpx's throughput"],
        "httpx reads or writes the file in the event loop; its last row writes nothing at all, and the disk's row only",
        "writes. Where the disk alone is no faster than that, no download can be.",
    )
    uploads: Mapping[str, Measure] = {
        "upload": transfer("upload", url, source),
        "httpx upload": transfer("httpx upload", url, source),
    }
    downloads: Mapping[str, Measure] = {
        name: transfer(name, url, target, size)
        for name in ("download", "httpx download, written", "httpx download, discarded", "disk, without a download")
    }
    for contestants, count in ((uploads, _MANY_ROUNDS), (downloads, _ROUNDS)):
        rounds = await in_turns(contestants, bench.scale.rounds(count))
        ours = next(iter(contestants))
        for name in contestants:
            throughput = size / _MIB / typical(rounds, name)
            peak = next(median(each) for key, each in peaks.items() if key.startswith(f"{name} ("))
            row = [f"{throughput:,.0f}", f"{typical(rounds, name, 'cpu'):.2f}"]
            if name == ours:
                page.row(name, *row, page.against(f"{name}, memory", [peak], at_most=_MOST_MEMORY), "")
            elif "httpx" in name:
                share = page.against(name, ratios(rounds, name, ours), at_least=0.8)
                page.row(name, *row, f"{peak:.0f}", share)
            else:
                page.row(name, *row, f"{peak:.0f}", "")


async def _in_parts(bench: Bench, url: str, source: Path) -> None:
    page, peaks = bench.page, dict[str, list[float]]()
    page.table(
        f"parts: 128 of them, each answered {_LATENCY} ms late",
        ["part size, in parallel", "MiB/s", "CPU s", "peak MiB", "times one at a time"],
    )
    for part_size, size in _IN_PARTS.items():
        size = min(size, source.stat().st_size)
        with source.open("r+b") as file:
            file.truncate(size)
        contestants = {
            f"{part_size // _MIB} MiB, {concurrency}": _transfer(
                peaks, "upload_chunked", f"{url}/{_LATENCY}", source, part_size, concurrency
            )
            for concurrency in (1, 4)
        }
        rounds = await in_turns(contestants, bench.scale.rounds(_ROUNDS))
        alone, together = contestants
        for concurrency, name in zip((1, 4), contestants, strict=True):
            peak = median(peaks[f"upload_chunked {(part_size, concurrency)}"])
            row = [f"{size / _MIB / typical(rounds, name):,.0f}", f"{typical(rounds, name, 'cpu'):.2f}"]
            if name == together:
                memory = page.against(f"{name}, memory", [peak], at_most=_MOST_MEMORY)
                page.row(name, *row, memory, page.against(name, ratios(rounds, alone, name), at_least=3))
            else:
                page.row(name, *row, f"{peak:.0f}", "")
