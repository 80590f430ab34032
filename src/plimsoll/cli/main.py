"""The `plimsoll` command."""


def main() -> None:
    """Run the command line."""
