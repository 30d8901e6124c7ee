"""What commands print, on standard output."""

import os
import sys

from couchestord import logs
from couchestord.errors import ConfigError

_log = logs.get(__name__)


def say(text: str) -> None:
    """A result. Raises BrokenPipeError when its reader, `head` say, has gone, ConfigError when it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        # what is left of it would be written, and fail, when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(f"standard output cannot be written: {error.strerror}") from None


def announce(text: str) -> None:
    """Where a daemon can be reached. It goes on though nobody hears of it."""
    try:
        say(text)
    except (BrokenPipeError, ConfigError) as error:
        _log.warning("nobody could be told where this daemon is", reason=str(error))
