"""`python -m medlite` is the `medlite` command."""

from medlite.cli import main

main()
