"""The ``espalier`` command."""


def main() -> None:
    """Entry point of the console script."""
    from espalier.cli.app import app

    app()
