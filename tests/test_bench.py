"""The benchmarks themselves: that the page is printed whole. How fast anything is, is not tested."""

import io
import subprocess
import sys
from pathlib import Path

from bench.harness import Page


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
        "ingest",
        "webhooks",
        "transfers",
        "parts",
        "waiting",
        "waiters",
        "command",
    ]
    assert "nan" not in done.stdout


def test_what_is_printed_becomes_a_page_of_the_docs() -> None:
    out = io.StringIO()
    page = Page(out, judging=True)
    page.line("# convertrilo: benchmarks")
    page.line("A machine.")
    page.table("codec: CPU us", ["body", "ours"], "A note.")
    page.row("status", page.against("status", [2.0], at_least=3))
    page.end()
    markdown = page.markdown()
    assert markdown.startswith("# convertrilo: benchmarks\n\nA machine.\n\n## codec: CPU us\n\n```text\nA note.\nbody ")
    assert "MISSED" in markdown
    assert markdown.endswith("missed: codec: CPU us: status\n```\n")
    assert [line for line in markdown.splitlines() if line and line not in ("```text", "```")] == [
        line for line in out.getvalue().splitlines() if line
    ]
