"""CPU of `import convertrilo` in a fresh interpreter, against importing its dependencies."""

import os
import resource
import sys
import time
from statistics import median

import anyio

from .harness import Bench, Measure, Sample, in_turns

_NOTHING = "pass"
_DEPENDENCIES = "import httpx, attrs, cattrs, tenacity, anyio"
_OURS = (
    "import convertrilo",
    "from convertrilo import AsyncClient",  # names are imported lazily, so this is the whole cost
)
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def interpreter(statement: str) -> Measure:
    """Measure a fresh interpreter that runs a statement. The CPU is that of the process."""

    async def measure() -> Sample:
        started = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        await anyio.run_process([sys.executable, "-c", statement], env=_ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Sample(time.perf_counter() - started, used)

    return measure


async def run(bench: Bench) -> None:
    """Print the CPU of each import, and ours as a multiple of the dependencies'."""
    page = bench.page
    contestants = {statement: interpreter(statement) for statement in (_NOTHING, _DEPENDENCIES, *_OURS)}
    await in_turns(contestants, 1)  # writes the .pyc files
    rounds = await in_turns(contestants, bench.scale.rounds(25))
    needed = {
        statement: [each.cpu - start.cpu for start, each in zip(rounds[_NOTHING], samples, strict=True)]
        for statement, samples in rounds.items()
    }
    page.table("import: CPU ms, without the interpreter's own start", ["", "CPU ms", "times dependencies"])
    page.row("the five dependencies", f"{median(needed[_DEPENDENCIES]) * 1e3:.0f}", "")
    for statement in _OURS:
        times = [ours / theirs for ours, theirs in zip(needed[statement], needed[_DEPENDENCIES], strict=True)]
        page.row(statement, f"{median(needed[statement]) * 1e3:.0f}", page.against(statement, times, at_most=1.2))
