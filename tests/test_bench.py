"""The benchmarks themselves: that the page is printed whole. How fast anything is, is not tested."""

import subprocess
import sys
from pathlib import Path


def test_the_benchmarks_print_every_section() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sections = [
        line.removeprefix("## ").partition(":")[0] for line in done.stdout.splitlines() if line.startswith("## ")
    ]
    assert sections == [
        "job_status on loopback",
        "codec",
        "import",
        "key, retry loop and events",
        "journal",
        "bulk",
        "listing",
        "webhooks",
        "transfers",
        "parts",
        "waiting",
        "waiters",
        "command",
    ]
    assert "nan" not in done.stdout
