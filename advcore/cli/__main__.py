"""The command `advcore`, as ``python -m advcore.cli``."""

from . import main

main()
