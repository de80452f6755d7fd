"""The benchmarks: `python -m tests.bench` from the project's root prints one page of side-by-side measurements."""
