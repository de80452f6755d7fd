"""`python -m convertrilo.cli`: the command, for when its script is not on the PATH."""

from convertrilo.cli import main

main()
