"""`python -m convertrilo.mcp`: the server, for when its script is not on the PATH."""

from convertrilo.mcp import main

main()
