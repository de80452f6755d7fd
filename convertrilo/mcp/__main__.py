"""`python -m convertrilo.mcp`: the server, where its script is not on the path."""

from convertrilo.mcp import main

main()
