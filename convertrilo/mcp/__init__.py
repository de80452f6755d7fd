"""The command `convertrilo-mcp`: an MCP server for agents, a thin layer over `AsyncClient`."""

import sys

_EXTRA = frozenset({"jsonschema", "mcp", "platformdirs", "yaml"})


def main() -> None:
    """Serve on stdin and stdout until the host closes them, and exit with an exit code."""
    try:
        from convertrilo.mcp.app import run

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA:
            raise
        sys.stderr.write(f'convertrilo-mcp: this needs {module}; install it with: pip install "convertrilo[mcp]"\n')
        code = 2
    sys.exit(code)
