"""The command line: parses, asks the daemon (or opens the store itself when none runs) and prints; it decides nothing.

`entry` runs a command and turns errors into exit codes, `serving` has the commands that stay in the foreground and the
one that makes a store, `operating` those that ask one, `text` what people read.
"""

from couchestord.cli.entry import run

__all__ = ["run"]
