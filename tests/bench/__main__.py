"""Prints the page: `python -m tests.bench [--quick] [SECTION …]`, from the project's root.

A whole run without `--quick` also writes docs/BENCHMARKS.md.
"""

import argparse
import asyncio
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import (
    bench_bulk,
    bench_cli,
    bench_codec,
    bench_import,
    bench_ingest,
    bench_journal,
    bench_listing,
    bench_overhead,
    bench_transfers,
    bench_waiting,
    bench_webhooks,
    bench_wire,
)
from .data import SEED
from .generated import generate
from .harness import Bench, Page, Scale
from .server import serving

_SECTIONS = {
    "wire": bench_wire.run,
    "codec": bench_codec.run,
    "import": bench_import.run,
    "overhead": bench_overhead.run,
    "journal": bench_journal.run,
    "bulk": bench_bulk.run,
    "listing": bench_listing.run,
    "ingest": bench_ingest.run,
    "webhooks": bench_webhooks.run,
    "transfers": bench_transfers.run,
    "waiting": bench_waiting.run,
    "cli": bench_cli.run,
}
_PACKAGES = [
    *("convertrilo", "httpx", "httpcore", "h11", "anyio", "attrs", "cattrs", "tenacity"),
    *("orjson", "openapi-python-client", "httpx-aiohttp", "aiohttp", "botocore", "boto3", "moto"),
]


_PAGE = Path(__file__).parents[2] / "docs" / "BENCHMARKS.md"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _node_version() -> str:
    if shutil.which("node") is None:
        return "is not installed"
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _head(page: Page) -> None:
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    page.line("# convertrilo: benchmarks")
    page.line(f"{platform.system()} {platform.release()}, {os.cpu_count()} x {_processor()}, load {load}")
    page.line(f"{platform.python_implementation()} {platform.python_version()}, {', '.join(map(_version, _PACKAGES))}")
    page.line(f"Node {_node_version()}.")
    page.line(f"Seed {SEED}. Contestants take turns; a ratio is the median over the rounds (lowest-highest). Only")
    page.line("ratios mean something: they were measured side by side, the rest is this machine at this hour.")


async def _run(page: Page, scale: Scale, sections: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name, serving() as url:
        directory = Path(name)
        bench = Bench(page=page, scale=scale, url=url, directory=directory, generated=generate(directory))
        for section in sections:
            await _SECTIONS[section](bench)


def main() -> None:
    """Run the given sections, by default all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only show that everything runs; the numbers mean nothing")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(_SECTIONS)}; by default all")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(_SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        del os.environ[name]  # clients must reach the loopback server directly
    page = Page(sys.stdout, judging=not arguments.quick)
    _head(page)
    asyncio.run(_run(page, Scale(arguments.quick), arguments.sections or list(_SECTIONS)))
    page.end()
    if not arguments.quick and not arguments.sections:
        _PAGE.write_text(page.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
