"""`python -m couchestord` and the console script."""

import os
import sys

from couchestord.cli import run


def main() -> None:
    """Run the command line and leave with its exit code. What it makes is for its own user only."""
    os.umask(0o077)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
