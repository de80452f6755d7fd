"""The command `convertrilo sandbox` in its own process, and how to read its settings."""

import re
import sys

COMMAND = [sys.executable, "-m", "convertrilo.cli", "sandbox"]

LINES = 2
"""The number of lines that the command prints once it serves."""


def settings_in(printed: str) -> tuple[str, str]:
    """Return the base URL and the API key from the printed lines."""
    found = dict(re.findall(r"export (\w+)=(\S+)", printed))
    return found["CONVERTRILO_BASE_URL"], found["CONVERTRILO_API_KEY"]
