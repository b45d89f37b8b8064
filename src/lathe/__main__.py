"""Run the command line as `python -m lathe`."""

from lathe.cli import main

main()
