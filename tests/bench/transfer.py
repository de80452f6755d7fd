"""One transfer in a process of its own, so that its peak memory is its own. Prints seconds and MiB as JSON."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import httpx

from convertrilo import AsyncClient, RetryPolicy

from .memory import peak_memory

_READ = 256 * 1024
_TIMEOUT = httpx.Timeout(60)
_PATIENT = RetryPolicy(deadline=600)


async def _upload(url: str, path: Path, _: int, __: int) -> float:
    async with AsyncClient("a-key") as client:
        started = time.perf_counter()
        await client.upload(f"{url}/0/in", path)
        return time.perf_counter() - started


async def _httpx_upload(url: str, path: Path, _: int, __: int) -> float:
    async def pieces() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(_READ):
                yield piece

    headers = {"Content-Length": str(path.stat().st_size)}
    async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
        started = time.perf_counter()
        (await client.put(f"{url}/0/in", content=pieces(), headers=headers)).raise_for_status()
        return time.perf_counter() - started


async def _upload_chunked(url: str, path: Path, part_size: int, concurrency: int) -> float:
    async with AsyncClient("a-key", base_url=url, retry=_PATIENT) as client:
        started = time.perf_counter()
        await client.upload_chunked("j-1", path, part_size=part_size, concurrency=concurrency)
        return time.perf_counter() - started


async def _download(url: str, path: Path, size: int, _: int) -> float:
    async with AsyncClient("a-key") as client:
        started = time.perf_counter()
        await client.download(f"{url}/0/{size}", path)
        return time.perf_counter() - started


async def _httpx_written(url: str, path: Path, size: int, _: int) -> float:
    async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
        started = time.perf_counter()
        with path.open("wb") as file:
            async with client.stream("GET", f"{url}/0/{size}") as response:
                async for piece in response.aiter_raw():
                    file.write(piece)
        return time.perf_counter() - started


async def _httpx_discarded(url: str, _: Path, size: int, __: int) -> float:
    async with httpx.AsyncClient(timeout=_TIMEOUT) as client:
        started = time.perf_counter()
        async with client.stream("GET", f"{url}/0/{size}") as response:
            async for _piece in response.aiter_raw():
                pass
        return time.perf_counter() - started


async def _written(_: str, path: Path, size: int, __: int) -> float:
    piece = bytes(_READ)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, _READ):
            file.write(piece[: size - start])
    return time.perf_counter() - started


WAYS: Mapping[str, Callable[[str, Path, int, int], Awaitable[float]]] = {
    "upload": _upload,
    "httpx upload": _httpx_upload,
    "upload_chunked": _upload_chunked,
    "download": _download,
    "httpx download, written": _httpx_written,
    "httpx download, discarded": _httpx_discarded,
    "disk, without a download": _written,
}


async def _main(way: str, url: str, path: str, *numbers: str) -> None:
    first, second = (*map(int, numbers), 0, 0)[:2]
    started = time.process_time()
    wall = await WAYS[way](url, Path(path), first, second)
    cpu = time.process_time() - started
    sys.stdout.write(json.dumps({"wall": wall, "cpu": cpu, "peak": peak_memory()}))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
