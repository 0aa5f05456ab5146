"""`autoexp` and `python -m autoexp`: runs the command line."""

import sys

from autoexp.cli.main import main as run


def main() -> int:
    """Run the command line; returns its exit code (see docs/commands.md)."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
