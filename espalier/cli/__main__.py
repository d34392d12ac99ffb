"""``python -m espalier.cli``: the command, where its script is not on the PATH."""

from espalier.cli import main

main()
