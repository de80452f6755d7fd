"""The benchmarks: `python -m tests.bench` from the project's root prints one page of side-by-side measurements."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1])
if _TESTS not in sys.path:
    sys.path.append(_TESTS)  # for the fakes that benchmarks and tests share; pytest adds this path by itself
