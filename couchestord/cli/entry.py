"""Runs one command of the command line."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from couchestord.cli import checking, mounting, operating, serving
from couchestord.errors import Error, NotFound
from couchestord.versions import program_version

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_NOT_THERE: Final = 3
"""2 is argparse's, for a wrong command line."""
EXIT_INTERRUPTED: Final = 130

_EPILOG: Final = """\
first steps:
  couchestord up --data ./data          a store of six directory disks, served on loopback; prints what to paste
  couchestord status --data ./data      is it well, and what would the loss of each disk cost
  couchestord info photos/cat.jpg --data ./data
                                        where every shard of an object lies

exit codes: 0 done; 1 failed, the reason is on standard error; 2 wrong command line; 3 what was named (bucket, object,
policy, user, access key) is not there. Every command takes --json: the result, or the error, as JSON.
"""


class _JsonParser(argparse.ArgumentParser):
    """Tells a wrong command line as JSON."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, _as_json("WrongCommandLine", message) + "\n")


def build_parser(*, as_json: bool = False) -> argparse.ArgumentParser:
    """The whole command line; each command's function is its default `run`. `as_json`: what is wrong is told so."""
    parser = (_JsonParser if as_json else argparse.ArgumentParser)(
        prog="couchestord",
        description="S3 objects on this machine's disks, under Reed-Solomon coding.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"couchestord {program_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serving.register(commands)
    mounting.register(commands)
    operating.register(commands)
    checking.register(commands)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code. Raises SystemExit for help and a wrong command line (argparse)."""
    options = build_parser(as_json="--json" in arguments).parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:
        return EXIT_FAILED  # who read what was said has gone: there is nothing more to tell
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return EXIT_INTERRUPTED
        if not all(isinstance(leaf, Error) or _is_of_a_file(leaf) for leaf in leaves):
            raise
        known = sorted(leaves, key=lambda leaf: not isinstance(leaf, Error))
        _complain(known[0], as_json=options.json)
        return EXIT_NOT_THERE if isinstance(known[0], NotFound) else EXIT_FAILED
    return EXIT_DONE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """trio's nurseries wrap what tasks raise in groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _as_json(name: str, message: str) -> str:
    return json.dumps({"error": {"name": name, "message": message}})


def _is_of_a_file(error: BaseException) -> bool:
    """What the system says of a file, that its file system is read-only say, is no defect of the program's."""
    return isinstance(error, OSError) and error.filename is not None


def _complain(error: BaseException, *, as_json: bool) -> None:
    message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    message = message or type(error).__name__
    if as_json:
        print(_as_json(type(error).__name__, message), file=sys.stderr)
    else:
        print(f"couchestord: {message}", file=sys.stderr)
