"""``autoexp` and `python -m autoexp`: runs the command line."""

import importlib.util
import sys


def main() -> int:
    """Run the command line; returns its exit code (see docs/commands.md)."""
    # The wheel holds the core alone, so the command line may be missing; and the core never
    # imports upwards, so it is looked up by name.
    if (
        importlib.util.find_spec("autoexp.flows") is None
        or importlib.util.find_spec("autoexp.cli.main") is None
    ):
        print(
            "autoexp: only the core is installed here; the command line and the flows run from a "
            "checkout. Clone the repository and run `make setup` (or `pip install -e .`) in it.",
            file=sys.stderr,
        )
        return 2
    cli = importlib.import_module("autoexp.cli.main")
    code: int = cli.main(sys.argv[1:])
    return code


if __name__ == "__main__":
    raise SystemExit(main())
