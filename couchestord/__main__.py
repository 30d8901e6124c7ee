"""`python -m couchestord` and the console script."""

import os
import sys


def main() -> None:
    """Run the command line and leave with its exit code. What it makes is for its own user only."""
    os.umask(0o077)
    try:
        # most of a short command's time is for loading it, which Ctrl-C may cut, too
        from couchestord.cli import run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
