"""CPU of `convertrilo --help` and other short commands, against a click command that does nothing."""

from statistics import median

from .bench_import import interpreter
from .harness import Bench, in_turns, ratios

_EMPTY = """
import click

@click.command()
def empty():
    "Do nothing."

empty(["--help"])
"""
_OURS = "import sys; sys.argv[1:] = {!r}; from convertrilo.cli import main; main()"
_COMMANDS = (["--help"], ["status", "--help"], ["encode", "--help"], ["config", "get"])


async def run(bench: Bench) -> None:
    """Print the CPU of each command, absolute and as a multiple of the empty command's."""
    page = bench.page
    contestants = {"an empty click command": interpreter(_EMPTY)}
    contestants |= {" ".join(["convertrilo", *each]): interpreter(_OURS.format(each)) for each in _COMMANDS}
    await in_turns(contestants, 1)  # writes the .pyc files
    rounds = await in_turns(contestants, bench.scale.rounds(25))
    page.table("command: CPU ms of the whole process", ["", "CPU ms", "times empty"])
    for name, samples in rounds.items():
        times = ratios(rounds, name, "an empty click command", "cpu")
        reached = f"{median(times):.2f}"
        if name == "convertrilo --help":
            reached = page.against(name, times, at_most=1.5)
        page.row(name, f"{median(each.cpu for each in samples) * 1e3:.0f}", reached)
