"""`python -m ftkit`."""

from ftkit.cli import main

main()
