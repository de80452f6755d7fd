"""`python -m convertrilo.cli`: the command, where its script is not on the path."""

from convertrilo.cli import main

main()
