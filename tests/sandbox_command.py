"""`convertrilo sandbox` in a process of its own, and how its settings are read."""

import re
import sys

COMMAND = [sys.executable, "-m", "convertrilo.cli", "sandbox"]

LINES = 2
"""How many lines it prints once it serves."""


def settings_in(printed: str) -> tuple[str, str]:
    """Return the base URL and the API key that it has printed."""
    found = dict(re.findall(r"export (\w+)=(\S+)", printed))
    return found["CONVERTRILO_BASE_URL"], found["CONVERTRILO_API_KEY"]
